"""Seconds to run and to compile against the depth, for the book's figure, and shares of a processor's peak."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradcourse.course.bench import contenders
from gradcourse.course.bench.cases import BATCH, OUTPUTS, SIZES, dense
from gradcourse.course.timing import seconds
from gradcourse.measure.jacobians import backward_jacobian_norms

__all__ = ["depth_scan", "matrix_product_peak", "sweep_shares"]


def depth_scan(
    depths: Sequence[int] = (2, 8, 32, 128, 512, 2048, 8192), *, patience: float = 20, rounds: int = 5
) -> list[dict[str, Any]]:
    """Returns seconds to run and to compile each way of measuring all layers of width 64, against depth.

    A way is left off where a smaller depth has taken more than `patience` seconds. PyTorch compiles nothing.
    """
    ways: dict[str, Callable[..., Callable[[], Any]]] = {
        "one sweep, scanned": lambda *net: partial(backward_jacobian_norms, *net),
        "jax.jacrev per layer": contenders.jax_jacrev_per_layer,
    }
    if find_spec("torch"):
        ways |= {
            "torch.autograd.grad, batched": contenders.torch_batched,
            "torch.func.jacrev per layer": contenders.torch_jacrev_per_layer,
        }
    points = []
    for way, make in ways.items():
        for depth in depths:
            program = make(*dense(depth, 64))
            jax.clear_caches()
            first = seconds(program)
            again = float(np.median([seconds(program) for _ in range(rounds if first < 1 else 1)]))
            compiled = max(first - again, 0) if "torch" not in way else 0.0
            points.append({"way": way, "depth": depth, "run": again, "compile": compiled})
            if first > patience:
                break
    return points


def matrix_product_peak(size: int = 2048, rounds: int = 9) -> float:
    """Returns the floating-point operations per second of the fastest round of a large float32 matrix product."""
    a = jnp.ones((size, size))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=lax.Precision.HIGHEST))
    seconds(partial(product, a))
    return 2 * size**3 / min(seconds(partial(product, a)) for _ in range(rounds))


def sweep_shares(sizes: Sequence[tuple[int, int]] = SIZES, rounds: int = 5) -> dict[str, float]:
    """Returns, per size, the share of that peak at which the sweep's matrix products are worked off."""
    peak, shares = matrix_product_peak(), {}
    for depth, width in sizes:
        program = partial(backward_jacobian_norms, *dense(depth, width))
        seconds(program)
        operations = 2 * depth * width**2 * BATCH * (1 + OUTPUTS)
        shares[f"dense, {depth} layers of {width}"] = operations / min(seconds(program) for _ in range(rounds)) / peak
    return shares
