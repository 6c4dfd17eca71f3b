"""Chapter 10: sigmoid networks trained in short formats, weights kept in them, and a device's own short products."""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from gradcourse._checks import known_name
from gradcourse._logdomain import dot
from gradcourse.course.experiments._common import experiment, fresh
from gradcourse.course.provenance import check_platform
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.gradients import activation_gradient_norms
from gradcourse.nn.layers import Dense
from gradcourse.nn.network import Network, mlp
from gradcourse.training.data import digits
from gradcourse.training.formats import vanishing_point
from gradcourse.training.mixed_precision import Descent, Dynamic, train_in
from gradcourse.training.precision import gradient_in

__all__ = ["AWAY", "DEPTHS", "EXPERIMENTS", "KEPT", "ON_DEVICE", "WAYS", "matrix_product", "with_products"]

SEEDS = range(5)
DEPTHS = range(4, 15)
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "float16, scaled": {"dtype": "float16", "loss_scale": 2.0**15},
    "float16, dynamic": {"dtype": "float16", "loss_scale": Dynamic(2.0**15, patience=100)},
}
KEPT: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16, kept in float32": {"dtype": "bfloat16"},
    "bfloat16, rounded to nearest": {"dtype": "bfloat16", "keep": "nearest"},
    "bfloat16, rounded stochastically": {"dtype": "bfloat16", "keep": "stochastic"},
}


def _descended(network: Network, optimizer: Any, rate: float, seed: int, **settings: Any) -> Descent:
    """A run of `train_in` from a fresh draw, watched on the first 500 training images."""
    (params, key), data = fresh(network, seed), digits()
    settings |= {"learning_rate": rate, "watch": (data.x_train[:500], data.y_train[:500]), "key": key}
    return train_in(network, params, data, optimizer, **settings)


def sign_descent(hidden: int, way: str, seed: int, steps: int = 2000, every: int = 100) -> dict[str, Any]:
    """Returns the `loss` of so many sigmoid layers of 64, standard weights, every `every` steps of sign descent.

    Each weight moves by 0.001 per step, up or down as its gradient's sign says, and not where that is 0. `scale` and
    `skipped` are the loss scale at the end and the number of steps left out.
    """
    network = mlp(64, [64] * hidden, 10, activation="sigmoid", init="standard")
    run = _descended(network, optax.sign_sgd, 1e-3, seed, steps=steps, every=every, **WAYS[way])
    return {"loss": run.loss, "scale": run.scale[-1], "skipped": run.skipped[-1]}


def kept_weights(way: str, seed: int, steps: int = 3000, every: int = 300) -> dict[str, Any]:
    """Returns `loss` and `accuracy` of five tanh layers of 64, Glorot's weights, in plain descent at 0.003."""
    network = mlp(64, [64] * 5, 10, activation="tanh", init="glorot_uniform")
    run = _descended(network, optax.sgd, 3e-3, seed, steps=steps, every=every, **KEPT[way])
    return {"loss": run.loss, "accuracy": run.accuracy}


# ---- Products as a device computes them

ON_DEVICE: dict[str, Any] = {
    "highest": lax.Precision.HIGHEST,
    "default": lax.Precision.DEFAULT,
    "tensorfloat32": lax.Precision.HIGH,
    "bfloat16": None,
}
AWAY = "tensorfloat32, ties away"  # an emulation, for any device
NETWORKS = {"sigmoid": "standard", "relu": "he_normal", "gelu": "he_normal"}  # activation and initialisation


def matrix_product(a: Float[Array, "rows inner"], b: Float[Array, "inner columns"], products: str) -> Array:
    """Returns `a @ b` as this device computes it when asked for such `products`.

    `"highest"` is the full precision of the format and `"default"` what JAX takes if nobody asks. `"tensorfloat32"`
    lets an NVIDIA device round float32 factors to that format. For `"bfloat16"` they are rounded here; the device
    multiplies numbers of that format and adds up in the format of `a`. `"tensorfloat32, ties away"` is an emulation of
    the former: both factors are rounded to the nearest such number, away from 0 where two are as near.

    >>> matrix_product(jnp.ones((2, 3)), jnp.ones((3, 1)), "bfloat16").tolist()
    [[3.0], [3.0]]
    """
    if known_name("products", products, (*ON_DEVICE, AWAY)) == AWAY:
        return dot(_ties_away(a), _ties_away(b))
    if products == "bfloat16":
        return jnp.matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=a.dtype)
    return jnp.matmul(a, b, precision=ON_DEVICE[products])


def _ties_away(values: Array) -> Array:
    """Float32 numbers with ten digits after the leading one: half a unit is added to their size, then bits are cut."""
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    return lax.bitcast_convert_type((bits + jnp.uint32(1 << 12)) & jnp.uint32(0xFFFFE000), jnp.float32)


@dataclass(frozen=True, kw_only=True)
class _DenseOnDevice(Dense):
    products: str

    def linear(self, weight: Array, h: Array) -> Array:
        return matrix_product(h, weight, self.products)

    def transpose(self, weight: Array, v: Array, shape: tuple[int, ...]) -> Array:
        return matrix_product(v, weight.T, self.products)


