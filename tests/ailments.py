"""Networks made to have one illness each, and healthy ones, in plain jax: what the rules of a report are tested on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from gradcourse.training.data import digits

BATCH, CLASSES = 32, 10


@dataclass(frozen=True)
class Case:
    """A model with its parameters, and the kinds of finding that its report has to have, no more and no fewer."""

    name: str
    model: Callable[..., Any]
    params: Any
    x: Any
    y: Any
    expected: frozenset[str]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _draw(key: Any, shape: tuple[int, ...], spread: float) -> Any:
    return spread * jax.random.normal(key, shape)


def _batch(images: bool = False) -> tuple[Any, Any]:
    data = digits(images=images)
    return jnp.asarray(data.x_train[:BATCH]), jnp.asarray(data.y_train[:BATCH])


# ---- Dense chains: the hidden layers are one scan, so that depth costs no compilation.


def _dense(params: Any, x: Any, act: Callable[[Any], Any]) -> Any:
    def layer(h: Any, p: Any) -> tuple[Any, None]:
        return act(h @ p["w"] + p["b"][None]), None

    h = act(x @ params["first"]["w"] + params["first"]["b"][None])
    h, _ = lax.scan(layer, h, params["hidden"])
    return h @ params["out"]["w"] + params["out"]["b"][None]


def _dense_params(depth: int, gain: float, width: int = 64, seed: int = 0, bias: float = 0.0, inputs: int = 64) -> Any:
    """Weights of spread `gain / sqrt(width)`."""
    first, hidden, out = jax.random.split(jax.random.key(seed), 3)
    return {
        "first": {"w": _draw(first, (inputs, width), gain / inputs**0.5), "b": jnp.full(width, bias)},
        "hidden": {
            "w": _draw(hidden, (depth - 1, width, width), gain / width**0.5),
            "b": jnp.full((depth - 1, width), bias),
        },
        "out": {"w": _draw(out, (width, CLASSES), 1 / width**0.5), "b": jnp.zeros(CLASSES)},
    }


def dense(name: str, act: Any, depth: int, gain: float, *expected: str, change: Any = None, **more: Any) -> Case:
    arguments = more.pop("arguments", {})
    params = _dense_params(depth, gain, **more)
    params = params if change is None else change(params)
    return Case(f"dense {name}", partial(_dense, act=act), params, *_batch(), frozenset(expected), arguments)


# ---- Convolutions


def _conv(h: Any, p: Any, stride: int = 1) -> Any:
    s = lax.conv_general_dilated(h, p["w"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return s + p["b"][None, None, None]


def _cnn(params: Any, x: Any, act: Callable[[Any], Any], normalise: bool = False) -> Any:
    def layer(h: Any, p: Any) -> tuple[Any, None]:
        s = _conv(h, p)
        if normalise:
            s = (s - s.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(s.var((0, 1, 2), keepdims=True) + 1e-5)
            s = s * p["scale"][None, None, None] + p["shift"][None, None, None]
        return act(s), None

    h = act(_conv(x, params["first"]))
    h, _ = lax.scan(layer, h, params["hidden"])
    h = act(_conv(h, params["down"], stride=2)).mean((1, 2))
    return h @ params["out"]["w"] + params["out"]["b"][None]


def _cnn_params(depth: int, gain: float, channels: int = 8, seed: int = 0, bias: float = 0.0) -> Any:
    keys = jax.random.split(jax.random.key(seed), 4)
    spread = gain / (9 * channels) ** 0.5
    return {
        "first": {"w": _draw(keys[0], (3, 3, 1, channels), gain / 3), "b": jnp.full(channels, bias)},
        "hidden": {
            "w": _draw(keys[1], (depth, 3, 3, channels, channels), spread),
            "b": jnp.full((depth, channels), bias),
            "scale": jnp.ones((depth, channels)),
            "shift": jnp.zeros((depth, channels)),
        },
        "down": {"w": _draw(keys[2], (3, 3, channels, 2 * channels), spread), "b": jnp.full(2 * channels, bias)},
        "out": {"w": _draw(keys[3], (2 * channels, CLASSES), 1 / (2 * channels) ** 0.5), "b": jnp.zeros(CLASSES)},
    }


def conv(name: str, act: Any, depth: int, gain: float, *expected: str, normalise: bool = False, **more: Any) -> Case:
    arguments, change = more.pop("arguments", {}), more.pop("change", None)
    params = _cnn_params(depth, gain, **more)
    if not normalise:
        params["hidden"] = {name: params["hidden"][name] for name in "wb"}
    params = params if change is None else change(params)
    model = partial(_cnn, act=act, normalise=normalise)
    return Case(f"conv {name}", model, params, *_batch(images=True), frozenset(expected), arguments)


# ---- Residual networks: a branch of two layers, h + scale * branch(h).


def _residual(params: Any, x: Any, act: Callable[[Any], Any], normalise: bool, scale: float) -> Any:
    def block(h: Any, p: Any) -> tuple[Any, None]:
        s = h
        if normalise:
            s = (s - s.mean(-1, keepdims=True)) / jnp.sqrt(s.var(-1, keepdims=True) + 1e-5)
        branch = act(s @ p["w1"] + p["b1"][None]) @ p["w2"]
        return h + scale * p["alpha"] * branch, None

    h = x @ params["first"]
    h, _ = lax.scan(block, h, params["blocks"])
    return act(h) @ params["out"]


def residual(
    name: str,
    act: Any,
    depth: int,
    gain: float,
    *expected: str,
    normalise: bool = True,
    scale: float = 1.0,
    alpha: float = 1.0,
    change: Any = None,
    arguments: Mapping[str, Any] | None = None,
) -> Case:
    keys, width = jax.random.split(jax.random.key(0), 4), 64
    params = {
        "first": _draw(keys[0], (64, width), 1 / 8),
        "blocks": {
            "w1": _draw(keys[1], (depth, width, width), gain / width**0.5),
            "b1": jnp.zeros((depth, width)),
            "w2": _draw(keys[2], (depth, width, width), gain / width**0.5),
            "alpha": jnp.full(depth, alpha),
        },
        "out": _draw(keys[3], (width, CLASSES), 1 / width**0.5),
    }
    params = params if change is None else change(params)
    model = partial(_residual, act=act, normalise=normalise, scale=scale)
    return Case(f"residual {name}", model, params, *_batch(), frozenset(expected), arguments or {})


# ---- Attention over the eight rows of an image


def _norm(h: Any, p: Any) -> Any:
    normal = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
    return normal * p["scale"][None, None] + p["shift"][None, None]


def _attention(params: Any, x: Any, where: str, shortcut: bool, act: Callable[[Any], Any]) -> Any:
    def attend(h: Any, p: Any) -> Any:
        heads = [(h @ p[name]).reshape(*h.shape[:2], 4, -1) for name in ("query", "key", "value")]
        mixed = jax.nn.dot_product_attention(*heads)
        return mixed.reshape(h.shape) @ p["mix"]

    def block(h: Any, p: Any) -> tuple[Any, None]:
        for branch, norm in ((attend, p["norm1"]), (_mlp, p["norm2"])):
            inside = branch(_norm(h, norm) if where == "before" else h, p)
            h = h + inside if shortcut else inside
            h = _norm(h, norm) if where == "after" else h
        return h, None

    def _mlp(h: Any, p: Any) -> Any:
        return act(h @ p["up"] + p["up_bias"][None, None]) @ p["down"]

    h = x.reshape(-1, 8, 8) @ params["embed"] + params["position"][None]
    h, _ = lax.scan(block, h, params["blocks"])
    return h.mean(1) @ params["out"]


def attention(
    name: str,
    depth: int,
    gain: float,
    *expected: str,
    norm: str = "before",
    shortcut: bool = True,
    act: Any = jax.nn.gelu,
    change: Any = None,
    arguments: Mapping[str, Any] | None = None,
) -> Case:
    keys, width = jax.random.split(jax.random.key(0), 9), 32

    def matrix(index: int, rows: int, columns: int) -> Any:
        return _draw(keys[index], (depth, rows, columns), gain / rows**0.5)

    normal = {"scale": jnp.ones((depth, width)), "shift": jnp.zeros((depth, width))}
    params = {
        "embed": _draw(keys[0], (8, width), 8**-0.5),
        "position": _draw(keys[1], (8, width), 0.1),
        "blocks": {
            **{part: matrix(2 + index, width, width) for index, part in enumerate(("query", "key", "value", "mix"))},
            "up": matrix(6, width, 4 * width),
            "up_bias": jnp.zeros((depth, 4 * width)),
            "down": matrix(7, 4 * width, width),
            "norm1": normal,
            "norm2": normal,
        },
        "out": _draw(keys[8], (width, CLASSES), width**-0.5),
    }
    params = params if change is None else change(params)
    model = partial(_attention, where=norm, shortcut=shortcut, act=act)
    return Case(f"attention {name}", model, params, *_batch(), frozenset(expected), arguments or {})


# ---- Others: recurrent


def _recurrent(params: Any, x: Any) -> Any:
    def step(h: Any, row: Any) -> tuple[Any, None]:
        return jnp.tanh(row @ params["in"] + h @ params["again"] + params["bias"][None]), None

    rows = jnp.swapaxes(jnp.repeat(x.reshape(-1, 8, 8), 5, axis=1), 0, 1)
    h, _ = lax.scan(step, jnp.zeros((x.shape[0], 32)), rows)
    return h @ params["out"]


def recurrent(name: str, gain: float, *expected: str) -> Case:
    keys = jax.random.split(jax.random.key(0), 3)
    again = jnp.linalg.qr(jax.random.normal(keys[1], (32, 32)))[0] * gain
    params = {"in": _draw(keys[0], (8, 32), 0.02), "again": again, "bias": jnp.zeros(32)}
    params["out"] = _draw(keys[2], (32, CLASSES), 32**-0.5)
    return Case(f"recurrent {name}", _recurrent, params, *_batch(), frozenset(expected))


def at(*path: str, set_to: Any = None, index: int | None = None, times: float | None = None) -> Callable[[Any], Any]:
    """A change of parameters: one leaf, or one layer of it, set to a value or multiplied."""

    def change(params: Any) -> Any:
        params = jax.tree.map(lambda leaf: leaf, params)
        place = params
        for name in path[:-1]:
            place = place[name]
        leaf = place[path[-1]]
        part = leaf if index is None else leaf[index]
        new = part * times if times is not None else jnp.full_like(part, set_to)
        place[path[-1]] = new if index is None else leaf.at[index].set(new)
        return params

    return change


def in_float16(case: Case, *expected: str) -> Case:
    """The same, computed in float16 throughout."""
    half = lambda tree: jax.tree.map(lambda leaf: leaf.astype("float16"), tree)  # noqa: E731
    return replace(
        case,
        name=f"{case.name} in float16",
        params=half(case.params),
        x=half(case.x),
        expected=frozenset(expected),
    )


relu, tanh, sigmoid, gelu = jax.nn.relu, jnp.tanh, jax.nn.sigmoid, jax.nn.gelu
HE = 2**0.5
SLOW = {"optimizer": optax.sgd(1e-9)}
NAN, BIG = float("nan"), float("inf")


def cases() -> list[Case]:
    """Every case: healthy ones first, then the illnesses one by one."""
    return [
        dense("relu, He, 4", relu, 4, HE),
        dense("relu, He, 30", relu, 30, HE),
        dense("relu, He, 10, narrow", relu, 10, HE, width=16),
        dense("tanh, Glorot, 10", tanh, 10, 1.0),
        dense("tanh, critical, 30", tanh, 30, 1.0),
        dense("sigmoid, Glorot, 2", sigmoid, 2, 1.0),
        dense("sigmoid, four times Glorot, 8", sigmoid, 8, 4.0),
        dense("silu, 6", jax.nn.silu, 6, HE),
        dense("leaky, He, 20", jax.nn.leaky_relu, 20, HE),
        dense("relu6, He, 6", jax.nn.relu6, 6, HE),
        in_float16(dense("relu, He, 4", relu, 4, HE)),
        conv("relu, He, 10", relu, 10, HE),
        conv("tanh, Glorot, 10", tanh, 10, 1.0),
        conv("relu, batch norm, 10", relu, 10, HE, normalise=True),
        residual("relu, layer norm, 20", relu, 20, HE),
        residual("tanh, layer norm, 50", tanh, 50, 1.0),
        residual("relu, ReZero, 30", relu, 30, HE, alpha=0.0, normalise=False),
        residual("relu, scaled down, 30", relu, 30, HE, scale=30**-0.5, normalise=False),
        attention("norm before, 8", 8, 1.0),
        attention("norm after, 6", 6, 1.0, norm="after"),
        recurrent("orthogonal, 40 steps", 1.0),
        # Vanishing
        dense("sigmoid, Glorot, 8", sigmoid, 8, 1.0, "vanishing"),
        dense("relu, Glorot, 30", relu, 30, 1.0, "vanishing"),
        dense("tanh, too small, 30", tanh, 30, 0.7, "vanishing"),
        conv("sigmoid, Glorot, 8", sigmoid, 8, 1.0, "vanishing"),
        conv("relu, too small, 20", relu, 20, 1.0, "vanishing"),
        # its queries and keys get no gradient that float32 could hold
        attention(
            "small, no shortcut, no norm, 6", 6, 0.5, "vanishing", "frozen", norm="nowhere", shortcut=False, act=relu
        ),
        recurrent("contracting, 40 steps", 0.7, "vanishing"),
        # Exploding
        dense("relu, twice He, 30", relu, 30, 2 * HE, "exploding"),
        dense("tanh, chaotic, 40", tanh, 40, 2.0, "exploding"),
        conv("relu, twice He, 20", relu, 20, 2 * HE, "exploding"),
        residual("relu, no norm, 30", relu, 30, HE, "exploding", normalise=False),
        attention("large, no norm, 6", 6, 2.0, "exploding", "frozen", norm="nowhere"),  # a softmax that is one-hot
        recurrent("expanding, 40 steps", 2.0, "exploding"),
        # Dead units, saturated units
        dense("relu, one layer below 0", relu, 4, HE, "dead", "frozen", change=at("hidden", "b", index=1, set_to=-50)),
        dense("relu, biases too low", relu, 3, HE, "dead", "frozen", bias=-3.0),
        conv("relu, one layer below 0", relu, 4, HE, "dead", "frozen", change=at("hidden", "b", index=2, set_to=-50)),
        residual("relu, branches below 0", relu, 6, HE, "dead", "frozen", change=at("blocks", "b1", set_to=-50)),
        attention(
            "relu, one layer below 0",
            3,
            1.0,
            "dead",
            "frozen",
            act=relu,
            change=at("blocks", "up_bias", index=1, set_to=-50),
        ),
        dense("tanh, large weights, 3", tanh, 3, 10.0, "saturated"),
        dense("sigmoid, large biases, 2", sigmoid, 2, 1.0, "saturated", "vanishing", bias=6.0),
        conv("tanh, large weights, 3", tanh, 2, 10.0, "saturated"),
        residual("tanh, large weights, 6", tanh, 6, 8.0, "saturated", scale=0.1),
        # Frozen
        dense("tanh, all weights 0", tanh, 4, 0.0, "frozen"),
        dense("relu, tiny rate", relu, 4, HE, "frozen", arguments=SLOW),
        conv("relu, tiny rate", relu, 4, HE, "frozen", arguments=SLOW),
        attention("tiny rate", 2, 1.0, "frozen", arguments=SLOW),
        # Not finite
        dense("relu, a NaN in a bias", relu, 4, HE, "not finite", change=at("hidden", "b", index=1, set_to=NAN)),
        conv("relu, infinite weights", relu, 4, HE, "not finite", change=at("hidden", "w", index=1, set_to=BIG)),
        attention("a NaN in a norm", 3, 1.0, "not finite", change=at("blocks", "norm2", "scale", index=1, set_to=NAN)),
        in_float16(dense("relu, overflow, 20", relu, 20, 4 * HE), "not finite"),
        # Underflow
        in_float16(dense("sigmoid, Glorot, 12", sigmoid, 12, 1.0), "underflow", "vanishing"),
        dense("sigmoid, Glorot, 80", sigmoid, 80, 1.0, "underflow", "vanishing"),
        in_float16(conv("sigmoid, Glorot, 10", sigmoid, 10, 1.0), "underflow", "vanishing"),
    ]
