"""What is seen of a network while it trains: its loss, and every layer's gradients, update and units.

Gradients come out of one ordinary `jax.grad` through rescaling probes (`gradcourse.probes`), so that a norm of 1e-400
is seen for what it is, in float32.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from gradcourse._logdomain import Scaled, exact_profile, times_power
from gradcourse.measure.gradients import layer_squares, layers_with, update_to_weight_ratios
from gradcourse.measure.units import UnitStatistics, statistics_of
from gradcourse.nn.layers import Layer
from gradcourse.nn.network import Network, Params, joined
from gradcourse.probes import is_floating
from gradcourse.profile import Profile
from gradcourse.rescaling import RescalingProbe, exponents, profile, rescale
from gradcourse.training.runs import NEVER

__all__ = ["History", "Present", "masked", "snapshot"]

Present = tuple[Bool[Array, "..."], ...] | None  # per stage, which of its layers are there; None: all are


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class History:
    r"""What was seen of a run at its snapshots, on the watched examples; a sweep's runs are leading axes.

    - `step`: how many steps had been taken, `(snapshot,)`;
    - `loss`: mean cross-entropy, nats; `accuracy`: share of examples; both `(*run, snapshot)`;
    - `activation_gradient`: $\|\partial C/\partial h_l\|$ at each layer's input, for the loss $C$ of one example; root
      mean square over examples, as `gradcourse.measure.gradients.activation_gradient_norms`;
    - `parameter_gradient`: norm of the mean loss's gradient, for the layers that have parameters;
    - `update_to_weight`: norm of the update that the optimiser would make of that gradient, over the parameters' norm;
      infinite where it has overflowed;
    - `units`: each layer's share of silent and of saturated units, and the mean and spread of what it puts out;
    - `batch_loss`: the minibatch's loss at every step, `(*run, step)`;
    - `diverged_at`: as in `training.runs.Run`. Once a run has diverged, all else is of its last sound parameters;
    - `observed`: what the argument `observe` of `train` gave, `(snapshot, ...)`; `None` without.

    Profiles and `units` have the axes `(*run, snapshot, layer)`; layers that a sweep has left out are NaN.
    """

    step: Any  # JAX puts placeholders in a pytree's fields, so arrays are not checked here
    loss: Any
    accuracy: Any
    activation_gradient: Profile
    parameter_gradient: Profile
    update_to_weight: Profile
    units: UnitStatistics
    batch_loss: Any
    diverged_at: Any
    observed: Any = None

    @property
    def diverged(self) -> Bool[Array, "*run"]:
        """Whether the run has diverged."""
        return self.diverged_at != NEVER

    @property
    def final_loss(self) -> Float[Array, "*run"]:
        """The loss at the last snapshot, infinite where the run has diverged: the best run's is the smallest."""
        return jnp.where(self.diverged, jnp.inf, self.loss[..., -1])

    def steps_to(self, *, loss: float | None = None, accuracy: float | None = None) -> Float[np.ndarray, "*run"]:
        """Returns the step of the first snapshot with at most that loss, or at least that accuracy.

        Infinite where there is none. Raises `TypeError` unless exactly one of the two is given.
        """
        if (loss is None) == (accuracy is None):
            raise TypeError(f"steps_to got loss={loss} and accuracy={accuracy}; accepted is exactly one of them.")
        there = np.asarray(self.loss) <= loss if accuracy is None else np.asarray(self.accuracy) >= accuracy
        return np.where(there.any(axis=-1), np.asarray(self.step)[there.argmax(axis=-1)], np.inf)

    def then(self, later: "History") -> "History":
        """Returns the whole history of a run that was continued, where `later` is that of the second part."""
        if self.step[-1] != later.step[0]:
            raise ValueError(
                f"later begins at step {later.step[0]}; accepted is {self.step[-1]}, where this history ends."
            )
        runs = self.diverged_at.ndim
        apart: dict[str, Any] = {"step": None, "batch_loss": None, "diverged_at": None}

        def join(one: Array, other: Array) -> Array:
            rest = jax.lax.slice_in_dim(other, 1, None, axis=runs)  # the snapshot where they meet is in both
            return jnp.concatenate([one, rest], axis=runs)

        return replace(
            jax.tree.map(join, replace(self, **apart), replace(later, **apart)),
            step=jnp.concatenate([self.step, later.step[1:]]),
            batch_loss=jnp.concatenate([self.batch_loss, later.batch_loss], axis=runs),
            diverged_at=later.diverged_at,
        )


