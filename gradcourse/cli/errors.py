"""Whose error it is: the user's own code's, a complaint about what was given, or a fault of this package."""

import traceback

__all__ = ["Theirs", "is_complaint"]


class Theirs(Exception):
    """What the user's own code has raised, as its cause."""


def is_complaint(error: BaseException) -> bool:
    """Whether a function of this package has raised the error itself, to say what is wrong with what it was given.

    What a library raises further down is none: either a model of the user's has called it, or a check of ours is
    missing, and in both cases the whole traceback is what helps.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = frame.f_globals.get("__name__", "").startswith("gradcourse.")
    return ours and isinstance(error, ValueError | TypeError | FloatingPointError)
