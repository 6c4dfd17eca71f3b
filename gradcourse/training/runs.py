"""A training run at some step: what its future depends on, kept in a file and taken up again.

>>> import jax, optax, tempfile, gradcourse as gc
>>> network = gc.mlp(4, [8], 2)
>>> run = Run.start(network.init(key=jax.random.key(0)), optax.adam(1e-3), key=jax.random.key(1))
>>> with tempfile.TemporaryDirectory() as folder:
...     run.save(f"{folder}/run.npz")
...     again = Run.load(f"{folder}/run.npz", network, optax.adam)
>>> bool((again.params[0]["weight"] == run.params[0]["weight"]).all())
True
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import known_false
from gradcourse.nn.network import Network, Params

__all__ = ["NEVER", "Optimizer", "Run", "checked_rate", "with_rate"]

Optimizer: TypeAlias = optax.GradientTransformation | Callable[[Any], optax.GradientTransformation]
NEVER = -1  # the step at which a run has diverged that has not


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Run:
    """Where a training run stands, besides the network, the data and the optimiser.

    - `params`, `optimizer_state`;
    - `previous`: the parameters one step earlier, to which a run goes back when it diverges;
    - `key`: of the whole run; the minibatch of a step is drawn by `fold_in(key, step)`;
    - `step`: how many steps were taken;
    - `diverged_at`: the step whose loss or new parameters were not finite, -1 where there was none. From there on
      nothing moves: a run that has diverged keeps its last sound parameters.

    A sweep's runs are leading axes of every array.
    """

    params: Params
    optimizer_state: Any
    previous: Params
    key: Any  # PRNGKeyArray[*run]; the jax type has no axes, and jax also puts placeholders into pytrees
    step: Any  # Int[Array, "*run"]
    diverged_at: Any  # Int[Array, "*run"]

    @classmethod
    def start(cls, params: Params, optimizer: optax.GradientTransformation, *, key: PRNGKeyArray) -> "Run":
        """Returns the run before its first step."""
        return cls(params, optimizer.init(params), params, key, jnp.int32(0), jnp.int32(NEVER))

    def save(self, path: str | Path) -> None:
        """Writes the run to `path`, a NumPy archive. A file that is there is whole: it is put in place at the end."""
        unfinished, arrays = Path(f"{path}.part"), jax.device_get(_leaves(self))
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: str | Path, network: Network, optimizer: Optimizer) -> "Run":
        """Returns the run that `save` wrote, of the same network and the same optimiser, whatever its learning rate.

        Raises `FileNotFoundError` where there is no file, and `ValueError` where it is no run or one of another
        network or optimiser.
        """

        def fresh() -> Run:
            key = jax.random.key(0)
            return cls.start(network.init(key=key), with_rate(optimizer, 0.0), key=key)

        like = jax.eval_shape(lambda: _leaves(fresh()))
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                found = dict(archive)
        except (ValueError, EOFError, BadZipFile) as error:
            raise ValueError(f"path={str(path)!r} is no run written by Run.save: {error}.") from None
        for name in dict.fromkeys([*like, *found]):
            if (given := _form(found.get(name))) != (wanted := _form(like.get(name))):
                raise ValueError(
                    f"path={str(path)!r} has {given} as {name}; accepted for this network and optimiser is {wanted}. "
                    "Load it with those it was saved with."
                )

        def restored(path: Any, form: Any) -> Array:
            leaf = jnp.asarray(found[jax.tree_util.keystr(path)])
            return jax.random.wrap_key_data(leaf) if _is_key(form) else leaf

        return jax.tree_util.tree_map_with_path(restored, jax.eval_shape(fresh))


def with_rate(optimizer: Optimizer, learning_rate: Any) -> optax.GradientTransformation:
    """Returns the optimiser itself, or the one that it makes of the learning rate."""
    return optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(learning_rate)


def checked_rate(optimizer: Optimizer, learning_rate: Any) -> Float[Array, "..."]:
    """Returns the rates as an array, 0 for an optimiser that has its own.

    Raises `TypeError` for what is no optimiser and for a missing or superfluous rate, `ValueError` for rates below 0.
    """
    ready = isinstance(optimizer, optax.GradientTransformation)
    if not ready and not callable(optimizer):
        raise TypeError(
            f"optimizer={optimizer!r} is a {type(optimizer).__name__}; accepted is an optax optimiser, such as "
            "optax.adam(1e-3), or a function that makes one of the learning rate, such as optax.adam."
        )
    if ready != (learning_rate is None):
        raise TypeError(
            "learning_rate is accepted with a function that makes an optimiser of it, such as optax.sgd; an optimiser "
            "such as optax.sgd(0.1) has its own."
            if ready
            else "learning_rate is missing: optimizer is a function that makes an optimiser of it."
        )
    rate = jnp.asarray(0.0 if learning_rate is None else learning_rate, float)
    if known_false(jnp.all(jnp.isfinite(rate) & (rate >= 0))):
        raise ValueError(f"learning_rate={learning_rate!r} is accepted finite, and zero or more.")
    return rate


def _leaves(run: Run) -> dict[str, Any]:
    """The arrays of a run by their place in it, such as `.params[0]['weight']`; a key's data stand for it."""
    places = jax.tree_util.tree_leaves_with_path(run)
    return {jax.tree_util.keystr(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in places}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _form(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype}{leaf.shape}"
