"""Chapter 5: seconds per update of sigmoid layers against their width, on a processor and on a GPU."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradcourse.course.experiments._common import experiment
from gradcourse.course.experiments.precision import matrix_product, with_products
from gradcourse.course.experiments.speed import updated
from gradcourse.course.provenance import check_platform
from gradcourse.course.recording import Experiment, grid
from gradcourse.course.timing import seconds
from gradcourse.nn.network import mlp
from gradcourse.training.data import digits

__all__ = ["EXPERIMENTS", "WIDER", "step_operations", "step_seconds"]

BATCH = 32


def step_operations(width: int, hidden: int = 5, batch: int = BATCH) -> int:
    """Returns the floating-point operations of the matrix products of one update of `hidden` layers of `width`.

    Every layer has one product on the way forward and two on the way back, save the first, whose input needs no
    gradient.

    >>> step_operations(1, hidden=1, batch=1)  # 64 inputs, one unit, ten outputs
    316
    """
    sizes = [64, *[width] * hidden, 10]
    weights = [rows * columns for rows, columns in pairwise(sizes)]
    return 2 * batch * (3 * sum(weights) - weights[0])


# What a round may take, in operations, and the size of the product that shows the peak: each platform's own.
ROUND = {"cpu": 1e10, "gpu": 1e12}
LARGE = {"cpu": 1024, "gpu": 8192}


def step_seconds(
    platform: str,
    width: int,
    *,
    hidden: int = 5,
    dtype: str = "float32",
    products: str = "highest",
    steps: int = 100,
    rounds: int = 25,
) -> dict[str, Any]:
    """Returns what one update of `hidden` sigmoid layers costs, in seconds, in the fastest of `rounds` rounds.

    - `"in_program"`: in one compiled program of many updates;
    - `"called"`: with one call from Python per update, waiting for the last;
    - `"returned"`: until such a call *returns*, which on an asynchronous device is before it is done;
    - `"compile"`: to trace and compile the program, once;
    - `"operations"`, and `"peak"`: operations per second of a large float32 matrix product, in the same minute;
    - `"bandwidth"`: bytes per second, read or written, of a long vector made from another.

    The `products` are computed as `course.experiments.precision.matrix_product` says, that of the peak too. With
    no `rounds` only the operations. Raises `ValueError` where this is not the platform asked for.
    """
    found: dict[str, Any] = {"operations": step_operations(width, hidden)}
    if not rounds:
        return found
    check_platform(platform)
    data = digits()  # in single precision, whatever that of the run
    network = mlp(64, [width] * hidden, 10, activation="sigmoid", init="standard")
    if products != "highest":
        network = with_products(network, products)
    start = network.init(key=jax.random.key(0))
    with jax.enable_x64(dtype == "float64"):
        params = [jax.tree.map(lambda leaf: leaf.astype(dtype), p) for _, p in network.layers(start)]
        x, rate = data.x_train.astype(dtype), jnp.asarray(0.1, dtype)
        update = partial(updated, network, BATCH, x, data.y_train, jax.random.key(1), rate)
        count = max(2, min(steps, int(ROUND[platform] / found["operations"])))
        many = jax.jit(lambda params: lax.fori_loop(0, count, update, params))
        begun = time.perf_counter()
        compiled = many.lower(params).compile()
        found["compile"] = time.perf_counter() - begun
        single = jax.jit(update).lower(jnp.int32(0), params).compile()
        found["in_program"] = min(seconds(partial(compiled, params)) for _ in range(rounds)) / count
        calls = [_called(single, params, count) for _ in range(rounds)]
    found["returned"], found["called"] = np.min(calls, axis=0) / count
    size = LARGE[platform]
    return found | {"peak": _product_rate(size, products, rounds), "bandwidth": _copy_rate(16 * size**2, rounds)}


def _product_rate(size: int, products: str, rounds: int) -> float:
    """Operations per second of a product of two float32 matrices of `size` by `size`, in the fastest round."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))  # a device can be faster on zeros and ones
    multiplied = jax.jit(matrix_product, static_argnums=2).lower(a, b, products).compile()
    return 2 * size**3 / min(seconds(partial(multiplied, a, b)) for _ in range(rounds + 1))


def _copy_rate(size: int, rounds: int) -> float:
    """Bytes per second of negating `size` float32 numbers, each read and written once, in the fastest round."""
    a = jax.random.normal(jax.random.key(0), (size,))
    negated = jax.jit(jnp.negative).lower(a).compile()
    return 8 * size / min(seconds(partial(negated, a)) for _ in range(rounds + 1))


def _called(single: Callable[[Any, Any], Any], params: Any, count: int) -> tuple[float, float]:
    """Seconds until `count` calls have returned, and until they are done."""
    steps = [jnp.int32(step) for step in range(count)]
    start = time.perf_counter()
    for step in steps:
        params = single(step, params)
    returned = time.perf_counter() - start
    jax.block_until_ready(params)
    return returned, time.perf_counter() - start


WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
WIDER = (*WIDTHS, 4096, 8192)  # for a device that has the memory
_STEPS: dict[str, tuple[str, tuple[Mapping[str, Any], ...]]] = {
    "cpu": ("", grid(platform=["cpu"], width=WIDTHS, dtype=["float32", "float64"])),
    "gpu": (
        ", on a GPU",
        (
            *grid(platform=["gpu"], width=WIDER, dtype=["float32"], products=["highest"]),
            *grid(platform=["gpu"], width=WIDER[4:], dtype=["float32"], products=["default"]),
            *grid(platform=["gpu"], width=WIDTHS, dtype=["float64"], products=["highest"]),
        ),
    ),
    "host": (", on the processor beside the GPU", grid(platform=["cpu"], width=WIDTHS, dtype=["float32"])),
}
EXPERIMENTS: tuple[Experiment, ...] = tuple(
    experiment(
        step_seconds,
        f"seconds per update of five sigmoid layers, by width{where}",
        points,
        name=f"step_seconds_{place}",
        cheaper={"rounds": 0},
    )
    for place, (where, points) in _STEPS.items()
)
