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
from gradcourse.course.provenance import seconds
from gradcourse.diagnosis.monitoring import monitor as monitor_of
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.network import Network, Params, cnn, mlp
from gradcourse.probes import Probe, probe
from gradcourse.training.data import digits
from gradcourse.training.loop import train
from gradcourse.training.sweeps import sweep as train_many

__all__ = ["BATCH", "CASES", "NEEDED", "OUTPUTS", "SIZES", "dense", "swept"]

BATCH = 32
OUTPUTS = 10
SIZES = ((1000, 64), (1000, 256), (100, 1024))  # depth and width
Sizes = tuple[int, int, int]  # layers, width or channels, batch


def dense(depth: int, width: int) -> tuple[Network, Params, Any]:
    """Returns a network of `depth` sigmoid layers of `width`, its parameters and a batch of Gaussian inputs."""
    network = mlp(width, [width] * (depth - 1), OUTPUTS)
    return network, network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (BATCH, width))


def swept(network: Network, params: Params, x: Any) -> Callable[[], Any]:
    """Returns the sweep, ready to be timed."""
    return partial(backward_jacobian_norms, network, params, x)


def sweep(sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Row]:
    """The sweep against its bare matrix products, and against the same sweep outside the log domain."""
    for depth, width in sizes:
        net, setting = dense(depth, width), f"dense, {depth} layers of {width}"
        ours, bare, plain = swept(*net), contenders.bare_products(*net), contenders.plain_sweep(*net)
        yield race("sweep", setting, "bare matrix products", ours, bare, at_most=1.15)
        yield race("sweep", setting, "sweep without logs", ours, plain, at_most=1.1)


def torch(sizes: Sequence[tuple[int, int]] = SIZES, shallow: int = 50) -> Iterator[Row]:
    """The sweep against PyTorch."""
    for (depth, width), times in zip(sizes, (2.5, 1.1, 1.0), strict=False):
        net, setting = dense(depth, width), f"dense, {depth} layers of {width}"
        theirs = contenders.torch_batched(*net)
        yield race("torch", setting, "torch.autograd.grad, batched", swept(*net), theirs, at_least=times)
    net, setting = dense(shallow, 64), f"dense, {shallow} layers of 64"
    theirs = contenders.torch_jacrev_per_layer(*net)
    yield race("torch", setting, "torch.func.jacrev per layer", swept(*net), theirs, at_least=20.0)


def compiling(shallow: int = 50, depths: tuple[int, int] = (8, 8192), rounds: int = 5) -> Iterator[Row]:
    """Compile time: against one `jax.jacrev` per layer, which is run once, and of many layers against few."""
    net, setting = dense(shallow, 64), f"dense, {shallow} layers of 64, with compile time"
    ours, theirs = partial(_cold, swept(*net)), partial(_cold, lambda: contenders.jax_jacrev_per_layer(*net)())
    yield race("compiling", setting, "jax.jacrev per layer", ours, theirs, at_least=20.0, rounds=rounds, warm=False)
    deep, few = (partial(_cold, partial(_compile_sweep, dense(depth, 64)[0])) for depth in reversed(depths))
    setting = f"dense, compiling {depths[1]} layers of 64"
    yield race("compiling", setting, f"compiling {depths[0]} layers", deep, few, at_most=1.3, rounds=rounds)


def _cold(program: Callable[[], Any]) -> Any:
    jax.clear_caches()
    return program()


def _compile_sweep(network: Network) -> None:
    params = jax.eval_shape(lambda: network.init(key=jax.random.key(0)))
    x = jax.ShapeDtypeStruct((BATCH, *network.input_shape), jnp.float32)
    jax.jit(partial(backward_jacobian_norms, network)).lower(params, x).compile()


def convolution(depth: int = 10_000) -> Iterator[Row]:
    """The sweep through a deep convolutional network against one forward pass, in the faster of two ways."""
    network = cnn((8, 8, 16), [16] * (depth - 2), OUTPUTS, activation="tanh", init="glorot_uniform")
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (8, 8, 8, 16))
    products = contenders.convolutions_as_products(network, params, x)
    ways: tuple[Callable[[], Any], ...] = partial(network.apply, params, x), products
    for way in ways:
        seconds(way)  # to compile
    forward, setting = min(ways, key=seconds), f"conv, {depth} layers, 16 channels, 8 x 8, batch 8"
    yield race("convolution", setting, "one forward pass", swept(network, params, x), forward, at_most=12.0, rounds=5)


def matfree(depth: int = 50, width: int = 256, goal: float = 0.01, pilot: int = 1000) -> Iterator[Row]:
    """All norms, exact, against matfree's estimate of a single one with a relative error of `goal`."""
    network = mlp(width, [width] * (depth - 1), width, activation="tanh", init="glorot_normal")
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (1, width))
    mean, error = contenders.matfree_frobenius_norm(network, params, x[0], samples=pilot)(jax.random.key(2))
    single = float(error / mean) * pilot**0.5  # the relative error of one sample of the squared norm
    samples = round((single / (2 * goal)) ** 2)  # the norm's relative error is half of its square's
    theirs = partial(contenders.matfree_frobenius_norm(network, params, x[0], samples=samples), jax.random.key(3))
    setting, against = f"dense, {depth} layers of {width}, exact", f"matfree, {goal:.0%} error, {samples} samples"
    yield race("matfree", setting, against, swept(network, params, x), theirs, at_least=1.0)


def probes(dense: Sizes = (8, 1024, 128), conv: Sizes = (6, 16, 16)) -> Iterator[Row]:
    """A training step with a probe at every layer against one without."""
    for network, batch, setting in _classifiers(dense, conv):
        yield _probed(network, batch, f"{setting}, 10 steps")


