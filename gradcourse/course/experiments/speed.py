"""Chapter 5: the updates that plain descent needs against depth, and what rounding swallows of them."""

from functools import partial
from math import erfc, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from optax.losses import softmax_cross_entropy_with_integer_labels

from gradcourse.course.experiments._common import experiment, fresh
from gradcourse.course.provenance import check_platform
from gradcourse.course.recording import Experiment, grid
from gradcourse.nn.network import Network, mlp
from gradcourse.training.data import digits
from gradcourse.training.descent import descend

__all__ = ["EXPERIMENTS", "MANTISSA", "share_that_moves", "updated"]

BATCH = 32
Layers = list[dict[str, Any]]  # the parameters of each layer


def updates_to_escape(
    hidden: int, rate: float, seed: int, activation: str, init: str, *, batch: int = BATCH, most: int = 400_000
) -> dict[str, Any]:
    """Returns how many updates `hidden` layers of 64 need until their mean loss on all training digits is below 1.

    Plain descent on minibatches of `batch`. `"updates"`, found to within 2 %, is infinite where `most` were not enough
    or the loss was no longer finite. `"moved"` is how far the first layer's weights have got by then, relative to their
    norm at the start.
    """
    settings: Any = {"activation": activation, "init": init, "batch": batch, "steps": most}
    seen = first_layer_moves(hidden, rate, seed, per_decade=1 / np.log10(1.02), stop_at=1.0, **settings)
    return {"updates": seen["step"][-1] if seen["loss"][-1] < 1 else np.inf, "moved": seen["moved"][-1]}


def escape_on(platform: str, hidden: int, seed: int) -> dict[str, Any]:
    """Returns what `updates_to_escape` says of sigmoid layers, standard weights and a rate of 0.1, on this platform.

    Raises `ValueError` on another platform.
    """
    check_platform(platform)
    return updates_to_escape(hidden, 0.1, seed, "sigmoid", "standard")


def first_layer_moves(
    hidden: int,
    rate: float,
    seed: int,
    *,
    activation: str = "sigmoid",
    init: str = "standard",
    batch: int = BATCH,
    dtype: str = "float32",
    steps: int = 30_000,
    per_decade: float = 8.0,
    stop_at: float = 0.0,
) -> dict[str, Any]:
    """Returns what becomes of the weights in the same descent, after 1 to `steps` updates.

    At every `"step"`, evenly spaced in the logarithm: the `"loss"` on all training digits, how far the first layer's
    weights have `"moved"`, and the `"readout"`'s norm, these two relative to the norms at the start. The lists end
    where the loss is below `stop_at` or not finite. Steps of a shorter run are the first of a longer one's, and both
    precisions start from the same weights and draw the same minibatches.
    """
    looks = np.unique(np.round(10 ** np.arange(0, np.log10(steps) + 1e-9, 1 / per_decade))).astype(np.int32)
    network, data = mlp(64, [64] * hidden, 10, activation=activation, init=init), digits()
    params, key = fresh(network, seed)
    with jax.enable_x64(dtype == "float64"):
        start, x = jax.tree.map(lambda leaf: leaf.astype(dtype), ([p for _, p in network.layers(params)], data.x_train))
        settings = jnp.asarray([rate, stop_at], dtype)
        descent = _descended(network, batch, tuple(looks.tolist()), start, x, data.y_train, key, settings)
        seen, count = jax.device_get(descent)
    return {"step": looks[:count]} | {name: values[:count] for name, values in seen.items()}


def _mean_loss(network: Network, params: Layers, x: Array, y: Array) -> Array:
    # Not by network.apply: few small layers one after another run three times as fast on a CPU as in a scan.
    layers = (stage.layer for stage in network.stages for _ in range(stage.repeats))
    for layer, p in zip(layers, params, strict=True):
        x = layer.apply(p, x)
    return softmax_cross_entropy_with_integer_labels(x, y).mean()


def updated(
    network: Network, batch: int, x: Array, y: Array, key: PRNGKeyArray, rate: Array, step: Array, params: Layers
) -> Layers:
    """Returns the layers' parameters after one update of plain descent, on a minibatch that the step draws."""
    chosen = jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, len(x), jnp.int32)
    gradient = jax.grad(partial(_mean_loss, network))(params, x[chosen], y[chosen])
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _descended(
    network: Network, batch: int, looks: tuple[int, ...], start: Layers, x: Array, y: Array, key: Any, settings: Array
) -> tuple[dict[str, Array], Array]:
    """What was seen at every look, and how many were taken until the loss was below `stop_at` or not finite."""
    rate, stop_at = settings
    update = partial(updated, network, batch, x, y, key, rate)

    def see(params: Layers) -> dict[str, Array]:
        (first, before), (readout, drawn) = ((params[place]["weight"], start[place]["weight"]) for place in (0, -1))
        return {
            "loss": _mean_loss(network, params, x, y),
            "moved": jnp.linalg.norm(first - before) / jnp.linalg.norm(before),
            "readout": jnp.linalg.norm(readout) / jnp.linalg.norm(drawn),
        }

    def going(seen: dict[str, Array]) -> Array:
        return (seen["loss"] >= stop_at) & jnp.isfinite(seen["loss"])

    return descend(update, start, looks, see, going=going)[1:]


