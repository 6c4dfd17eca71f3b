"""A monitor for training: what becomes of every layer's gradient and update while a model trains, in bounded memory.

`Monitor.optimizer` wraps an optax optimiser. The result is an optimiser like any other, whose updates are those of the
wrapped one; its state also holds the last `keep` snapshots, taken every `every` updates:

>>> import jax, jax.numpy as jnp, optax
>>> watch = monitor(every=2, keep=100)
>>> optimizer = watch.optimizer(optax.sgd(0.1))
>>> params = {"first": {"weight": jnp.full((2, 2), 1e-3)}, "second": {"weight": jnp.ones((2, 1))}}
>>> loss = lambda params: jnp.sum(jnp.ones((1, 2)) @ params["first"]["weight"] @ params["second"]["weight"])
>>> state = optimizer.init(params)
>>> for _ in range(5):
...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
...     params = optax.apply_updates(params, updates)
>>> history = watch.history(state)
>>> history
3 snapshots of 2 layers, steps 0 to 4
layer   log10 gradient, step 0  step 2  step 4  update/weight, step 0  step 2  step 4  zeros  finite
first   0.3                     0.31    0.35    1e+02                  0.51    0.28    0%     yes
second  -2.5                    -0.25   0.061   0.0002                 0.039   0.073   0%     yes

`Monitor.wrap` wraps a whole training step, of any kind. It is the impure twin: what it sees, the loss, the time a step
takes and the size of the update, is kept in the wrapped step. Both together see everything, and cost least.

`gradcourse bench monitor` measures what it costs: a hundred steps of Adam with it, one of them a snapshot, against a
hundred without, in turn in one run. On two cores of a CPU, with steps of 4 to 7 ms, a wrapped step whose optimiser is
monitored took about 1 % more; the monitored optimiser alone, whose compiled step must be ready for a snapshot at any
time, about 12 %. So wrap the step where there is a loop in Python. About 0.02 ms a step are spent in any case, which is
much where a step takes 0.1 ms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optax

from gradcourse._checks import positive_integer
from gradcourse.diagnosis.monitor_history import MonitorHistory
from gradcourse.diagnosis.monitored_optimizer import history_of, monitored, state_in
from gradcourse.diagnosis.monitored_step import MonitoredStep
from gradcourse.diagnosis.snapshots import Layers, layers_of
from gradcourse.nn.network import Network

__all__ = ["Monitor", "monitor"]


def monitor(
    every: int = 100, keep: int = 1000, *, network: Network | None = None, stacked: Sequence[str] = ()
) -> "Monitor":
    """Returns a monitor that looks at every `every`-th step, the first included, and keeps the last `keep` snapshots.

    A *layer* is whatever holds arrays directly: those of `params["encoder"]["dense"]` together are `encoder.dense`,
    and an array at the top of the tree is a layer by itself. Where layers of one shape are stacked in one array,
    `stacked` names these, and every entry of the first axis is a layer: `blocks.dense.0`, `blocks.dense.1`, ...; a
    `network` of this package stacks its own, and they get its layers' names.

    Raises `TypeError` or `ValueError` unless both numbers are whole and at least 1.
    """
    if isinstance(stacked, str):
        raise TypeError(f"stacked={stacked!r} is a name; accepted is a sequence of names: write [{stacked!r}].")
    every, keep = positive_integer("every", every), positive_integer("keep", keep)
    return Monitor(every, keep, partial(layers_of, stacked=tuple(stacked), network=network))


@dataclass(frozen=True)
class Monitor:
    """A monitor of a training run, as `monitor` makes it: of an optimiser, of a whole step, or of both.

    It is a setting and holds nothing of a run. `layers_of` says of which layers a pytree of parameters consists.
    """

    every: int
    keep: int
    layers_of: Callable[[Any], Layers]

    def __repr__(self) -> str:
        return f"monitor(every={self.every}, keep={self.keep})"

    def optimizer(self, inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
        """Returns an optimiser whose updates are those of `inner` and whose state is a `MonitorState`.

        Pure: it works under `jit`, `lax.scan` and `vmap`, with donated buffers, inside and around `optax.chain` and
        the like. What is looked at are the gradients as they come in here, and the updates as they leave: wrap the
        whole chain to see the model's gradients. With `optax.MultiSteps`, which makes an update of several gradients,
        give it the monitored optimiser rather than the other way round. Pass `params` to `update`, or there are no
        weights to compare the update with. Under `vmap` over runs a snapshot's cost is paid at every step.

        Between snapshots nothing is looked at: a gradient that was not finite just once may go unseen.
        """
        if not (hasattr(inner, "init") and hasattr(inner, "update")):
            raise TypeError(
                f"inner={inner!r} is a {type(inner).__name__}; accepted is an optax optimiser: optax.adam(1e-3), ..."
            )
        return monitored(inner, self.every, self.keep, self.layers_of)

    def wrap(
        self,
        step: Callable[..., Any],
        *,
        params: str | None = None,
        new_params: Callable[[Any], Any] | None = None,
        loss: Callable[[Any], Any] | None = None,
    ) -> MonitoredStep:
        """Returns a step that does and returns what `step` does, and notes what it sees at every `every`-th call.

        `params` is the name of the argument that holds the parameters, any pytree; by default it is the first.
        `new_params` and `loss` are functions of what `step` returns: one returns the new parameters, by default the
        whole or its first entry, whichever has the form of the old ones; the other returns the loss, a scalar, or is
        left out. `step` may donate its arguments: at a snapshot the parameters are copied before the call. Only there
        the device is waited for. So memory for one more copy of the parameters is needed.

        Where an argument holds the state of a monitored optimiser, by itself, in a tuple, list or dictionary, or in a
        data class with a `replace` (a train state of Flax's), the calls decide when that looks: `step` is compiled
        twice, with the looking and without, and between snapshots it costs next to nothing. Then `params` and
        `new_params` are not used, for the optimiser's state has it all but loss and time.

        Not pure: the notes are in the step that is returned, read by its `history()`, or by `history(optimizer_state)`
        together with the snapshots of the optimiser. So wrap the jitted step, not what is inside `jit`.

        >>> import optax
        >>> import jax, jax.numpy as jnp
        >>> halving = jax.jit(lambda weight, x: (weight * 0.5, weight * x))
        >>> step = monitor(every=2).wrap(halving, loss=lambda result: result[1])
        >>> weight = jnp.asarray(1.0)
        >>> for _ in range(5):
        ...     weight, loss = step(weight, 2.0)
        >>> step.history().loss
        array([2.   , 0.5  , 0.125])
        """
        return MonitoredStep(
            step, self.every, self.keep, self.layers_of, params=params, new_params=new_params, loss=loss
        )

    def history(self, optimizer_state: Any) -> MonitorHistory:
        """Returns what the optimiser has seen whose state this is.

        The state is found anywhere in a larger one, such as that of `optax.chain` or of Flax's `nnx.Optimizer`. Raises
        `ValueError` where there is no state of a monitored optimiser, more than one, or one of many runs under `vmap`.
        """
        return history_of(state_in(optimizer_state))
