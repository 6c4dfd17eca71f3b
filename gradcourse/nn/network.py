"""Networks: a sequence of stages, where a stage is one layer repeated and scanned.

A stage of ten thousand equal layers is compiled once, with its parameters stacked along a leading `depth` axis.

>>> network = mlp(64, [100] * 50, 10, activation="sigmoid", init="standard")
>>> network.depth, len(network.stages)
(51, 3)
>>> params = network.init(key=jax.random.key(0))
>>> params[1]["weight"].shape  # the 49 equal layers in one stage
(49, 100, 100)
>>> network.apply(params, jnp.zeros((5, 64))).shape
(5, 10)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import groupby, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import known_false, measurable_input, positive_integer
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.initializers import Initializer
from gradcourse.nn.layers import Dense, Flatten, Layer, Shape, wait_for

__all__ = ["Network", "Params", "Stage", "cnn", "joined", "mlp", "sequential"]

Params = tuple[dict[str, Any], ...]
# From a layer, its part of the trees scanned over and the carry: the next carry and what is kept of it.
Step = Callable[[Layer, Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Stage:
    """`repeats` equal layers in a row, each taking an input of `shape`."""

    layer: Layer
    repeats: int
    shape: Shape

    def scan(self, step: Callable[..., Any], carry: Any, xs: Any, *, reverse: bool = False) -> tuple[Any, Any]:
        """Returns `lax.scan` of `step` over the layers; a single one, which may change the carry's shape, is called."""
        if self.repeats > 1:
            return lax.scan(step, carry, xs, length=self.repeats, reverse=reverse)
        carry, result = step(carry, jax.tree.map(lambda leaf: leaf[0], xs))
        return carry, jax.tree.map(lambda leaf: leaf[None], result)


