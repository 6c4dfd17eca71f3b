"""How long a program takes, its results included: JAX returns before they are there."""

import time
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["seconds"]


def seconds(program: Callable[[], Any]) -> float:
    """Returns how long `program` takes until its results are there.

    >>> seconds(lambda: jax.numpy.ones(3) + 1) > 0
    True
    """
    start = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - start
