"""The benchmarks' cases: each yields rows, those against PyTorch and matfree only where these are installed."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradcourse.course.bench import contenders
from gradcourse.course.bench.race import Row, race
from gradcourse.course.timing import seconds
from gradcourse.diagnosis.monitoring import monitor as monitor_of
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.network import Network, Params, cnn, mlp
from gradcourse.probes import Probe, probe
from gradcourse.training.data import digits
from gradcourse.training.loop import train
from gradcourse.training.sweeps import sweep as train_many

__all__ = ["BATCH", "CASES", "NEEDS", "OUTPUTS", "SIZES", "dense"]

BATCH, OUTPUTS = 32, 10
SIZES = ((1000, 64), (1000, 256), (100, 1024))  # depth and width


def dense(depth: int, width: int, activation: str = "sigmoid") -> tuple[Network, Params, Any]:
    """Returns a dense network of `depth` layers of `width`, its parameters and a batch of Gaussian inputs."""
    network = mlp(width, [width] * (depth - 1), OUTPUTS, activation=activation)
    return network, network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (BATCH, width))


def sweep(sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Row]:
    """The sweep against its bare matrix products, and against the same sweep outside the log domain."""
    for depth, width in sizes:
        network, params, x = dense(depth, width)
        ours, setting = partial(backward_jacobian_norms, network, params, x), f"dense, {depth} layers of {width}"
        bare, plain = (make(network, params, x) for make in (contenders.bare_products, contenders.plain_sweep))
        yield race("sweep", setting, "bare matrix products", ours, bare, at_most=1.15)
        yield race("sweep", setting, "sweep without logs", ours, plain, at_most=1.1)


def torch(sizes: Sequence[tuple[int, int]] = SIZES, shallow: int = 50) -> Iterator[Row]:
    """The sweep against PyTorch."""
    for (depth, width), times in zip(sizes, (2.5, 1.1, 1.0), strict=False):
        network, params, x = dense(depth, width)
        ours, setting = partial(backward_jacobian_norms, network, params, x), f"dense, {depth} layers of {width}"
        theirs = contenders.torch_batched(network, params, x)
        yield race("torch", setting, "torch.autograd.grad, batched", ours, theirs, at_least=times)
    network, params, x = dense(shallow, 64)
    ours = partial(backward_jacobian_norms, network, params, x)
    theirs = contenders.torch_jacrev_per_layer(network, params, x)
    yield race("torch", f"dense, {shallow} layers of 64", "torch.func.jacrev per layer", ours, theirs, at_least=20.0)


def compiling(shallow: int = 50, depths: tuple[int, int] = (8, 8192), rounds: int = 5) -> Iterator[Row]:
    """Compile time: against one `jax.jacrev` per layer, which is run once, and of many layers against few."""
    network, params, x = dense(shallow, 64)

    def cold(program: Callable[[], Any]) -> Any:
        jax.clear_caches()
        return program()

    ours = partial(cold, partial(backward_jacobian_norms, network, params, x))
    theirs = partial(cold, lambda: contenders.jax_jacrev_per_layer(network, params, x)())
    setting = f"dense, {shallow} layers of 64, with compile time"
    yield race("compiling", setting, "jax.jacrev per layer", ours, theirs, at_least=20.0, rounds=rounds, warm=False)
    deep, few = (partial(compile_sweep, dense(depth, 64)[0]) for depth in reversed(depths))
    setting = f"dense, compiling {depths[1]} layers of 64"
    yield race("compiling", setting, f"compiling {depths[0]} layers", deep, few, at_most=1.3, rounds=rounds)


def compile_sweep(network: Network) -> None:
    """Traces and compiles the sweep anew."""
    jax.clear_caches()
    params = jax.eval_shape(lambda: network.init(key=jax.random.key(0)))
    x = jax.ShapeDtypeStruct((BATCH, *network.input_shape), jnp.float32)
    jax.jit(partial(backward_jacobian_norms, network)).lower(params, x).compile()


def convolution(depth: int = 10_000) -> Iterator[Row]:
    """The sweep through a deep convolutional network against one forward pass, in the faster of two ways."""
    network = cnn((8, 8, 16), [16] * (depth - 2), OUTPUTS, activation="tanh", init="glorot_uniform")
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (8, 8, 8, 16))
    ways: list[Callable[[], Any]] = [
        partial(network.apply, params, x),
        contenders.convolutions_as_products(network, params, x),
    ]
    for way in ways:
        seconds(way)
    forward = min(ways, key=seconds)
    ours = partial(backward_jacobian_norms, network, params, x)
    setting = f"conv, {depth} layers, 16 channels, 8 x 8, batch 8"
    yield race("convolution", setting, "one forward pass", ours, forward, at_most=12.0, rounds=5)


def matfree(depth: int = 50, width: int = 256, goal: float = 0.01, pilot: int = 1000) -> Iterator[Row]:
    """All norms, exact, against matfree's estimate of a single one with a relative error of `goal`."""
    network = mlp(width, [width] * (depth - 1), width, activation="tanh", init="glorot_normal")
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (1, width))
    mean, error = contenders.matfree_frobenius_norm(network, params, x[0], samples=pilot)(jax.random.key(2))
    single = float(error / mean) * pilot**0.5  # the relative error of one sample of the squared norm
    samples = round((single / (2 * goal)) ** 2)  # the norm's relative error is half of its square's
    theirs = partial(contenders.matfree_frobenius_norm(network, params, x[0], samples=samples), jax.random.key(3))
    ours = partial(backward_jacobian_norms, network, params, x)
    setting = f"dense, {depth} layers of {width}, exact"
    yield race("matfree", setting, f"matfree, {goal:.0%} error, {samples} samples", ours, theirs, at_least=1.0)