# ---- What rounding swallows

MANTISSA = {"bfloat16": 8, "float32": 24, "float64": 53}  # binary digits, the leading one included


def share_that_moves(deviation: float, bound: float, digits: int) -> float:
    r"""Returns the share of weights, uniform between -`bound` and `bound`, that an update moves at all.

    Updates are Gaussian with this standard `deviation`, and weights have so many binary `digits`. A weight between
    $2^{e}$ and $2^{e+1}$ has neighbours $2^{e+1-p}$ away, $p$ being the digits, and rounding takes back an update below
    half of that. Small weights are the finer: of half the weights so near zero that nothing can be lost, this sums
    over powers of two.

    >>> share_that_moves(1.0, 0.125, 24), share_that_moves(0.0, 0.125, 24)
    (1.0, 0.0)
    """
    if deviation == 0:
        return 0.0
    share, top = 0.0, np.ceil(np.log2(bound))
    for exponent in np.arange(top - 1, top - 60, -1):
        low, high = 2.0**exponent, min(2.0 ** (exponent + 1), bound)
        share += (high - low) / bound * erfc(2.0 ** (exponent - digits) / deviation / sqrt(2))
    return float(share + 2.0 ** (top - 59) / bound)


SEEDS = range(5)
_PLAIN: dict[str, Any] = {"activation": ["sigmoid"], "init": ["standard"]}
_TO_FIVE: dict[str, Any] = {"hidden": [1, 2, 3, 4, 5], "rate": [0.1], "seed": SEEDS}
_DEEPER: dict[str, Any] = {"hidden": [3, 5, 10, 20], "rate": [0.1], "seed": SEEDS}
_LONG: dict[str, Any] = {"steps": [2_000_000], "per_decade": [50.0], "stop_at": [1.0]}
EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        updates_to_escape,
        "updates that plain descent needs for a mean loss below 1 on digits, by depth and rate",
        (
            *grid(**_TO_FIVE, **_PLAIN),
            *grid(**_TO_FIVE | {"rate": [0.3, 1.0, 2.0, 3.0, 5.0]}, **_PLAIN),
            *grid(hidden=[6], rate=[2.0, 3.0, 5.0], seed=SEEDS, **_PLAIN, most=[100_000]),
            *grid(**_TO_FIVE, activation=["sigmoid"], init=["glorot_uniform"]),
            *grid(**_DEEPER, activation=["tanh"], init=["standard"], most=[40_000]),
            *grid(**_DEEPER, activation=["tanh"], init=["glorot_uniform"], most=[40_000]),
            *grid(**_DEEPER, activation=["relu"], init=["he_normal"], most=[40_000]),
        ),
    ),
    experiment(
        escape_on,
        "updates that plain descent needs for a mean loss below 1 on digits, by depth, on a GPU",
        grid(platform=["gpu"], hidden=[1, 2, 3, 4, 5], seed=SEEDS),
        name="updates_to_escape_gpu",
        cheaper={"platform": "cpu"},
    ),
    experiment(
        updates_to_escape,
        "the same on minibatches of 512 at a rate of 0.5: a third of the noise",
        grid(hidden=[2, 3, 4, 5], rate=[0.5], seed=SEEDS, **_PLAIN, batch=[512]),
        name="smooth_descent",
    ),
    experiment(
        first_layer_moves,
        "six sigmoid layers until their mean loss is below 1, two million updates at most, in two precisions",
        (
            *grid(hidden=[6], rate=[0.1], seed=[0], dtype=["float32", "float64"], **_LONG),
            *grid(hidden=[6], rate=[0.1], seed=[1], dtype=["float32"], **_LONG),
        ),
        name="six_layers",
        cheaper={"steps": 100},
    ),
    experiment(
        first_layer_moves,
        "how far plain descent moves the first layer's weights of sigmoid networks",
        (
            *grid(hidden=[2, 3, 4, 5, 6], rate=[0.1], seed=SEEDS),
            *grid(hidden=[4], rate=[1.0, 3.0], seed=SEEDS, steps=[1000]),
        ),
        cheaper={"steps": 100},
    ),
)
