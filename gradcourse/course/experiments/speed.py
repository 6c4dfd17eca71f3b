"""Chapter 5: what speed buys: updates and seconds against depth, what rounding swallows, Ciresan's networks."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise, product
from math import erfc, prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from optax.losses import softmax_cross_entropy_with_integer_labels

from gradcourse.course.bench import seconds
from gradcourse.course.contenders import layers_of
from gradcourse.course.experiments.precision import check_platform, matrix_product, with_products
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.gradients import activation_gradient_norms
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.activations import Activation
from gradcourse.nn.initializers import Initializer
from gradcourse.nn.layers import Dense
from gradcourse.nn.network import Network, mlp, sequential
from gradcourse.theory import meanfield
from gradcourse.training.data import digits

__all__ = [
    "EXPERIMENTS",
    "MANTISSA",
    "RECORD_NETS",
    "escape_on",
    "first_layer_moves",
    "predicted_record_net",
    "profile_elsewhere",
    "profile_on",
    "record_net",
    "record_network",
    "share_that_moves",
    "step_operations",
    "step_seconds",
    "updates_to_escape",
    "variance_shares",
]

BATCH = 32
Layers = list[dict[str, Any]]  # the parameters of each layer


@lru_cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The training images and labels, in single precision whatever the precision of the run."""
    with jax.enable_x64(False):
        data = digits()
    return np.asarray(data.x_train), np.asarray(data.y_train)


# ---- Plain descent until the loss has fallen


def updates_to_escape(
    hidden: int,
    rate: float,
    seed: int,
    activation: str,
    init: str,
    *,
    batch: int = BATCH,
    most: int = 400_000,
) -> dict[str, Any]:
    """Returns how many updates `hidden` layers of 64 need until their mean loss on all training digits is below 1.

    Plain descent on minibatches of `batch`. `"updates"`, found to within 2 %, is infinite where `most` were not enough
    or the loss was no longer finite. `"moved"` is how far the first layer's weights have got by then, relative to their
    norm at the start.
    """
    looks = _looks(most, 1 / np.log10(1.02))
    seen = _seen(hidden, rate, seed, looks, activation=activation, init=init, batch=batch, stop_at=1.0)
    there = seen["loss"][-1] < 1
    return {"updates": seen["step"][-1] if there else np.inf, "moved": seen["moved"][-1]}


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
    dtype: str = "float32",
    steps: int = 30_000,
    per_decade: float = 8.0,
    stop_at: float = 0.0,
) -> dict[str, Any]:
    """Returns what becomes of the weights in the same descent, after 1 to `steps` updates.

    At every `"step"`, evenly spaced in the logarithm: the `"loss"` on all training digits, how far the first layer's
    weights have `"moved"`, and the `"readout"`'s norm, these two relative to the norms at the start. The lists end
    where the loss is below `stop_at`. Both precisions start from the same weights and draw the same minibatches.
    """
    return _seen(hidden, rate, seed, _looks(steps, per_decade), dtype=dtype, stop_at=stop_at)


def _looks(most: int, per_decade: float) -> np.ndarray:
    """Steps from 0 to `most`, evenly spaced in the logarithm; those of a shorter run are the first of a longer's."""
    steps = np.round(10 ** np.arange(0, np.log10(most) + 1e-9, 1 / per_decade))
    return np.concatenate([[0], np.unique(steps)]).astype(np.int32)


def _seen(
    hidden: int,
    rate: float,
    seed: int,
    looks: np.ndarray,
    *,
    activation: str = "sigmoid",
    init: str = "standard",
    batch: int = BATCH,
    dtype: str = "float32",
    stop_at: float,
) -> dict[str, np.ndarray]:
    network = mlp(64, [64] * hidden, 10, activation=activation, init=init)
    init_key, key = jax.random.split(jax.random.key(seed))
    start = [p for _, p in layers_of(network, network.init(key=init_key))]
    with jax.enable_x64(dtype == "float64"):
        start = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), start)
        x, y = (jnp.asarray(part, kind) for part, kind in zip(_digits(), (dtype, jnp.int32), strict=True))
        settings = jnp.asarray([rate, stop_at], dtype)
        count, seen = jax.device_get(_descended(network, batch, start, x, y, key, *settings, jnp.asarray(looks)))
    return {"step": looks[1 : count + 1]} | {name: values[:count] for name, values in seen.items()}


