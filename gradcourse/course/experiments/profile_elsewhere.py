"""Chapter 5: the profiles of the same random networks, computed in several ways on a processor and on a GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from gradcourse.course.experiments._common import experiment
from gradcourse.course.experiments.precision import with_products
from gradcourse.course.provenance import check_platform
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.network import Network, mlp
from gradcourse.training.data import digits

__all__ = ["EXPERIMENTS", "SETTINGS", "profiles_here"]

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
        "import json, sys; from gradcourse.course.experiments.profile_elsewhere import profiles_here; "
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
