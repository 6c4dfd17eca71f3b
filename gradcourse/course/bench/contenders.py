"""What the sweep is compared with: the same measurement as others would write it, and the least that it can cost.

Every function here makes a program of no arguments, ready to be timed. Those that measure return the squared norms
of the Jacobians with respect to every layer's input, `(layer, batch)`, so that tests can check that all contenders
measure the same thing. PyTorch and matfree are imported where they are needed; neither is a dependency.

>>> from gradcourse.nn.network import mlp
>>> network = mlp(8, [8] * 3, 2, activation="tanh")
>>> params, x = network.init(key=jax.random.key(0)), jnp.ones((5, 8))
>>> plain_sweep(network, params, x)().shape
(4, 5)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gradcourse._logdomain import dot
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.layers import Layer
from gradcourse.nn.network import Network, Params

__all__ = [
    "bare_products",
    "convolutions_as_products",
    "jax_jacrev_per_layer",
    "matfree_frobenius_norm",
    "plain_sweep",
    "torch_batched",
    "torch_jacrev_per_layer",
]

Program = Callable[[], Any]
Norms = Callable[[], Float[Any, "layer batch"]]


def bare_products(network: Network, params: Params, x: Float[Array, "batch width"]) -> Program:
    """Returns the matrix products of the sweep through a dense network and nothing else: the least it can cost."""
    outputs = network.output_shape[0]

    @jax.jit
    def run(params: Params, x: Array) -> tuple[Array, Array]:
        h, v = x, jnp.ones((outputs * x.shape[0], outputs), x.dtype)
        weights = [p["weight"] for p in params]
        h, _ = network.scan(lambda _, weight, h: (dot(h, weight), None), weights, h)
        v, _ = network.scan_back(lambda _, weight, v: (dot(v, weight.T), None), weights, v)
        return h, v

    return partial(run, params, x)


def plain_sweep(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> Norms:
    """Returns the sweep without the log domain: where norms leave the range of float32, it is wrong."""

    @jax.jit
    def run(params: Params, x: Array) -> Array:
        def step(layer: Layer, one: Any, v: Array) -> tuple[Array, Array]:
            p, point = one
            v = point.pull(p, point.times_slope(v))
            return v, jnp.sum(jnp.square(v), axis=(0, *range(2, v.ndim)))

        output, points = network.scan(lambda layer, p, h: layer.linearize(p, h), params, x)
        units = jnp.eye(output[0].size, dtype=x.dtype).reshape(-1, 1, *output.shape[1:])
        v = jnp.broadcast_to(units, (len(units), *output.shape))
        return network.scan_back(step, list(zip(params, points, strict=True)), v)[1]

    return partial(run, params, x)


def jax_jacrev_per_layer(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> Norms:
    """Returns one `jax.jacrev` per layer, of the layers from there on: a program that grows with the depth squared."""
    layers = [partial(layer.apply, p) for layer, p in network.layers(params)]

    @jax.jit
    def run(x: Array) -> Array:
        h, norms = x, []
        for index, layer in enumerate(layers):
            jacobian = jax.vmap(jax.jacrev(lambda h, rest=layers[index:]: _through(rest, h[None])[0]))(h)
            norms.append(jnp.sum(jnp.square(jacobian).reshape(len(x), -1), axis=1))
            h = layer(h)
        return jnp.stack(norms)

    return partial(run, x)


def convolutions_as_products(
    network: Network, params: Params, x: Float[Array, "batch height width channel"]
) -> Program:
    """Returns a forward pass in which every convolution is one matrix product with the patches of its input."""

    @jax.jit
    def run(params: Params, x: Array) -> Array:
        def step(layer: Layer, p: Any, h: Array) -> tuple[Array, None]:
            if not isinstance(layer, Conv) or layer.padding == "CIRCULAR":
                return layer.apply(p, h), None
            window, strides = (layer.kernel_size,) * 2, (layer.stride,) * 2
            patches = lax.conv_general_dilated_patches(
                h, window, strides, layer.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            weight = jnp.moveaxis(p["weight"], 2, 0).reshape(-1, layer.channels)  # patches come channel by channel
            s = dot(patches.reshape(-1, weight.shape[0]), weight).reshape(*patches.shape[:3], -1)
            return layer.activation(s + jnp.broadcast_to(p["bias"], s.shape)), None

        return network.scan(step, params, x)[0]

    return partial(run, params, x)


def matfree_frobenius_norm(
    network: Network, params: Params, x: Float[Array, " *shape"], *, samples: int
) -> Callable[[Any], tuple[Array, Array]]:
    """Returns matfree's estimate, from a key, of the Jacobian's squared norm at one example, and its error."""
    from matfree import stochtrace

    estimate = stochtrace.estimator_monte_carlo_mean_and_sem(
        stochtrace.monte_carlo_frobeniusnorm_squared(), stochtrace.sampler_normal(x, num=samples)
    )

    @jax.jit
    def run(params: Params, x: Array, key: Any) -> tuple[Array, Array]:
        _, push = jax.linearize(lambda x: network.apply(params, x[None])[0], x)
        return estimate(push, key)

    return partial(run, params, x)


def torch_batched(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> Norms:
    """Returns PyTorch's best: one `torch.autograd.grad` on all activations, `is_grads_batched=True`."""
    import torch

    layers, x_torch = _torch_layers(network, params), torch.from_numpy(np.array(x))
    outputs = network.output_shape[0]
    cotangents = torch.eye(outputs)[:, None].expand(outputs, len(x), outputs)

    def run() -> Any:
        h, inputs = x_torch.clone().requires_grad_(), []
        for layer in layers:
            inputs.append(h)
            h = layer(h)
        gradients = torch.autograd.grad(h, inputs, cotangents, is_grads_batched=True)
        return torch.stack([gradient.square().sum(dim=(0, 2)) for gradient in gradients])

    return run


def torch_jacrev_per_layer(network: Network, params: Params, x: Float[Array, "batch *shape"]) -> Norms:
    """Returns one `torch.func.jacrev` per layer, of the layers from there on."""
    import torch

    layers, x_torch = _torch_layers(network, params), torch.from_numpy(np.array(x))

    def run() -> Any:
        h, norms = x_torch, []
        for index, layer in enumerate(layers):
            jacobian = torch.func.vmap(torch.func.jacrev(partial(_through, layers[index:])))(h)
            norms.append(jacobian.square().sum(dim=(1, 2)))
            h = layer(h)
        return torch.stack(norms)

    return run


def _torch_layers(network: Network, params: Params) -> list[Callable[[Any], Any]]:
    """The layers of a dense network in PyTorch."""
    import torch

    functions = {"identity": lambda s: s, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}

    def made(layer: Any, p: Any) -> Callable[[Any], Any]:
        weight, bias = (torch.from_numpy(np.array(p[name])) for name in ("weight", "bias"))
        function = functions[layer.activation.name]
        return lambda h: function(torch.addmm(bias, h, weight) if h.ndim == 2 else h @ weight + bias)

    return [made(layer, p) for layer, p in network.layers(params)]


def _through(layers: list[Callable[[Any], Any]], h: Any) -> Any:
    for layer in layers:
        h = layer(h)
    return h