@dataclass(frozen=True)
class Network:
    """Stages in order; layer 0 is next to the input. Make one with `mlp`, `cnn` or `sequential`."""

    stages: tuple[Stage, ...]

    @property
    def depth(self) -> int:
        """The number of layers, the readout included."""
        return sum(stage.repeats for stage in self.stages)

    @property
    def input_shape(self) -> Shape:
        """The shape of one input, without the batch axis."""
        return self.stages[0].shape

    @property
    def output_shape(self) -> Shape:
        """The shape of one output, without the batch axis."""
        return self.stages[-1].layer.output_shape(self.stages[-1].shape)

    @property
    def couples_examples(self) -> bool:
        """Whether an example's output depends on the others of its batch, as in batch normalisation."""
        return any(stage.layer.couples_examples for stage in self.stages)

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """One name per layer, such as `"0 dense"`."""
        kinds = (stage.layer.kind for stage in self.stages for _ in range(stage.repeats))
        return tuple(f"{index} {kind}" for index, kind in enumerate(kinds))

    def init(self, *, key: PRNGKeyArray) -> Params:
        """Returns fresh parameters: per stage a dictionary of arrays with a leading axis `repeats`."""
        params: list[dict[str, Any]] = []
        for stage, stage_key in zip(self.stages, jax.random.split(key, len(self.stages)), strict=True):
            if stage.layer.draws_by_qr:
                stage_key = wait_for(params, stage_key)
            init = jax.vmap(lambda one, stage=stage: stage.layer.init(stage.shape, key=one))
            params.append(init(jax.random.split(stage_key, stage.repeats)))
        return tuple(params)

    def draws(self, count: int, *, key: PRNGKeyArray) -> Params:
        """Returns the parameters of `count` independent draws, along a new first axis."""
        # One by one: that program is compiled once for all of them, in a third of the time of a batched one.
        keys = jax.random.split(key, positive_integer("count", count))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(self.init(key=one) for one in keys))

    def layers(self, params: Params) -> list[tuple[Layer, dict[str, Any]]]:
        """Returns every layer with its own parameters, layer 0 first.

        >>> network = mlp(3, [5, 5], 2)
        >>> [p["weight"].shape for _, p in network.layers(network.init(key=jax.random.key(0)))]
        [(3, 5), (5, 5), (5, 2)]
        """
        return [
            (stage.layer, jax.tree.map(lambda leaf, index=index: leaf[index], p))
            for stage, p in zip(self.stages, params, strict=True)
            for index in range(stage.repeats)
        ]

    @partial(jax.jit, static_argnums=0)
    def apply(self, params: Params, x: Float[Array, "batch *shape"]) -> Float[Array, "batch *output"]:
        """Returns the network's output for a batch."""
        return self.scan(lambda layer, p, h: (layer.apply(p, h), None), params, x)[0]

    def scan(self, step: Step, trees: Sequence[Any], carry: Any) -> tuple[Any, list[Any]]:
        """Returns the last carry and, per stage, the stacked second results of `step(layer, one, carry)`.

        `trees` are pytrees, one per stage, whose arrays have the layers in front, such as parameters; `one` is the
        layer's part of them. Results of equal shapes are put together by `joined`.
        """
        return self._scan(step, trees, carry, reverse=False)

    def scan_back(self, step: Step, trees: Sequence[Any], carry: Any) -> tuple[Any, Any]:
        """Returns the last carry and the second results of `step(layer, one, carry)`, from the last layer to the first.

        `trees` as in `scan`; the results are joined, `(layer, ...)`, with layer 0 in front.
        """
        carry, collected = self._scan(step, trees, carry, reverse=True)
        return carry, joined(collected[::-1])

    def _scan(self, step: Step, trees: Sequence[Any], carry: Any, *, reverse: bool) -> tuple[Any, list[Any]]:
        def of_layer(layer: Layer, carry: Any, one: Any) -> tuple[Any, Any]:
            return step(layer, one, carry)

        collected, pairs = [], list(zip(self.stages, trees, strict=True))
        for stage, tree in pairs[::-1] if reverse else pairs:
            carry, results = stage.scan(partial(of_layer, stage.layer), carry, tree, reverse=reverse)
            collected.append(results)
        return carry, collected

    def parted(self, tree: Any) -> list[Any]:
        """Returns a pytree whose arrays have all layers in front as one pytree per stage, as `joined` undoes it."""
        ends = [0, *np.cumsum([stage.repeats for stage in self.stages])]
        return [jax.tree.map(lambda leaf, part=slice(*part): leaf[part], tree) for part in pairwise(ends)]

    def check(self, params: Params, x: Any, *, weights: bool = True) -> Float[Array, "batch *shape"]:
        """Returns `x` as an array after checking that `params` and `x` belong to this network and are finite.

        Raises `ValueError` or `TypeError` naming what is wrong, with the layer's name for a parameter that is NaN.
        """
        return measurable_input(x, self.input_shape, self.check_params(params, weights=weights))

    def check_params(self, params: Params, *, weights: bool = True) -> Any:
        """Returns the dtype of `params` after checking that they belong to this network and are finite.

        Without `weights`, the values of most parameters of two axes or more are not looked at: as factors of what is
        measured, those that are not finite make it so too, and to read them all would take a quarter of a sweep.
        """
        expected, given = _parameter_shapes(self), jax.tree.map(jnp.shape, params)
        if given != expected:
            raise ValueError(
                f"params have the shapes {given}; accepted are those of this network, {expected}. "
                "Make them with network.init(key=...)."
            )
        dtype = jnp.result_type(*jax.tree.leaves(params)) if jax.tree.leaves(params) else jnp.result_type(float)
        if dtype not in (jnp.float32, jnp.float64):
            raise TypeError(
                f"params have dtype {dtype}; accepted here are float32 and float64. "
                "Convert them: jax.tree.map(lambda p: p.astype('float32'), params)."
            )
        first = _first_nonfinite_layer(self, weights, params)
        if known_false(first == self.depth):
            raise ValueError(
                f"params of layer {self.layer_names[int(first)]!r} contain NaN or infinity; accepted are finite "
                "numbers. If training produced them, lower its learning rate or look at an earlier checkpoint."
            )
        return dtype

    def measurable(
        self, params: Params, x: Any, *, weights: bool = True
    ) -> tuple[Params, Float[Array, "batch *shape"]]:
        """Returns `params` and `x`, checked as by `check`, in the precision that they are measured in.

        That is float64 or float32: a norm measured in the 8 bits of bfloat16 would be one of rounding, while every
        bfloat16 and float16 parameter is a float32 number too.
        """
        short = jnp.bfloat16, jnp.float16
        params, x = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32) if getattr(leaf, "dtype", None) in short else leaf, (params, x)
        )
        return params, self.check(params, x, weights=weights)

    def check_uncoupled(self) -> None:
        """Raises `ValueError` where examples are coupled, for then none of them has a Jacobian of its own."""
        if self.couples_examples:
            raise ValueError(
                "network has batch normalisation, which couples the examples of a batch, so that none has a Jacobian "
                "of its own; accepted are networks without. Fix its statistics: gradcourse.at_inference(network, "
                "params, x)."
            )


@lru_cache(maxsize=128)
def _parameter_shapes(network: Network) -> Any:
    return jax.tree.map(jnp.shape, jax.eval_shape(lambda: network.init(key=jax.random.key(0))))


