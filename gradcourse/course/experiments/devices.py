"""Chapter 5: what a device changes: the seconds per update against width, and the profiles of the same networks."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from gradcourse.course.experiments._common import experiment
from gradcourse.course.experiments.precision import matrix_product, with_products
from gradcourse.course.experiments.speed import updated
from gradcourse.course.provenance import check_platform, seconds
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.network import Network, mlp
from gradcourse.training.data import digits

__all__ = ["EXPERIMENTS", "SETTINGS", "WIDER", "profiles_here", "step_operations", "step_seconds"]

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
    return found | _ceilings(LARGE[platform], products, rounds)


def _ceilings(size: int, products: str, rounds: int) -> dict[str, float]:
    """What the device does at most per second: operations of a product of matrices, bytes of a vector negated."""

    def fastest(function: Callable[..., Any], *arguments: Array) -> float:
        compiled = jax.jit(function).lower(*arguments).compile()
        return min(seconds(partial(compiled, *arguments)) for _ in range(rounds + 1))

    a, b = jax.random.normal(jax.random.key(0), (2, size, size))  # a device can be faster on zeros and ones
    peak = 2 * size**3 / fastest(partial(matrix_product, products=products), a, b)
    vector = jax.random.normal(jax.random.key(0), (16 * size**2,))
    return {"peak": peak, "bandwidth": 8 * vector.size / fastest(jnp.negative, vector)}


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


# ---- Profiles of the same random networks

ACTIVATIONS = ("sigmoid", "tanh", "relu")
INITS = {"standard": 1.0, "Glorot": sqrt(3), "He": sqrt(6)}  # times the standard weights: right in square layers
DEPTHS = (10, 20)
DRAWS = 10  # random networks of each kind
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, two devices": {"devices": 2},
    "float32, old instructions, one thread": {"flags": "--xla_cpu_max_isa=AVX --xla_cpu_multi_thread_eigen=false"},
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
        "import json, sys; from gradcourse.course.experiments.devices import profiles_here; "
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
    x = np.asarray(digits().x_train[:100])
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
    return jax.device_get(network.draws(DRAWS, key=jax.random.key(5)))


@partial(jax.jit, static_argnums=0)
def _profiles(network: Network, params: Any, x: Array) -> Any:
    return jax.vmap(lambda p: backward_jacobian_norms(network, p, x))(params)


EXPERIMENTS: tuple[Experiment, ...] = (
    *(
        experiment(
            step_seconds,
            f"seconds per update of five sigmoid layers, by width{where}",
            points,
            name=f"step_seconds_{place}",
            cheaper={"rounds": 0},
        )
        for place, (where, points) in _STEPS.items()
    ),
    experiment(
        profile_elsewhere,
        "profiles of the same random networks, computed in five ways",
        grid(setting=SETTINGS),
        cheaper={"activations": ["sigmoid"]},
    ),
    experiment(
        profile_on,
        "profiles of the same random networks, computed in five ways on a GPU",
        (
            *grid(platform=["gpu"], dtype=["float32", "float64"], products=["highest"]),
            *grid(platform=["gpu"], dtype=["float32"], products=["default", "tensorfloat32", "bfloat16"]),
        ),
        name="profile_gpu",
        cheaper={"platform": "cpu", "activations": ["sigmoid"], "draws": False},
    ),
)
