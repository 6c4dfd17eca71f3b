"""The tests' referee: networks unrolled in plain NumPy float64, with every layer's Jacobian as a dense matrix.

Nothing here is fast or shared with the package but the activations' own functions, differentiated by autodiff.
"""

from functools import cache, partial
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from gradcourse.nn.blocks import Residual
from gradcourse.nn.convolutions import AvgPool, Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten


def drawn(network, seed=0, *, batch=3, gain=1.0, bias=0.2, positive=False):
    """Returns random weights of variance `gain**2 / fan_in`, random biases, and a batch for `network`, in float32."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(batch, *network.input_shape))

    def one(leaf):
        _, *fan_in, _ = leaf.shape
        scale = gain / np.sqrt(np.prod(fan_in)) if fan_in else bias
        values = scale * generator.normal(size=leaf.shape)
        return jnp.asarray(np.abs(values) if positive and fan_in else values, jnp.float32)

    shapes = jax.eval_shape(lambda: network.init(key=jax.random.key(0)))
    return jax.tree.map(one, shapes), jnp.asarray(x, jnp.float32)


def unrolled(network, params):
    """Returns one `(layer, its parameters, its input shape)` per layer."""
    return [
        (stage.layer, jax.tree.map(lambda leaf: np.asarray(leaf[index], np.float64), stage_params), stage.shape)  # noqa: B023
        for stage, stage_params in zip(network.stages, params, strict=True)
        for index in range(stage.repeats)
    ]


def convolution_matrix(kernel, shape, stride, padding):
    """Returns the matrix, `(output entry, input entry)`, of a convolution of images of `shape`."""
    size, channels = kernel.shape[0], kernel.shape[3]
    if padding == "VALID":
        out, low = [(side - size) // stride + 1 for side in shape[:2]], [0, 0]
    else:
        out = [-(-side // stride) for side in shape[:2]]
        low = [max((o - 1) * stride + size - side, 0) // 2 for o, side in zip(out, shape[:2], strict=True)]
    matrix = np.zeros((*out, channels, *shape))
    for row, column, a, b in product(range(out[0]), range(out[1]), range(size), range(size)):
        y, x = row * stride + a - low[0], column * stride + b - low[1]
        if padding == "CIRCULAR":
            y, x = y % shape[0], x % shape[1]
        if 0 <= y < shape[0] and 0 <= x < shape[1]:
            matrix[row, column, :, y, x, :] += kernel[a, b].T
    return matrix.reshape(prod(out) * channels, prod(shape))


def pooling_matrix(layer, h):
    """Returns the matrix of a pooling layer at the image `h`."""
    stride, out = layer.stride, layer.output_shape(h.shape)
    matrix = np.zeros((*out, *h.shape))
    for row, column, channel in product(*map(range, out)):
        window = np.s_[row * stride : row * stride + layer.size, column * stride : column * stride + layer.size]
        if isinstance(layer, AvgPool):
            matrix[row, column, channel][*window, channel] = 1 / layer.size**2
        else:
            y, x = np.unravel_index(np.argmax(h[*window, channel]), (layer.size, layer.size))
            matrix[row, column, channel, row * stride + y, column * stride + x, channel] = 1
    return matrix.reshape(prod(out), h.size)


@cache
def _compiled(activation):
    return jax.jit(jax.vmap(jax.value_and_grad(activation.function)))


def values_and_slopes(activation, s):
    """Returns `f(s)` and `f'(s)` by autodiff; vectors are filled up to a few sizes, so that few are compiled."""
    with jax.enable_x64(True):
        filled = np.pad(s, (0, -len(s) % 64))
        return tuple(np.asarray(part)[: len(s)] for part in _compiled(activation)(filled))


def differentiate(layer, params, h):
    """Returns the output, the linear map's matrix and the slopes, all flat, of one layer at one input `h`."""
    if isinstance(layer, Flatten):
        return h.ravel(), np.eye(h.size), np.ones(h.size)
    if isinstance(layer, AvgPool | MaxPool):
        matrix = pooling_matrix(layer, h)
        return matrix @ h.ravel(), matrix, np.ones(len(matrix))
    if isinstance(layer, Residual):
        value, product, shape = h, np.eye(h.size), h.shape
        for index, inner in enumerate(layer.body):
            value, matrix, slopes = differentiate(inner, params[str(index)], value.reshape(shape))
            shape = inner.output_shape(shape)
            product = slopes[:, None] * (matrix @ product)
        return h.ravel() + layer.scale * value, np.eye(h.size) + layer.scale * product, np.ones(h.size)
    if isinstance(layer, Dense):
        matrix = params["weight"].T
    elif isinstance(layer, Conv):
        matrix = convolution_matrix(params["weight"], h.shape, layer.stride, layer.padding)
    s = matrix @ h.ravel() + np.tile(params["bias"], len(matrix) // len(params["bias"]))
    values, slopes = values_and_slopes(layer.activation, s)
    return values, matrix, slopes


@partial(jax.jit, static_argnums=0)
def pulled(layer, params, h, v):
    """Returns the transposed Jacobian of a layer at the batch `h` times each `v`, by autodiff through `apply`."""
    _, vjp = jax.vjp(lambda h: layer.apply(params, h), h)
    return jax.vmap(lambda one: vjp(one)[0])(v)


@partial(jax.jit, static_argnums=0)
def pushed(layer, params, h, v):
    """Returns the Jacobian of a layer at the batch `h` times each `v`, by autodiff through `apply`."""
    return jax.vmap(lambda one: jax.jvp(lambda h: layer.apply(params, h), (h,), (one,))[1])(v)


def jacobians(network, params, x):
    """Returns per example the layers' `(matrix, slopes)` pairs: `J_l = diag(slopes) @ matrix`."""
    examples = []
    for h in np.asarray(x, np.float64):
        pairs = []
        for layer, layer_params, shape in unrolled(network, params):
            h, matrix, slopes = differentiate(layer, layer_params, h.reshape(shape))
            pairs.append((matrix, slopes))
        examples.append(pairs)
    return examples


def log10_norms(network, params, x):
    """Returns the log10 Frobenius norms, `(batch, layer)`, by name: backward, forward, layer and middle.

    `middle` is the output's Jacobian with respect to each pre-activation. Products are rescaled as they grow.
    """
    result = {"backward": [], "forward": [], "layer": [], "middle": []}
    for pairs in jacobians(network, params, x):
        layer = [np.linalg.norm(slopes[:, None] * matrix) for matrix, slopes in pairs]
        backward, middle = [], []
        v, scale = np.eye(len(pairs[-1][1])), 0.0
        for matrix, slopes in reversed(pairs):
            v = v * slopes
            middle.append(scale + np.log10(np.linalg.norm(v)))
            v = v @ matrix
            v, scale = v / np.linalg.norm(v), scale + np.log10(np.linalg.norm(v))
            backward.append(scale)
        forward = []
        v, scale = np.eye(pairs[0][0].shape[1]), 0.0
        for matrix, slopes in pairs:
            v = slopes[:, None] * (matrix @ v)
            v, scale = v / np.linalg.norm(v), scale + np.log10(np.linalg.norm(v))
            forward.append(scale)
        for name, values in zip(result, (backward[::-1], forward, np.log10(layer), middle[::-1]), strict=True):
            result[name].append(values)
    return {name: np.array(values) for name, values in result.items()}


def root_mean_square(log_norms):
    """Returns the log10 root mean square over the first axis."""
    peak = log_norms.max(axis=0)
    return peak + np.log10((10 ** (2 * (log_norms - peak))).mean(axis=0)) / 2


def in_float64(tree):
    """Returns the arrays of `tree` in float64; call it under `jax.enable_x64`."""
    return jax.tree.map(lambda leaf: leaf.astype("float64"), tree)