def probes(dense: tuple[int, int, int] = (8, 1024, 128), conv: tuple[int, int, int] = (6, 16, 16)) -> Iterator[Row]:
    """A training step with a probe at every layer against one without; layers, width or channels, batch."""
    depth, width, batch = dense
    network = mlp(width, [width] * (depth - 1), OUTPUTS, activation="relu", init="he_normal")
    yield _probed(network, batch, f"dense, {depth} layers of {width}, batch {batch}")
    depth, channels, batch = conv
    network = cnn((16, 16, channels), [channels] * (depth - 2), OUTPUTS, activation="relu", init="he_normal")
    yield _probed(network, batch, f"conv, {depth} layers of {channels} channels, 16 x 16, batch {batch}")


def _probed(network: Network, batch: int, setting: str) -> Row:
    params = network.init(key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (batch, *network.input_shape))
    labels, optimizer = jnp.arange(batch) % OUTPUTS, optax.sgd(0.1)

    def loss(params: Params, found: list[Probe | None]) -> Any:
        h = x  # without a scan: on a CPU, XLA runs a convolution's gradient badly inside one
        for (layer, p), place in zip(network.layers(params), found, strict=True):
            h = probe(layer.apply(p, h), place)
        return optax.losses.softmax_cross_entropy_with_integer_labels(h, labels).mean()

    @jax.jit
    def train(params: Params, state: Any, found: list[Probe | None]) -> Any:
        gradient, norms = jax.grad(loss, argnums=(0, 1))(params, found)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, norms

    def ten_steps(found: list[Probe | None]) -> Any:
        state = optimizer.init(params)
        for _ in range(10):
            result = train(params, state, found)
        return result

    ours = partial(ten_steps, [Probe.zeros()] * network.depth)
    theirs = partial(ten_steps, [None] * network.depth)
    return race("probes", f"{setting}, 10 steps", "without probes", ours, theirs, at_most=1.05, rounds=21)


def monitor(
    dense: tuple[int, int, int] = (8, 256, 256), conv: tuple[int, int, int] = (6, 16, 32), rounds: int = 15
) -> Iterator[Row]:
    """A hundred training steps, one of them looked at, against the same unmonitored; sizes as in `probes`."""
    depth, width, batch = dense
    network = mlp(width, [width] * (depth - 1), OUTPUTS, activation="relu", init="he_normal")
    setting = f"dense, {depth} layers of {width}, batch {batch}"
    yield _monitored(network, batch, setting, rounds, wrapped=True)
    yield _monitored(network, batch, setting, rounds, wrapped=False)
    depth, channels, batch = conv
    network = cnn((16, 16, channels), [channels] * (depth - 2), OUTPUTS, activation="relu", init="he_normal")
    yield _monitored(
        network, batch, f"conv, {depth} layers of {channels} channels, 16 x 16, batch {batch}", rounds, wrapped=True
    )


