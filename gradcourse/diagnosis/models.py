"""The forms in which people have their models, brought into one: a loss of a parameter pytree and a batch.

Nothing of a library is imported before a model made with it is passed. Equinox's modules are pytrees, and need nothing
but to be called once per example; Flax's (NNX) are split into parameters and everything else, and put together again
where they are called, so that the original never changes.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradcourse._checks import is_from
from gradcourse.probes import is_floating

__all__ = ["as_loss"]


def as_loss(
    model_or_loss: Any, params: Any, batch: Any, loss: Callable[..., Any] | None, probes: Any, key: Any
) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """Returns a model or a loss in the one form; arguments and errors are those of `gradcourse.diagnose`.

    That is a function, the parameters that can be differentiated, a pytree, and the batch, after the dummies of the
    model's own probes if it has any: `function(trainable, *given)` is a scalar.
    """
    is_module = _holds_its_parameters(model_or_loss, params)
    held = model_or_loss if is_module else params
    batch = batch if isinstance(batch, tuple) else () if batch is None else (batch,)
    given = batch if probes is None else (probes, *batch)
    call = model_or_loss
    if is_module:
        call = partial(_per_example, key) if is_from("equinox", held) else lambda model, *inputs: model(*inputs)
    trainable, rest, whole = _parted(held)

    def run(trainable: Any, given: tuple[Any, ...], finish: Callable[[Any], Any]) -> Any:
        def inside(trainable: Any, rest: Any, given: Any) -> Any:
            return finish(call(whole(trainable, rest), *given))

        # Flax lets a module's state change only where it has been put together: inside of one and the same `jit`.
        return (jax.jit(inside) if is_from("flax.nnx", held) else inside)(trainable, rest, given)

    def works(*given: Any) -> bool:
        try:
            jax.eval_shape(lambda trainable, given: run(trainable, given, lambda _: 0.0), trainable, given)
        except Exception:
            return False
        return True

    is_model = is_module or loss is not None or _leaves_labels_over(model_or_loss, given, works)
    if is_model and len(batch) < 2:
        raise TypeError(
            f"batch={_short(batch)} has no labels for a model's output; give batch=(inputs, labels), or "
            "batch=(inputs, targets) with loss=."
        )
    if is_model and loss is None:
        given = (*given[:-1], jax.tree.map(jnp.asarray, given[-1]))

    def evaluate(trainable: Any, *given: Any) -> Any:
        if is_model:
            return run(trainable, given[:-1], lambda output: _loss_of(output, given[-1], loss))
        return run(trainable, given, _scalar_of)

    try:
        jax.eval_shape(evaluate, trainable, *given)
    except Exception as error:
        name = getattr(model_or_loss, "__name__", type(model_or_loss).__name__)
        error.add_note(
            f"diagnose called {name} with the parameters and a batch of {_described(given)}. Does the batch have the "
            "shapes that the model was made for? A model with state (batch statistics, a key for dropout) or with "
            "other arguments is accepted as a function: gradcourse.diagnose(loss, model, batch), where "
            "loss(model, *batch) returns a scalar."
        )
        raise
    return evaluate, trainable, given


# ---- Parameters


def _holds_its_parameters(model_or_loss: Any, params: Any) -> bool:
    """Whether the model is a module that is passed alone; raises for what is neither that nor a function."""
    if not callable(model_or_loss):
        raise TypeError(
            f"model_or_loss={_short(model_or_loss)} is a {type(model_or_loss).__name__}; accepted is a function of the "
            "parameters and the batch, a Flax NNX or Equinox module, or a network of gradcourse."
        )
    is_module = params is None and (is_from("flax", model_or_loss) or is_from("equinox", model_or_loss))
    if params is None and not is_module:
        raise TypeError(
            "params=None is accepted for Flax NNX and Equinox modules alone, which hold their parameters. For a "
            "function give the pytree that it takes first."
        )
    return is_module


def _parted(held: Any) -> tuple[Any, Any, Callable[[Any, Any], Any]]:
    """The part of `held` that can be differentiated, the rest of it, and the function that puts both together again."""
    if is_from("flax.nnx", held):
        from flax import nnx

        graph, trainable, rest = nnx.split(held, nnx.Param, ...)
        return trainable, rest, lambda trainable, rest: nnx.merge(graph, trainable, rest)

    def differentiable(leaf: Any) -> bool:  # a plain number in a module, such as the rate of a dropout, is a setting
        return isinstance(leaf, jax.Array | np.ndarray) and is_floating(leaf)

    def whole(trainable: Any, rest: Any) -> Any:
        chosen = lambda one, other: other if one is None else one  # noqa: E731
        return jax.tree.map(chosen, trainable, rest, is_leaf=lambda leaf: leaf is None)

    trainable = jax.tree.map(lambda leaf: jnp.asarray(leaf) if differentiable(leaf) else None, held)
    if not jax.tree.leaves(trainable):
        raise TypeError(
            f"params={_short(held)} holds no array of floating-point numbers; accepted is a pytree with at least one."
        )
    return trainable, jax.tree.map(lambda leaf: None if differentiable(leaf) else leaf, held), whole


# ---- Calls


def _per_example(key: Any, model: Any, *inputs: Any) -> Any:
    """Equinox's modules take one example, and a key if they draw numbers."""
    if "key" not in _parameters(type(model).__call__):
        return jax.vmap(model)(*inputs)
    keys = jax.random.split(key, jnp.shape(jax.tree.leaves(inputs)[0])[0])
    return jax.vmap(lambda one, *example: model(*example, key=one))(keys, *inputs)


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some callables do not tell
        return {}