def _probed(network: Network, batch: int, setting: str) -> Row:
    start, loss, optimizer = network.init(key=jax.random.key(0)), _loss(network, batch), optax.sgd(0.1)
    differentiate = jax.grad(lambda params, found: loss(network.layers(params), found), argnums=(0, 1))

    @jax.jit
    def step(params: Params, state: Any, found: list[Probe | None]) -> Any:
        gradient, norms = differentiate(params, found)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, norms

    def ten_steps(found: list[Probe | None]) -> Any:
        state = optimizer.init(start)
        for _ in range(10):
            result = step(start, state, found)
        return result

    ours, theirs = (partial(ten_steps, [place] * network.depth) for place in (Probe.zeros(), None))
    return race("probes", setting, "without probes", ours, theirs, at_most=1.05, rounds=21)


def monitor(dense: Sizes = (8, 256, 256), conv: Sizes = (6, 16, 32), rounds: int = 15) -> Iterator[Row]:
    """A hundred training steps, one of them looked at, against the same unmonitored."""
    for (network, batch, setting), ways in zip(_classifiers(dense, conv), ((True, False), (True,)), strict=True):
        for wrapped in ways:
            how = "monitored" if wrapped else "monitored inside jit alone"
            yield _monitored(network, batch, f"{setting}, 100 steps, {how}", rounds, wrapped=wrapped)


def _monitored(network: Network, batch: int, setting: str, rounds: int, *, wrapped: bool) -> Row:
    layers, start = map(list, zip(*network.layers(network.init(key=jax.random.key(0))), strict=True))
    loss = _loss(network, batch)

    def hundred_steps(watch: Any) -> Callable[[], Any]:
        optimizer = optax.adam(1e-3) if watch is None else watch.optimizer(optax.adam(1e-3))

        @jax.jit
        def step(params: list[Any], state: Any) -> Any:
            value, gradient = jax.value_and_grad(lambda params: loss(list(zip(layers, params, strict=True))))(params)
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

    ours, theirs = hundred_steps(monitor_of()), hundred_steps(None)
    return race("monitor", setting, "unmonitored", ours, theirs, at_most=1.02 if wrapped else 1.2, rounds=rounds)


def _classifiers(dense: Sizes, conv: Sizes) -> Iterator[tuple[Network, int, str]]:
    """A dense and a convolutional network of these sizes, each with its batch and both in words."""
    depth, width, batch = dense
    network = mlp(width, [width] * (depth - 1), OUTPUTS, activation="relu", init="he_normal")
    yield network, batch, f"dense, {depth} layers of {width}, batch {batch}"
    depth, channels, batch = conv
    network = cnn((16, 16, channels), [channels] * (depth - 2), OUTPUTS, activation="relu", init="he_normal")
    yield network, batch, f"conv, {depth} layers of {channels} channels, 16 x 16, batch {batch}"


def _loss(network: Network, batch: int) -> Callable[..., Any]:
    """The loss on Gaussian inputs, by layers with their parameters and by probes, if there are any."""
    x, labels = jax.random.normal(jax.random.key(1), (batch, *network.input_shape)), jnp.arange(batch) % OUTPUTS

    def loss(layers: list[Any], places: Sequence[Probe | None] = (None,) * network.depth) -> Any:
        h = x  # without a scan: on a CPU, XLA runs a convolution's gradient badly inside one
        for (layer, p), place in zip(layers, places, strict=True):
            h = probe(layer.apply(p, h), place)
        return optax.losses.softmax_cross_entropy_with_integer_labels(h, labels).mean()

    return loss


def training(runs: tuple[int, int] = (8, 8), steps: int = 500) -> Iterator[Row]:
    """A sweep over seeds and rates of small networks against training them one by one, in two ways.

    Either each rate is a constant of its own program, as in `optax.sgd(0.1)`, or all share one program.
    """
    network = mlp(64, [16, 16], OUTPUTS, activation="tanh", init="glorot_uniform")
    data, key = digits(), jax.random.key(0)
    seeds, rates = runs[0], [0.01 * 1.7**power for power in range(runs[1])]
    settings: dict[str, Any] = {"steps": steps, "batch_size": 8, "watch": (data.x_test[:50], data.y_test[:50])}
    starts = [network.init(key=one) for one in jax.random.split(key, seeds)]

    def together() -> Any:
        found = train_many(network, data, optax.sgd, learning_rates=rates, seeds=seeds, key=key, **settings)
        return found[1].loss

    def one_by_one(*, share: bool) -> Any:
        losses = []
        for start, rate in product(starts, rates):
            rule: Any = {"optimizer": optax.sgd, "learning_rate": rate} if share else {"optimizer": optax.sgd(rate)}
            losses.append(train(network, start, data, key=key, progress=False, **rule, **settings)[1].loss)
        return losses

    setting = f"training {seeds * len(rates)} nets, 2 layers of 16, {steps} steps"
    theirs = partial(one_by_one, share=True)
    yield race("training", setting, "one by one, one program", together, theirs, at_least=1.0)
    ours, theirs = partial(_cold, together), partial(_cold, partial(one_by_one, share=False))
    setting, against = f"{setting}, compiled too", "one by one, a program each"
    yield race("training", setting, against, ours, theirs, at_least=8.0, rounds=1, warm=False)


CASES: dict[str, Callable[[], Iterator[Row]]] = {
    case.__name__: case for case in (sweep, torch, compiling, convolution, matfree, probes, monitor, training)
}
NEEDED = ("torch", "matfree")  # by the cases of these names
