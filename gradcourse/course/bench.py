"""Benchmarks: what the measurements cost, as ratios to alternatives that are timed in the same run.

`python -m gradcourse bench` prints the table and, with `--json FILE`, records it with the machine, the versions and
the command. The two programs of a row run in turn, round after round, so that whatever else the machine does meets
both; the ratio is the median over rounds of the rounds' ratios, and its spread half their interquartile range.

>>> row = race("doctest", "nothing", "itself", lambda: 0, lambda: 0, at_most=1e9, rounds=3)
>>> row.holds
True
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gradcourse._checks import known_name
from gradcourse.course import contenders
from gradcourse.course.provenance import in_words, provenance
from gradcourse.diagnosis.monitoring import monitor as monitor_of
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.network import Network, Params, cnn, mlp
from gradcourse.probes import Probe, probe
from gradcourse.training.data import digits
from gradcourse.training.loop import train
from gradcourse.training.sweeps import sweep as train_many

__all__ = [
    "CASES",
    "Record",
    "Row",
    "chosen",
    "depth_scan",
    "matrix_product_peak",
    "race",
    "run",
    "sweep_shares",
    "table",
]

BATCH, OUTPUTS = 32, 10
SIZES = ((1000, 64), (1000, 256), (100, 1024))  # depth and width


@dataclass(frozen=True)
class Row:
    """One comparison: seconds of ours and theirs, and their ratio with the bar it is held to.

    With `at_most` the ratio is ours over theirs; with `at_least` it is theirs over ours: how many times faster.
    """

    case: str
    setting: str
    against: str
    ours: float
    theirs: float
    ratio: float
    spread: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the ratio is within its bar."""
        return self.ratio <= self.at_most if self.at_most is not None else self.ratio >= (self.at_least or 0)

    @property
    def bar(self) -> str:
        """The bar in words."""
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"


def race(
    case: str,
    setting: str,
    against: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    rounds: int = 9,
    warm: bool = True,
) -> Row:
    """Returns the row of two programs, timed in turn; with `warm` each runs once before, to compile."""
    if warm:
        seconds(ours), seconds(theirs)
    pairs = np.array([(seconds(ours), seconds(theirs)) for _ in range(rounds)])
    ratios = pairs[:, 0] / pairs[:, 1] if at_most is not None else pairs[:, 1] / pairs[:, 0]
    low, ratio, high = np.percentile(ratios, [25, 50, 75])
    mine, other = map(float, np.median(pairs, axis=0))
    return Row(case, setting, against, mine, other, float(ratio), float(high - low) / 2, at_most, at_least)