def with_products(network: Network, products: str) -> Network:
    """Returns the dense network with all `products`, forward and back, computed as `matrix_product` says.

    `gradcourse.training.precision.with_reduced_products` emulates on any device what this asks of one that can do it.
    """
    known_name("products", products, (*ON_DEVICE, AWAY))
    layers = [stage.layer for stage in network.stages]
    if not all(isinstance(layer, Dense) for layer in layers):
        raise TypeError(f"network has layers of kind {sorted({layer.kind for layer in layers})}; accepted is 'dense'.")
    settings = [{one.name: getattr(layer, one.name) for one in fields(Dense)} for layer in layers]
    on_device = [_DenseOnDevice(**its, products=products) for its in settings]
    return Network(tuple(replace(stage, layer=layer) for stage, layer in zip(network.stages, on_device, strict=True)))


def product_error(platform: str, products: str, size: int) -> dict[str, Any]:
    """Returns how far a product of two Gaussian matrices of `size` by `size` is off, against float64.

    `"entry"` is the root mean square error of an entry, relative to that of the entries; `"norm"` the relative error
    of the whole product's norm; `"factor"` that of the multiple of the exact product which is next to it, negative
    where a device cuts digits off instead of rounding. Raises `ValueError` on another platform.
    """
    check_platform(platform)
    a, b = jax.random.normal(jax.random.key(3), (2, size, size))
    found = np.asarray(jax.jit(matrix_product, static_argnums=2)(a, b, products), np.float64)
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    return {
        "entry": np.linalg.norm(found - exact) / np.linalg.norm(exact),
        "norm": np.linalg.norm(found) / np.linalg.norm(exact) - 1,
        "factor": np.sum((found - exact) * exact) / np.sum(exact**2),
    }


def products_on(platform: str, activation: str, products: str, *, seeds: int = 5) -> dict[str, Any]:
    """Returns the relative `"error"` of the gradient's norm at each of sixty hidden layers' pre-activations.

    That is the natural logarithm of the norm that such `products` give over the norm that float64 gives on the same
    device, `(seed, layer)`: the networks, seeds and images of chapter 10. Raises `ValueError` on another platform.
    """
    check_platform(platform)
    data = digits()
    network = mlp(64, [64] * 60, 10, activation=activation, init=NETWORKS[activation])
    rounded = with_products(network, products)
    x, y = np.asarray(data.x_train[:32]), np.asarray(data.y_train[:32])
    errors = []
    for key in jax.random.split(jax.random.key(0), seeds):
        params = network.init(key=key)
        found = activation_gradient_norms(rounded, params, jnp.asarray(x), y, at="preactivation")
        with jax.enable_x64(True):
            params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), "float64"), params)
            exact = activation_gradient_norms(network, params, jnp.asarray(x, "float64"), y, at="preactivation")
        errors.append(np.log(10) * (found.log10_norm - exact.log10_norm)[:60])
    return {"error": errors}


def reach_on(platform: str, dtype: str, *, seeds: int = 5) -> dict[str, Any]:
    """Returns where products in a format end on this platform, and which gradients are 0 there.

    `"zero_below"` is what `training.formats.vanishing_point` finds; `"zeros"`, `(seed, layer)`, the share of exact
    zeros in the bias gradients of sixty sigmoid layers: the networks, seeds and images of chapter 10. Raises
    `ValueError` on another platform.
    """
    check_platform(platform)
    found: dict[str, Any] = {"zero_below": vanishing_point(dtype)}
    if seeds:
        data, network = digits(), mlp(64, [64] * 60, 10, activation="sigmoid", init="standard")
        draws = [network.init(key=key) for key in jax.random.split(jax.random.key(0), seeds)]
        gradient = partial(gradient_in, x=data.x_train[:32], y=data.y_train[:32], dtype=dtype, part="bias")
        found["zeros"] = [gradient(network, params).zero[:60] for params in draws]
    return found


EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        sign_descent,
        "Sigmoid networks of several depths, sign descent on digits, gradients in three formats",
        grid(hidden=DEPTHS, way=WAYS, seed=SEEDS),
        cheaper={"steps": 100},
    ),
    experiment(
        kept_weights,
        "Five tanh layers on digits, plain descent, weights kept in two formats",
        grid(way=KEPT, seed=SEEDS),
        cheaper={"steps": 300},
    ),
    experiment(
        product_error,
        "errors of a matrix product in four precisions, on a GPU",
        grid(platform=["gpu"], products=ON_DEVICE, size=[64, 256, 1024]),
        name="product_error_gpu",
        check={"products": "bfloat16"},
        cheaper={"platform": "cpu"},
    ),
    experiment(
        products_on,
        "errors of gradient norms through sixty layers, products in four precisions, on a GPU",
        grid(platform=["gpu"], activation=NETWORKS, products=ON_DEVICE),
        name="products_gpu",
        check={"products": "bfloat16"},
        cheaper={"platform": "cpu", "seeds": 1},
    ),
    experiment(
        reach_on,
        "where three formats end, and sixty sigmoid layers' gradients in them, on a GPU",
        grid(platform=["gpu"], dtype=["float32", "bfloat16", "float16"]),
        name="reach_gpu",
        check={"dtype": "float16"},
        cheaper={"platform": "cpu", "seeds": 0},
    ),
)