def _mean_loss(network: Network, params: Layers, x: Array, y: Array) -> Array:
    # Not by network.apply: few small layers one after another run three times as fast on a CPU as in a scan.
    layers = (stage.layer for stage in network.stages for _ in range(stage.repeats))
    for layer, p in zip(layers, params, strict=True):
        x = layer.apply(p, x)
    return softmax_cross_entropy_with_integer_labels(x, y).mean()


def _update(
    network: Network, batch: int, x: Array, y: Array, key: Any, rate: Array, step: Array, params: Layers
) -> Layers:
    chosen = jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, len(x), jnp.int32)
    gradient = jax.grad(partial(_mean_loss, network))(params, x[chosen], y[chosen])
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)


@partial(jax.jit, static_argnums=(0, 1))
def _descended(
    network: Network, batch: int, start: Layers, x: Array, y: Array, key: Any, rate: Array, stop_at: Array, looks: Array
) -> tuple[Array, dict[str, Array]]:
    """How many looks were taken until the loss was below `stop_at` or not finite, and what was seen at each."""
    update = partial(_update, network, batch, x, y, key, rate)

    def see(params: Layers) -> dict[str, Array]:
        (first, before), (readout, fresh) = ((params[place]["weight"], start[place]["weight"]) for place in (0, -1))
        return {
            "loss": _mean_loss(network, params, x, y),
            "moved": jnp.linalg.norm(first - before) / jnp.linalg.norm(before),
            "readout": jnp.linalg.norm(readout) / jnp.linalg.norm(fresh),
        }

    def going(state: tuple[Array, Layers, dict[str, Array]]) -> Array:
        look, _, seen = state
        loss = jnp.where(look > 0, seen["loss"][look - 1], jnp.finfo(x.dtype).max)
        return (look < len(looks) - 1) & (loss >= stop_at) & jnp.isfinite(loss)

    def on(state: tuple[Array, Layers, dict[str, Array]]) -> tuple[Array, Layers, dict[str, Array]]:
        look, params, seen = state
        params = lax.fori_loop(looks[look], looks[look + 1], update, params)
        return look + 1, params, {name: seen[name].at[look].set(value) for name, value in see(params).items()}

    nothing = dict.fromkeys(("loss", "moved", "readout"), jnp.zeros(len(looks) - 1, x.dtype))
    look, _, seen = lax.while_loop(going, on, (jnp.int32(0), start, nothing))
    return look, seen


# ---- Seconds per update


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
    network = mlp(64, [width] * hidden, 10, activation="sigmoid", init="standard")
    if products != "highest":
        network = with_products(network, products)
    with jax.enable_x64(dtype == "float64"):
        params = [p for _, p in layers_of(network, network.init(key=jax.random.key(0)))]
        x, y = (jnp.asarray(part, kind) for part, kind in zip(_digits(), (dtype, jnp.int32), strict=True))
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        update = partial(_update, network, BATCH, x, y, jax.random.key(1), jnp.asarray(0.1, dtype))
        count = max(2, min(steps, int(ROUND[platform] / found["operations"])))
        many = jax.jit(lambda params: lax.fori_loop(0, count, update, params))
        start = time.perf_counter()
        compiled = many.lower(params).compile()
        found["compile"] = time.perf_counter() - start
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


# ---- The same profile, computed elsewhere

ACTIVATIONS = ("sigmoid", "tanh", "relu")
INITS = {"standard": 1.0, "Glorot": sqrt(3), "He": sqrt(6)}  # times the standard weights: right in square layers
DEPTHS = (10, 20)
DRAWS = 10  # random networks of each kind
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, two devices": {"devices": 2},
    "float32, old instructions, one thread": {
        "flags": "--xla_cpu_max_isa=AVX --xla_cpu_multi_thread_eigen=false",
    },
    "float64": {"dtype": "float64"},
    "weights in bfloat16": {"dtype": "bfloat16"},
}