def _monitored(network: Network, batch: int, setting: str, rounds: int, *, wrapped: bool) -> Row:
    params = network.layers(network.init(key=jax.random.key(0)))
    layers, start = [layer for layer, _ in params], [p for _, p in params]
    x = jax.random.normal(jax.random.key(1), (batch, *network.input_shape))
    labels = jnp.arange(batch) % OUTPUTS

    def loss(params: list[Any]) -> Any:
        h = x
        for layer, p in zip(layers, params, strict=True):
            h = layer.apply(p, h)
        return optax.losses.softmax_cross_entropy_with_integer_labels(h, labels).mean()

    def hundred_steps(watch: Any) -> Callable[[], Any]:
        optimizer = optax.adam(1e-3) if watch is None else watch.optimizer(optax.adam(1e-3))

        @jax.jit
        def step(params: list[Any], state: Any) -> Any:
            value, gradient = jax.value_and_grad(loss)(params)
            with jax.numpy_dtype_promotion("standard"):  # which optax's Adam needs
                updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        program = watch.wrap(step, loss=lambda result: result[2]) if watch is not None and wrapped else step

        def run() -> Any:
            params, state = start, optimizer.init(start)
            for _ in range(100):
                params, state, value = program(params, state)
            return params, state, value

        return run

    setting = f"{setting}, 100 steps, monitored{'' if wrapped else ' inside jit alone'}"
    ours, theirs = hundred_steps(monitor_of()), hundred_steps(None)
    return race("monitor", setting, "unmonitored", ours, theirs, at_most=1.02 if wrapped else 1.2, rounds=rounds)


def training(runs: tuple[int, int] = (8, 8), steps: int = 500) -> Iterator[Row]:
    """A sweep over seeds and rates of small networks against training them one by one, in two ways.

    Either each rate is a constant of its own program, as in `optax.sgd(0.1)`, or all share one program.
    """
    network, data, key = (
        mlp(64, [16, 16], OUTPUTS, activation="tanh", init="glorot_uniform"),
        digits(),
        jax.random.key(0),
    )
    seeds, rates = runs[0], [0.01 * 1.7**power for power in range(runs[1])]
    settings: dict[str, Any] = {"steps": steps, "batch_size": 8, "watch": (data.x_test[:50], data.y_test[:50])}
    starts = [network.init(key=one) for one in jax.random.split(key, seeds)]

    def together(clear: bool) -> Any:
        if clear:
            jax.clear_caches()
        found = train_many(network, data, optax.sgd, learning_rates=rates, seeds=seeds, key=key, **settings)
        return found[1].loss

    def one_by_one(compiled_in: bool) -> Any:
        if compiled_in:
            jax.clear_caches()
        losses = []
        for start, rate in product(starts, rates):
            ways: dict[str, Any] = {"optimizer": optax.sgd(rate)}
            if not compiled_in:
                ways = {"optimizer": optax.sgd, "learning_rate": rate}
            losses.append(train(network, start, data, key=key, progress=False, **ways, **settings)[1].loss)
        return losses

    setting = f"training {seeds * len(rates)} nets, 2 layers of 16, {steps} steps"
    ours, theirs = partial(together, False), partial(one_by_one, False)
    yield race("training", setting, "one by one, one program", ours, theirs, at_least=1.0)
    ours, theirs = partial(together, True), partial(one_by_one, True)
    setting, against = f"{setting}, compiled too", "one by one, a program each"
    yield race("training", setting, against, ours, theirs, at_least=8.0, rounds=1, warm=False)


CASES: dict[str, Callable[[], Iterator[Row]]] = {
    case.__name__: case for case in (sweep, torch, compiling, convolution, matfree, probes, monitor, training)
}
NEEDS = {"torch": "torch", "matfree": "matfree"}