def seconds(program: Callable[[], Any]) -> float:
    """Returns how long `program` takes until its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - start


# The cases. Each yields rows; those against PyTorch and matfree only where these are installed.


def _dense(depth: int, width: int, activation: str = "sigmoid") -> tuple[Network, Params, Any]:
    network = mlp(width, [width] * (depth - 1), OUTPUTS, activation=activation)
    return network, network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (BATCH, width))


def sweep(sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Row]:
    """The sweep against its bare matrix products, and against the same sweep outside the log domain."""
    for depth, width in sizes:
        network, params, x = _dense(depth, width)
        ours, setting = partial(backward_jacobian_norms, network, params, x), f"dense, {depth} layers of {width}"
        bare, plain = (make(network, params, x) for make in (contenders.bare_products, contenders.plain_sweep))
        yield race("sweep", setting, "bare matrix products", ours, bare, at_most=1.15)
        yield race("sweep", setting, "sweep without logs", ours, plain, at_most=1.1)


def torch(sizes: Sequence[tuple[int, int]] = SIZES, shallow: int = 50) -> Iterator[Row]:
    """The sweep against PyTorch."""
    for (depth, width), times in zip(sizes, (2.5, 1.1, 1.0), strict=False):
        network, params, x = _dense(depth, width)
        ours, setting = partial(backward_jacobian_norms, network, params, x), f"dense, {depth} layers of {width}"
        theirs = contenders.torch_batched(network, params, x)
        yield race("torch", setting, "torch.autograd.grad, batched", ours, theirs, at_least=times)
    network, params, x = _dense(shallow, 64)
    ours = partial(backward_jacobian_norms, network, params, x)
    theirs = contenders.torch_jacrev_per_layer(network, params, x)
    yield race("torch", f"dense, {shallow} layers of 64", "torch.func.jacrev per layer", ours, theirs, at_least=20.0)


def compiling(shallow: int = 50, depths: tuple[int, int] = (8, 8192), rounds: int = 5) -> Iterator[Row]:
    """Compile time: against one `jax.jacrev` per layer, which is run once, and of many layers against few."""
    network, params, x = _dense(shallow, 64)

    def cold(program: Callable[[], Any]) -> Any:
        jax.clear_caches()
        return program()

    ours = partial(cold, partial(backward_jacobian_norms, network, params, x))
    theirs = partial(cold, lambda: contenders.jax_jacrev_per_layer(network, params, x)())
    setting = f"dense, {shallow} layers of 64, with compile time"
    yield race("compiling", setting, "jax.jacrev per layer", ours, theirs, at_least=20.0, rounds=rounds, warm=False)
    deep, few = (partial(compile_sweep, _dense(depth, 64)[0]) for depth in reversed(depths))
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
        for (layer, p), place in zip(contenders.layers_of(network, params), found, strict=True):
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
    params = contenders.layers_of(network, network.init(key=jax.random.key(0)))
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


# Time and compile time against depth, for the book's figure


def depth_scan(
    depths: Sequence[int] = (2, 8, 32, 128, 512, 2048, 8192), *, patience: float = 20, rounds: int = 5
) -> list[dict[str, Any]]:
    """Returns seconds to run and to compile each way of measuring all layers of width 64, against depth.

    A way is left off where a smaller depth has taken more than `patience` seconds. PyTorch compiles nothing.
    """
    ways: dict[str, Callable[..., Callable[[], Any]]] = {
        "one sweep, scanned": lambda *net: partial(backward_jacobian_norms, *net),
        "jax.jacrev per layer": contenders.jax_jacrev_per_layer,
    }
    if find_spec("torch"):
        ways |= {
            "torch.autograd.grad, batched": contenders.torch_batched,
            "torch.func.jacrev per layer": contenders.torch_jacrev_per_layer,
        }
    points = []
    for way, make in ways.items():
        for depth in depths:
            program = make(*_dense(depth, 64))
            jax.clear_caches()
            first = seconds(program)
            again = float(np.median([seconds(program) for _ in range(rounds if first < 1 else 1)]))
            compiled = max(first - again, 0) if "torch" not in way else 0.0
            points.append({"way": way, "depth": depth, "run": again, "compile": compiled})
            if first > patience:
                break
    return points


def matrix_product_peak(size: int = 2048, rounds: int = 9) -> float:
    """Returns the floating-point operations per second of the fastest round of a large float32 matrix product."""
    a = jnp.ones((size, size))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=lax.Precision.HIGHEST))
    seconds(partial(product, a))
    return 2 * size**3 / min(seconds(partial(product, a)) for _ in range(rounds))


def sweep_shares(sizes: Sequence[tuple[int, int]] = SIZES, rounds: int = 5) -> dict[str, float]:
    """Returns, per size, the share of that peak at which the sweep's matrix products are worked off."""
    peak, shares = matrix_product_peak(), {}
    for depth, width in sizes:
        program = partial(backward_jacobian_norms, *_dense(depth, width))
        seconds(program)
        operations = 2 * depth * width**2 * BATCH * (1 + OUTPUTS)
        shares[f"dense, {depth} layers of {width}"] = operations / min(seconds(program) for _ in range(rounds)) / peak
    return shares


# The record


@dataclass(frozen=True)
class Record:
    """The results of a run, and what they depend on."""

    provenance: dict[str, Any]
    rows: tuple[Row, ...]
    depth_scan: list[dict[str, Any]]
    matrix_product_peak: float
    shares_of_peak: dict[str, float]

    @classmethod
    def read(cls, path: Path | str) -> "Record":
        """Returns the record in the JSON file at `path`."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**fields | {"rows": tuple(Row(**row) for row in fields["rows"])})

    def write(self, path: Path | str) -> None:
        """Writes the record as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        """What machine, when and how, in a few lines."""
        return in_words(self.provenance)


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text, one a line, with times in milliseconds."""
    lines = [("what", "against", "ours, ms", "theirs, ms", "ratio", "bar", "")]
    for row in rows:
        ratio = f"{row.ratio:.3g} +- {row.spread:.2g}"
        times = (f"{1e3 * row.ours:.4g}", f"{1e3 * row.theirs:.4g}")
        lines.append((row.setting, row.against, *times, ratio, row.bar, "holds" if row.holds else "MISSED"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def chosen(cases: Sequence[str]) -> list[str]:
    """Returns the names of the cases to run, all if none is named; raises `ValueError` for an unknown one."""
    return [known_name("case", name, tuple(CASES)) for name in cases] or list(CASES)


def run(cases: Sequence[str] = (), record: Path | None = None) -> list[Row]:
    """Runs the named cases (all by default), prints their table, and writes the record where one is asked for.

    The record also holds the depth scan and the shares of the matrix-product peak. Rows against a package that is not
    installed are left off, and a line says so. Raises as `chosen`.
    """
    rows: list[Row] = []
    for name in chosen(cases):
        if name in NEEDS and not find_spec(NEEDS[name]):
            print(f"{name}: left off, {NEEDS[name]} is not installed (pip install -e '.[bench]')", file=sys.stderr)
            continue
        for row in CASES[name]():
            rows.append(row)
            print(table([row]).splitlines()[1], file=sys.stderr, flush=True)
    print(table(rows))
    if record is not None:
        command = " ".join(["python -m gradcourse bench", *cases, "--json", record.name])
        settings = {"batch": BATCH, "outputs": OUTPUTS, "dtype": "float32", "matmul precision": "highest"}
        source = provenance(command, packages=("torch", "matfree")) | {"settings": settings}
        Record(source, tuple(rows), depth_scan(), matrix_product_peak(), sweep_shares()).write(record)
        print(f"recorded in {record}")
    return rows