def profile_elsewhere(setting: str, *, activations: Sequence[str] = ACTIVATIONS) -> dict[str, Any]:
    """Returns the profiles of ten random networks for every activation, initialisation and depth, in a new process.

    The `setting` decides how that process computes: on how many devices, with which instructions, in which format. The
    weights are the same draws everywhere. `"norm"`, `(activation, init, seed, layer)`: the Jacobian norms of 20 layers
    of 100; `"slope"`, `(activation, init, depth, seed)`: decades lost per layer.
    """
    how = SETTINGS[setting]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(how.get("devices", 1)),
        "XLA_FLAGS": how.get("flags", ""),
    }
    program = (
        "import json, sys; from gradcourse.course.experiments.speed import profiles_here; "
        "print(json.dumps(profiles_here(*json.loads(sys.argv[1]))))"
    )
    arguments = json.dumps([how.get("dtype", "float32"), how.get("devices", 1), list(activations)])
    done = subprocess.run(
        [sys.executable, "-c", program, arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def profile_on(
    platform: str, dtype: str, products: str, *, activations: Sequence[str] = ACTIVATIONS, draws: bool = True
) -> dict[str, Any]:
    """Returns the same profiles, computed on this platform, with such `products`.

    With `draws` also `"other"`: the share of the weights that are not, bit for bit, those which the same key gives on
    a CPU. Raises `ValueError` on another platform.
    """
    check_platform(platform)
    found = profiles_here(dtype, 1, activations, products)
    if draws:
        with jax.default_device(jax.devices("cpu")[0]):
            on_cpu = jax.tree.leaves(_drawn(DEPTHS[-1]))
        here = jax.tree.leaves(_drawn(DEPTHS[-1]))
        other = sum(int(np.sum(one != two)) for one, two in zip(here, on_cpu, strict=True))
        found["other"] = other / sum(one.size for one in here)
    return found


def profiles_here(dtype: str, devices: int, activations: Sequence[str], products: str = "highest") -> dict[str, Any]:
    """Returns what `profile_elsewhere` says, as lists, computed in this process on `devices` of its devices.

    The matrix `products` are computed as `gradcourse.course.experiments.precision.matrix_product` says.
    """
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("seed",))
    x = _digits()[0][:100]
    norms, slopes = [], []
    drawn = {depth: _drawn(depth) for depth in DEPTHS}
    for activation, scale, depth in product(activations, INITS.values(), DEPTHS):
        network = mlp(64, [100] * depth, 10, activation=activation)
        if products != "highest":
            network = with_products(network, products)
        with jax.enable_x64(dtype == "float64"):
            stacked = jax.tree.map(lambda leaf, scale=scale: jnp.asarray(scale * leaf, dtype), drawn[depth])
            stacked = jax.device_put(stacked, NamedSharding(mesh, PartitionSpec("seed")))
            profile = _profiles(network, stacked, x.astype("float64" if dtype == "float64" else "float32"))
        slopes.append(profile.slopes(first=1, last=depth - 1))
        if depth == DEPTHS[-1]:
            norms.append(10**profile.log10_norm)
    sizes = len(activations), len(INITS)
    return {
        "norm": np.reshape(norms, (*sizes, *norms[0].shape)).tolist(),
        "slope": np.reshape(slopes, (*sizes, len(DEPTHS), DRAWS)).tolist(),
    }


def _drawn(depth: int) -> Any:
    """Ten draws of standard weights, stacked, as single-precision NumPy arrays."""
    network = mlp(64, [100] * depth, 10, init="standard")
    draws = [network.init(key=key) for key in jax.random.split(jax.random.key(5), DRAWS)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *draws)


@partial(jax.jit, static_argnums=0)
def _profiles(network: Network, params: Any, x: Array) -> Any:
    return jax.vmap(lambda p: backward_jacobian_norms(network, p, x))(params)


def variance_shares(table: Float[np.ndarray, "..."]) -> Float[np.ndarray, " factor"]:
    """Returns the share of a table's variance that each of its axes explains by itself.

    An axis explains the variance of the averages over all other axes. What is missing to 1 is joint effects.

    >>> variance_shares(np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([0.8, 0.2])
    """
    table = np.asarray(table, np.float64)
    axes = range(table.ndim)
    means = [table.mean(axis=tuple(other for other in axes if other != axis)) for axis in axes]
    return np.array([mean.var() for mean in means]) / table.var()


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


# ---- The networks of Ciresan et al. (2010)

RECORD_NETS: dict[int, tuple[int, ...]] = {
    1: (1000, 500),
    2: (1500, 1000, 500),
    3: (2000, 1500, 1000, 500),
    4: (2500, 2000, 1500, 1000, 500),
    5: (1000,) * 9,
}
PIXELS = 29 * 29
SCALED_TANH = Activation(
    "scaled_tanh",
    lambda s: 1.7159 * jnp.tanh(0.6666 * s),
    lambda s: 1.7159 * 0.6666 * (1 - jnp.square(jnp.tanh(0.6666 * s))),
    1.7159 * 0.6666,
    source="LeCun et al. 1998",
)


def record_network(net: int, *, activation: Any = SCALED_TANH, bound: float | None = 0.05) -> Network:
    """Returns network 1 to 5 of Ciresan et al. (2010), with weights between -`bound` and `bound`, biases zero.

    Without a bound the weights are those of the standard initialisation.

    >>> record_network(4).depth
    6
    """
    sizes = [PIXELS, *RECORD_NETS[net], 10]
    layers: list[Dense] = []
    for fan_in, units in pairwise(sizes):
        init = Initializer("standard", 1.0 if bound is None else bound * sqrt(fan_in))
        layers.append(Dense(units, activation if len(layers) < len(sizes) - 2 else "identity", init=init))
    return sequential(PIXELS, layers)


def record_net(net: int, scheme: str, seed: int) -> dict[str, Any]:
    """Returns the log10 `"norm"` of the loss's gradient at each hidden layer's pre-activations, before any training.

    The `scheme` is `"their own"` or `"sigmoid, standard"`. A hundred images, digits enlarged to 29 by 29 pixels.
    """
    network, x, y = _record_setting(net, scheme, images=100)
    params = network.init(key=jax.random.key(seed))
    profile = activation_gradient_norms(network, params, x, y, at="preactivation")
    count = sum(prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return {"norm": profile.log10_norm[:-1], "parameters": count}


def predicted_record_net(net: int, scheme: str) -> Float[np.ndarray, " layer"]:
    """Returns what mean-field theory predicts for that `"norm"`, relative to that at the last hidden layer."""
    network, x, _ = _record_setting(net, scheme, images=20)
    at_input = meanfield.backward_jacobian_norms(network, x).log10_norm
    variances: list[
        Any
    ] = []  # of each layer's weights, times its fan-in: what lies between its pre-activation and input
    for stage in network.stages:
        layer: Any = stage.layer
        variance = layer.init_scheme.second_moment(layer.weight_shape(stage.shape)) * stage.shape[0]
        variances += [variance] * stage.repeats
    hidden = (at_input - np.log10(variances) / 2)[:-1]
    return hidden - hidden[-1]


def _record_setting(net: int, scheme: str, images: int) -> tuple[Network, Array, np.ndarray]:
    own = scheme == "their own"
    network = record_network(net) if own else record_network(net, activation="sigmoid", bound=None)
    x, y = (part[:images] for part in _digits())
    x = jax.image.resize(jnp.asarray(x).reshape(-1, 8, 8), (images, 29, 29), "linear").reshape(images, -1)
    return network, x, y


# ---- The points


SEEDS = range(5)
_PLAIN = {"activation": ["sigmoid"], "init": ["standard"]}
_FIXED = grid(hidden=[1, 2, 3, 4, 5], rate=[0.1], seed=SEEDS, **_PLAIN)
_RATES = (
    *grid(hidden=[1, 2, 3, 4, 5], rate=[0.3, 1.0, 2.0, 3.0, 5.0], seed=SEEDS, **_PLAIN),
    *grid(hidden=[6], rate=[2.0, 3.0, 5.0], seed=SEEDS, **_PLAIN, most=[100_000]),
)
_SIX = tuple(
    {"hidden": 6, "rate": 0.1, "seed": seed, "dtype": dtype, "steps": 2_000_000, "per_decade": 50.0, "stop_at": 1.0}
    for seed, dtype in ((0, "float32"), (0, "float64"), (1, "float32"))
)
_ONE_LINE = (
    *grid(hidden=[1, 2, 3, 4, 5], rate=[0.1], seed=SEEDS, activation=["sigmoid"], init=["glorot_uniform"]),
    *(
        point
        for activation, init in (("tanh", "standard"), ("tanh", "glorot_uniform"), ("relu", "he_normal"))
        for point in grid(
            hidden=[3, 5, 10, 20], rate=[0.1], seed=SEEDS, activation=[activation], init=[init], most=[40_000]
        )
    ),
)
_ESCAPE_ON_GPU = grid(platform=["gpu"], hidden=[1, 2, 3, 4, 5], seed=SEEDS)
_SMOOTH = grid(hidden=[2, 3, 4, 5], rate=[0.5], seed=SEEDS, **_PLAIN, batch=[512])
_MOVES = (
    *grid(hidden=[2, 3, 4, 5, 6], rate=[0.1], seed=SEEDS),
    *grid(hidden=[4], rate=[1.0, 3.0], seed=SEEDS, steps=[1000]),
)
WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
WIDER = (*WIDTHS, 4096, 8192)  # for a device that has the memory
_STEPS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "cpu": grid(platform=["cpu"], width=WIDTHS, dtype=["float32", "float64"]),
    "gpu": (
        *grid(platform=["gpu"], width=WIDER, dtype=["float32"], products=["highest"]),
        *grid(platform=["gpu"], width=WIDER[4:], dtype=["float32"], products=["default"]),
        *grid(platform=["gpu"], width=WIDTHS, dtype=["float64"], products=["highest"]),
    ),
    "host": grid(platform=["cpu"], width=WIDTHS, dtype=["float32"]),
}
_WHERE = {"cpu": "", "gpu": ", on a GPU", "host": ", on the processor beside the GPU"}
_ON_GPU: tuple[Mapping[str, Any], ...] = tuple(
    {"platform": "gpu", "dtype": dtype, "products": products}
    for dtype, products in (
        ("float32", "highest"),
        ("float64", "highest"),
        ("float32", "default"),
        ("float32", "tensorfloat32"),
        ("float32", "bfloat16"),
    )
)
_NETS: tuple[Mapping[str, Any], ...] = (
    *grid(net=[1, 2, 3, 4, 5], scheme=["their own"], seed=SEEDS),
    *grid(net=[4, 5], scheme=["sigmoid, standard"], seed=SEEDS),
)

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "updates_to_escape",
        "updates that plain descent needs for a mean loss below 1 on digits, by depth and rate",
        updates_to_escape,
        (*_FIXED, *_RATES, *_ONE_LINE),
        check=_FIXED[0],
    ),
    Experiment(
        "updates_to_escape_gpu",
        "updates that plain descent needs for a mean loss below 1 on digits, by depth, on a GPU",
        escape_on,
        _ESCAPE_ON_GPU,
        check=_ESCAPE_ON_GPU[0],
        cheaper={"platform": "cpu"},
    ),
    Experiment(
        "smooth_descent",
        "the same on minibatches of 512 at a rate of 0.5: a third of the noise",
        updates_to_escape,
        _SMOOTH,
        check=_SMOOTH[0],
    ),
    Experiment(
        "six_layers",
        "six sigmoid layers until their mean loss is below 1, two million updates at most, in two precisions",
        first_layer_moves,
        _SIX,
        check=_SIX[0],
        cheaper={"steps": 100},
    ),
    Experiment(
        "first_layer_moves",
        "how far plain descent moves the first layer's weights of sigmoid networks",
        first_layer_moves,
        _MOVES,
        check=_MOVES[0],
        cheaper={"steps": 100},
    ),
    *(
        Experiment(
            f"step_seconds_{place}",
            f"seconds per update of five sigmoid layers, by width{_WHERE[place]}",
            step_seconds,
            points,
            check=points[0],
            cheaper={"rounds": 0},
        )
        for place, points in _STEPS.items()
    ),
    Experiment(
        "profile_elsewhere",
        "profiles of the same random networks, computed in five ways",
        profile_elsewhere,
        grid(setting=list(SETTINGS)),
        check={"setting": "float32"},
        cheaper={"activations": ["sigmoid"]},
    ),
    Experiment(
        "profile_gpu",
        "profiles of the same random networks, computed in five ways on a GPU",
        profile_on,
        _ON_GPU,
        check=_ON_GPU[0],
        cheaper={"platform": "cpu", "activations": ["sigmoid"], "draws": False},
    ),
    Experiment(
        "record_nets",
        "gradients at the layers of Ciresan et al.'s networks before training",
        record_net,
        _NETS,
        check=_NETS[0],
    ),
)
