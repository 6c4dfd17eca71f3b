"""Many at once: seeds, learning rates and depths are axes of one program, split over the devices of a mesh.

>>> import jax, jax.numpy as jnp, optax, gradcourse as gc
>>> network, key = gc.mlp(8, [16] * 3, 4), jax.random.key(0)
>>> over_seeds(gc.backward_jacobian_norms, network, jnp.ones((5, 8)), seeds=7, key=key).log10_norm.shape
(7, 4)

A sweep trains one network per seed and learning rate, and hands back histories with these axes in front:

>>> network = gc.mlp(64, [16], 10, activation="tanh", init="glorot_uniform")
>>> runs, history = sweep(network, gc.digits(), optax.sgd, learning_rates=[0.01, 0.3], seeds=3, steps=200, key=key)
>>> history.final_loss.shape, history.final_loss.mean(axis=0).argmin().item()
((3, 2), 1)
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from gradcourse._checks import positive_integer
from gradcourse.measure.division import checked_mesh, gathered
from gradcourse.nn.network import Network, Params
from gradcourse.training.data import Data
from gradcourse.training.descent import checked_looks
from gradcourse.training.history import History
from gradcourse.training.loop import advanced, checked_watch, in_pieces
from gradcourse.training.runs import Optimizer, Run, checked_rate, with_rate

__all__ = ["over_seeds", "sweep"]

R = TypeVar("R")


def over_seeds(
    measure: Callable[[Network, Params, Any], R],
    network: Network,
    x: Float[Array, "batch *shape"],
    *,
    seeds: int = 10,
    key: PRNGKeyArray,
    mesh: Mesh | None = None,
) -> R:
    """Returns `measure(network, params, x)` for `seeds` draws of the parameters, along a new first axis.

    `measure` is any function of this package that takes these three, such as `backward_jacobian_norms`. With a `mesh`
    that has an axis `"seed"`, each of its devices measures an equal share of the seeds; the result is the same, and
    whole on every device. Raises `ValueError` where the seeds cannot be shared out equally.
    """
    mesh = checked_mesh(mesh, seed=positive_integer("seeds", seeds))
    params = network.draws(seeds, key=key)
    network.measurable(_taken(params, 0), x)  # where its numbers are known and can be checked
    if mesh is not None:
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
        params = jax.device_put(params, NamedSharding(mesh, _seed_axis(mesh)))
    return _over_draws(measure, network, mesh, x, params)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _over_draws(
    measure: Callable[[Network, Params, Any], R], network: Network, mesh: Mesh | None, x: Any, params: Params
) -> R:
    """`measure` of every draw: in turn on a CPU, under `vmap` elsewhere.

    On a CPU, XLA runs convolutions with many kernels at once several times slower than one kernel's after another's.
    """

    def many(x: Any, params: Params) -> R:
        def one(draw: Params) -> R:
            return measure(network, draw, x)

        return lax.map(one, params) if jax.default_backend() == "cpu" else jax.vmap(one)(params)

    return _shared_out(many, mesh, 1)(x, params)


def _shared_out(program: Callable[..., R], mesh: Mesh | None, whole: int) -> Callable[..., R]:
    """The program with all but its first `whole` arguments split by seeds, and its results whole on every device."""
    if mesh is None:
        return program
    shared = _seed_axis(mesh)

    def together(*args: Any) -> R:
        specs = (*[PartitionSpec()] * whole, *[shared] * (len(args) - whole))
        # Nothing is exchanged between devices, so there is nothing to check about who holds what.
        split = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=shared, check_vma=False)
        return gathered(mesh, split(*args))

    return together


def _seed_axis(mesh: Mesh) -> PartitionSpec:
    return PartitionSpec("seed" if "seed" in mesh.axis_names else None)


def sweep(
    network: Network,
    data: Data,
    optimizer: Optimizer,
    *,
    learning_rates: Sequence[float] | Float[ArrayLike, " rate"],
    seeds: int = 5,
    depths: Sequence[int] | None = None,
    steps: int,
    batch_size: int = 32,
    every: int | None = None,
    watch: tuple[Any, Any] | None = None,
    key: PRNGKeyArray,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> tuple[Run, History]:
    """Returns the runs and histories of `train` for every seed, learning rate and depth, as one program.

    Arrays have the axes `(seed, rate)` in front, or `(seed, rate, depth)` with `depths`: numbers of layers, the readout
    included, of which `network` has the largest. A shallower network is the same without the last of those layers
    that repeat, so it starts from the same draw. All runs of one seed share the draw and the minibatches, and all runs
    watch the same examples. `optimizer` is a function of the learning rate, such as `optax.sgd`. With a `mesh` that
    has an axis `"seed"`, each of its devices trains an equal share of the seeds.

    Other arguments, defaults and errors as in `training.loop.train`; `ValueError` too for depths that leaving out
    repeated layers cannot give.
    """
    seeds, steps = positive_integer("seeds", seeds), positive_integer("steps", steps)
    batch_size, looks = positive_integer("batch_size", batch_size), checked_looks(steps, every=every)
    mesh = checked_mesh(mesh, seed=seeds)
    rates = checked_rate(optimizer, learning_rates)
    if isinstance(optimizer, optax.GradientTransformation) or rates.ndim != 1 or not len(rates):
        raise ValueError(
            f"learning_rates={learning_rates!r} is accepted as a sequence of rates, with a function such as optax.sgd "
            "that makes an optimiser of each."
        )
    axes = (seeds, len(rates)) if depths is None else (seeds, len(rates), len(depths))
    seed, rate, *depth = (index.ravel() for index in np.indices(axes))

    init_key, train_key, watch_key = jax.random.split(key, 3)
    params, keys = network.draws(seeds, key=init_key), jax.random.split(train_key, seeds)
    watched = checked_watch(network, _taken(params, 0), data, watch, watch_key)
    starts = jax.vmap(lambda p, key: Run.start(p, with_rate(optimizer, 0.0), key=key))(params, keys)
    run, rates = _taken(starts, seed), rates[rate]
    present = None if depths is None else _taken(_present(network, depths), depth[0])

    def program(run: Run, looks: tuple[int, ...]) -> tuple[Run, History]:
        one = partial(advanced, (network, optimizer, batch_size, None, looks))
        many = _shared_out(jax.vmap(one, in_axes=(None, None, 0, 0, 0)), mesh, 2)
        run, history = (many if mesh is None else jax.jit(many))(data, watched, run, rates, present)
        return run, replace(history, step=history.step[0])

    run, history = in_pieces(program, run, looks, progress)

    def unravelled(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(*axes, *leaf.shape[1:]), tree)

    return unravelled(run), replace(unravelled(replace(history, step=None)), step=history.step)


def _taken(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _present(network: Network, depths: Sequence[int]) -> tuple[Bool[Array, "depth _"], ...]:
    """Per stage, which layers each depth has, `(depth, repeats)`: of the repeated stage only the first ones."""
    repeated = [stage for stage in network.stages if stage.layer.output_shape(stage.shape) == stage.shape]
    if len(repeated) != 1:
        raise ValueError(
            f"depths is accepted for a network that repeats one layer; of this one ({', '.join(network.layer_names)}) "
            f"{len(repeated)} stages could be left out."
        )
    (trunk,) = repeated
    least = network.depth - trunk.repeats
    for depth in depths:
        if not least <= depth <= network.depth:
            raise ValueError(f"depths={list(depths)} has {depth}; accepted here is {least} to {network.depth} layers.")
    kept = jnp.arange(trunk.repeats)[None] < jnp.asarray(depths)[:, None] - least
    return tuple(kept if stage is trunk else jnp.ones((len(depths), stage.repeats), bool) for stage in network.stages)