@partial(jax.jit, static_argnums=(0, 1))
def _first_nonfinite_layer(network: Network, weights: bool, params: Params) -> Array:
    """The index of the first layer with a parameter that is not finite, or the depth where all are."""
    flags = []
    for stage, stage_params in zip(network.stages, params, strict=True):
        broken = jnp.zeros(stage.repeats, bool)
        for leaf in jax.tree.leaves(stage_params):
            # A kernel that reaches beyond the image has parts that never meet the input.
            inside = all(size <= side for size, side in zip(leaf.shape[1:], stage.shape, strict=False))
            if weights or leaf.ndim < 3 or not inside:
                broken |= ~jnp.isfinite(leaf).reshape(stage.repeats, -1).all(axis=1)
        flags.append(broken)
    return jnp.argmax(jnp.concatenate([*flags, jnp.ones(1, bool)]))


def joined(stages: Sequence[Any]) -> Any:
    """Returns what `Network.scan` has collected per stage as one pytree, whose arrays have all layers in front.

    >>> joined([jnp.zeros((2, 5)), jnp.ones((1, 5))]).shape
    (3, 5)
    """
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *stages)


def sequential(input_shape: int | Shape, layers: Sequence[Layer]) -> Network:
    """Returns the network that applies `layers` in order to inputs of `input_shape`.

    Equal neighbours of equal shape become one scanned stage. Raises `ValueError` where there is no layer or one does
    not fit the shape before it.

    >>> from gradcourse.nn.convolutions import MaxPool
    >>> network = sequential((8, 8, 1), [Conv(4, "relu"), MaxPool(2), Flatten(), Dense(10)])
    >>> network.layer_names
    ('0 conv', '1 max pool', '2 flatten', '3 dense')
    """
    if isinstance(input_shape, int):
        input_shape = (input_shape,)
    shape = tuple(positive_integer("input_shape", size) for size in input_shape)
    if not layers:
        raise ValueError("layers is empty, a network of depth 0; accepted is at least one layer.")
    placed = []
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(
                f"layers[{index}]={layer!r} is a {type(layer).__name__}; accepted are layers such as Dense(10)."
            )
        placed.append((layer, shape))
        shape = layer.output_shape(shape)
    return Network(tuple(Stage(layer, len(list(group)), shape) for (layer, shape), group in groupby(placed)))


def mlp(
    inputs: int,
    widths: Sequence[int],
    outputs: int,
    *,
    activation: Any = "sigmoid",
    init: str | Initializer = "standard",
) -> Network:
    """Returns a dense network: one hidden layer per entry of `widths`, then a linear readout of `outputs`.

    `activation` is a name of `gradcourse.nn.activations` or an elementwise jax function; `init` a name of
    `gradcourse.nn.initializers` or an `Initializer`, used for the readout too. The defaults are the network that the
    question is about. Raises `ValueError` for depth 0, that is, empty `widths`.
    """
    hidden = [Dense(width, activation, initializer=init) for width in _hidden("widths", widths)]
    return sequential((positive_integer("inputs", inputs),), [*hidden, Dense(outputs, initializer=init)])


def cnn(
    input_shape: Shape,
    channels: Sequence[int],
    outputs: int,
    *,
    activation: Any = "sigmoid",
    init: str | Initializer = "standard",
    kernel_size: int = 3,
    padding: str = "SAME",
) -> Network:
    """Returns a convolutional network: one hidden layer per entry of `channels`, flatten, a linear readout.

    For strides, pooling or other readouts, list the layers yourself with `sequential`.

    >>> network = cnn((8, 8, 1), [16] * 20, 10, activation="relu", init="he_normal", padding="CIRCULAR")
    >>> network.depth, network.output_shape
    (22, (10,))
    """
    like = Conv(1, activation, kernel_size=kernel_size, padding=padding, initializer=init)
    hidden = [replace(like, channels=width) for width in _hidden("channels", channels)]
    return sequential(input_shape, [*hidden, Flatten(), Dense(outputs, initializer=init)])


def _hidden(argument: str, widths: Sequence[int]) -> list[int]:
    if isinstance(widths, int):
        raise TypeError(
            f"{argument}={widths!r} is one number; accepted is a sequence with one entry per layer, "
            f"such as [{widths}] * 10."
        )
    if not len(widths):
        raise ValueError(f"{argument}={widths!r} makes a network of depth 0; accepted is at least one hidden layer.")
    return [positive_integer(f"{argument}[{index}]", width) for index, width in enumerate(widths)]
