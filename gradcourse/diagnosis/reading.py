"""Where to read on about each kind of finding: plain data, which a caller may replace by their own."""

from collections.abc import Mapping

__all__ = ["READ_ON"]

READ_ON: Mapping[str, str] = {
    "not finite": "chapter 10 of the course, precision",
    "underflow": "chapter 10 of the course, precision",
    "exploding": "chapter 6 of the course, the learning rate",
    "vanishing": "chapter 2 of the course, the sigmoid derivative",
    "dead": "chapter 3 of the course, rectifiers",
    "saturated": "chapter 4 of the course, glorot initialisation",
    "frozen": "chapter 6 of the course, the learning rate",
}