def _leaves_labels_over(function: Any, given: tuple[Any, ...], works: Callable[..., bool]) -> bool:
    """Whether a function has no use for the last part of what is given: then it is a model, and that are the labels."""
    if len(given) < 2:
        return False
    parameters = _parameters(function).values()
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if positional and all(one.kind is not one.VAR_POSITIONAL for one in parameters):
        required = sum(one.default is one.empty for one in positional)
        return required <= len(given) and (len(positional) == len(given) or required == len(given))
    # Functions such as Flax's `module.apply(variables, *arguments)` take any number: try which calls they accept.
    return not works(*given) and works(*given[:-1])


def _scalar_of(result: Any) -> Any:
    first = result[0] if isinstance(result, tuple) and result else result
    if jnp.shape(first) == () and jnp.issubdtype(jnp.result_type(first), jnp.floating):
        return jnp.asarray(first)
    raise ValueError(
        f"model_or_loss returned {_described(result)}; accepted is a scalar loss, or a tuple that begins with one. For "
        "a model that returns logits, give batch=(inputs, labels); for other outputs loss=function(outputs, targets), "
        "too."
    )


def _loss_of(output: Any, target: Any, loss: Callable[..., Any] | None) -> Any:
    if loss is not None:
        value = loss(output, target)
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(f"loss returned {_described(value)}; accepted is a scalar, such as the batch's mean.")
        return jnp.asarray(value)
    if isinstance(output, jax.Array) and isinstance(target, jax.Array):
        if jnp.issubdtype(target.dtype, jnp.integer) and output.ndim > 1 and target.shape == output.shape[:-1]:
            return optax.losses.softmax_cross_entropy_with_integer_labels(output, target).mean()
        if jnp.issubdtype(target.dtype, jnp.floating) and target.shape == output.shape:
            return jnp.square(output - target).mean()
    raise ValueError(
        f"the model returned {_described(output)} for targets that are {_described(target)}; accepted are logits "
        "(..., classes) with integer labels (...), or outputs with floating-point targets of the same shape. "
        "For anything else give loss=function(outputs, targets), which returns a scalar."
    )


def _described(value: Any) -> str:
    """The shapes and dtypes in a pytree."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))})"
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or not hasattr(leaves[0], "dtype"):
        return f"a {type(value).__name__} of {len(leaves)} leaves" if leaves else f"{value!r}"
    return f"{leaves[0].dtype}{list(jnp.shape(leaves[0]))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