def snapshot(
    network: Network,
    params: Params,
    optimizer: optax.GradientTransformation,
    optimizer_state: Any,
    x: Float[Array, "batch *shape"],
    y: Int[Array, " batch"],
    present: Present = None,
) -> dict[str, Any]:
    """Returns what a `History` says of one moment, by the names of its fields: on the examples `x` with labels `y`.

    To be called inside `jit`. Cost: three forward passes and one backward pass. Layers that are not `present` hand on
    what they are given, and are NaN here.
    """

    def mean_loss(params: Params, at_inputs: list[RescalingProbe], at_output: RescalingProbe) -> tuple[Array, Array]:
        logits = rescale(masked(network, params, x, present, at_inputs), at_output)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

    at_inputs = [RescalingProbe.zeros(stage.repeats, dtype=x.dtype) for stage in network.stages]
    differentiated = jax.value_and_grad(mean_loss, argnums=(0, 1, 2), has_aux=True)
    (loss, logits), (gradient, found, last) = differentiated(params, at_inputs, RescalingProbe.zeros(dtype=x.dtype))
    chain = joined([*found, last[None]])
    everywhere = profile(chain, (*network.layer_names, "output"), quantity="gradient of the loss at each layer's input")
    inputs = jax.tree.map(lambda leaf: leaf[:-1], everywhere)
    to_one = jnp.log2(len(x)) / 2  # from the gradient of the mean over examples to that of one example's loss
    # What lies before a probe has a gradient divided by the powers of two from there on.
    powers = exponents(chain)[1:]
    layers, (exponent, square) = layers_with(network, params, "all"), layer_squares(gradient)
    squares = Scaled(exponent + powers[np.array([name in layers for name in network.layer_names])], square)
    parameter = exact_profile(squares, layers, "gradient of the mean loss with respect to each layer's parameters")
    # An optimiser is given the gradient as it is without rescaling, underflow included.
    plain = tuple(
        jax.tree.map(lambda leaf, power=power: times_power(leaf, power), stage)
        for stage, power in zip(gradient, network.parted(powers), strict=True)
    )
    updates, _ = optimizer.update(plain, optimizer_state, params)
    ratios = update_to_weight_ratios(network, params, updates)
    overflown = jnp.isnan(layer_squares(updates).square)
    seen = {
        "activation_gradient": replace(inputs, fraction=inputs.fraction + to_one, layers=network.layer_names),
        "parameter_gradient": parameter,
        "update_to_weight": replace(ratios, fraction=jnp.where(overflown, jnp.inf, ratios.fraction)),
        "units": statistics_of(network, params, x, present=present),
    }
    if present is not None:
        there = dict(zip(network.layer_names, jnp.concatenate(present), strict=True))

        def only(found: Any) -> Any:
            """A profile or statistics with NaN for the layers that are not there."""
            kept = jnp.stack([there[layer] for layer in found.layers])
            return jax.tree.map(lambda leaf: jnp.where(kept, leaf, jnp.nan) if is_floating(leaf) else leaf, found)

        seen = {name: only(found) for name, found in seen.items()}
    return seen | {"loss": jnp.where(jnp.isnan(loss), jnp.inf, loss), "accuracy": jnp.mean(logits.argmax(axis=-1) == y)}


def masked(
    network: Network,
    params: Params,
    x: Float[Array, "batch *shape"],
    present: Present,
    probes: list[RescalingProbe] | None = None,
) -> Float[Array, "batch *output"]:
    """Returns the network's output; layers that are not `present` hand on what they are given.

    With `probes`, one stack for each stage, every layer's input passes a rescaling probe.

    >>> import gradcourse as gc
    >>> network, x = gc.mlp(4, [4] * 3, 2), jnp.ones((1, 4))
    >>> params = network.init(key=jax.random.key(0))
    >>> shallow = masked(network, params, x, (jnp.array([True, False, False]), jnp.array([True])))
    >>> first, readout = jax.tree.map(lambda leaf: leaf[:1], params)
    >>> bool(jnp.allclose(shallow, gc.mlp(4, [4], 2).apply((first, readout), x)))
    True
    """
    if present is None and probes is None:
        return network.apply(params, x)

    def step(layer: Layer, one: Any, h: Array) -> tuple[Array, None]:
        p, there, probe = one
        h = rescale(h, probe)
        output = layer.apply(p, h)
        # A layer that changes the shape is always there.
        return output if there is None or output.shape != h.shape else jnp.where(there, output, h), None

    everywhere: Any = (None,) * len(params)
    return network.scan(step, tuple(zip(params, present or everywhere, probes or everywhere, strict=True)), x)[0]
