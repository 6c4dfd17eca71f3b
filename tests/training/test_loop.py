"""Training against a hand-written loop; runs that diverge, are interrupted, or make no sense."""

import io
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradcourse.measure.gradients import parameter_gradient_norms
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import mlp, sequential
from gradcourse.training.data import digits
from gradcourse.training.history import History
from gradcourse.training.loop import accuracy, cross_entropy, train
from gradcourse.training.runs import Run

NETWORK = mlp(64, [16], 10, activation="tanh", init="glorot_uniform")
DATA = digits()
WATCH = (DATA.x_test[:50], DATA.y_test[:50])
SETTINGS = {"batch_size": 8, "every": 50, "watch": WATCH, "progress": False}
MOMENTUM = optax.sgd(0.05, momentum=0.9)


@pytest.fixture(scope="module")
def whole() -> tuple[Run, History]:
    """A run of 200 steps without interruption."""
    start = NETWORK.init(key=jax.random.key(0))
    return train(NETWORK, start, DATA, MOMENTUM, steps=200, key=jax.random.key(1), **SETTINGS)


def same(one: object, other: object) -> bool:
    """Whether two pytrees hold equal numbers, to the last bit."""
    return all(bool(jnp.array_equal(a, b)) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_cross_entropy_and_accuracy_are_those_of_numpy() -> None:
    params = NETWORK.init(key=jax.random.key(0))
    logits = np.asarray(NETWORK.apply(params, DATA.x_test), np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    y = np.asarray(DATA.y_test)
    expected = -log_probability[np.arange(len(y)), y].mean()
    assert float(cross_entropy(NETWORK, params, DATA.x_test, DATA.y_test)) == pytest.approx(expected, rel=1e-5)
    assert float(accuracy(NETWORK, params, DATA.x_test, DATA.y_test)) == pytest.approx((logits.argmax(1) == y).mean())


def test_the_scan_takes_the_steps_of_a_plain_loop() -> None:
    start, key = NETWORK.init(key=jax.random.key(0)), jax.random.key(1)
    optimizer = optax.sgd(0.1, momentum=0.9)
    run, history = train(NETWORK, start, DATA, optimizer, steps=5, batch_size=8, key=key, watch=WATCH)
    params, state = start, optimizer.init(start)
    for step in range(5):
        x, y = DATA.batch(8, key=jax.random.fold_in(key, step))
        loss, gradient = jax.value_and_grad(lambda p, x=x, y=y: cross_entropy(NETWORK, p, x, y))(params)
        assert float(loss) == pytest.approx(float(history.batch_loss[step]), rel=1e-5)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    for one, other in zip(jax.tree.leaves(run.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert float(history.loss[-1]) == pytest.approx(float(cross_entropy(NETWORK, params, *WATCH)), rel=1e-5)
    assert float(history.accuracy[-1]) == pytest.approx(float(accuracy(NETWORK, params, *WATCH)), rel=1e-5)


def test_training_learns_and_leaves_the_start_alone(whole) -> None:
    run, history = whole
    assert history.step.tolist() == [0, 50, 100, 150, 200]
    assert history.loss[-1] < history.loss[0] / 2
    assert history.batch_loss.shape == (200,)
    assert not history.diverged
    assert history.final_loss == history.loss[-1]
    assert accuracy(NETWORK, run.params, DATA.x_test, DATA.y_test) > 0.8


@pytest.mark.parametrize("pieces", [2, 4])
def test_an_interrupted_run_is_the_same_run(whole, pieces: int, tmp_path) -> None:
    run, history = NETWORK.init(key=jax.random.key(0)), None
    for piece in range(pieces):
        key = {"key": jax.random.key(1)} if piece == 0 else {}
        run, part = train(NETWORK, run, DATA, MOMENTUM, steps=200 // pieces, **key, **SETTINGS)
        history = part if history is None else history.then(part)
        run.save(tmp_path / "run.npz")
        run = Run.load(tmp_path / "run.npz", NETWORK, MOMENTUM)
    assert same(run, whole[0])
    assert same(history, whole[1])


def test_what_a_run_watches_does_not_change_it(whole) -> None:
    start = NETWORK.init(key=jax.random.key(0))
    run, history = train(NETWORK, start, DATA, MOMENTUM, steps=200, batch_size=8, key=jax.random.key(1))
    assert history.step.tolist() == [0, 200]
    for one, other in zip(jax.tree.leaves(run.params), jax.tree.leaves(whole[0].params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_looks_are_snapshots_wherever_they_are_asked_for(whole) -> None:
    start, settings = NETWORK.init(key=jax.random.key(0)), SETTINGS | {"every": None, "looks": [50, 60, 200]}
    run, history = train(NETWORK, start, DATA, MOMENTUM, steps=200, key=jax.random.key(1), **settings)
    assert history.step.tolist() == [50, 60, 200]
    np.testing.assert_allclose(history.loss[jnp.array([0, 2])], whole[1].loss[jnp.array([1, 4])], rtol=1e-4)
    np.testing.assert_allclose(history.batch_loss, whole[1].batch_loss, rtol=1e-3)
    more, later = train(NETWORK, run, DATA, MOMENTUM, steps=3, **settings | {"looks": (0, 3)})
    assert history.then(later).step.tolist() == [50, 60, 200, 203]
    assert int(more.step) == 203


def norms(network, params, x, y):
    """What somebody wants to see: a profile, and how much of the weights is positive."""
    share = jnp.stack([(stage["weight"] > 0).mean() for stage in params])
    return {"gradient": parameter_gradient_norms(network, params, x, y), "positive": share}


def test_what_is_observed_is_recorded_beside_the_history(whole) -> None:
    start, settings = NETWORK.init(key=jax.random.key(0)), SETTINGS | {"observe": norms}
    run, history = train(NETWORK, start, DATA, MOMENTUM, steps=100, key=jax.random.key(1), **settings)
    run, later = train(NETWORK, run, DATA, MOMENTUM, steps=100, **settings)
    both = history.then(later)
    seen = both.observed["gradient"].log10_norm
    np.testing.assert_allclose(seen, both.parameter_gradient.log10_norm, atol=1e-3)
    assert seen.shape == (5, 2)
    np.testing.assert_allclose(both.observed["positive"][-1], norms(NETWORK, run.params, *WATCH)["positive"])
    assert whole[1].observed is None


def test_one_program_serves_every_rate_and_every_run() -> None:
    traces = []

    def counted(s):
        traces.append(s.shape)
        return jnp.tanh(s)

    network = mlp(64, [16], 10, activation=counted)
    start = network.init(key=jax.random.key(0))
    arguments = {"steps": 4, "key": jax.random.key(1), "watch": WATCH}
    train(network, start, DATA, optax.sgd, learning_rate=0.1, **arguments)
    first = len(traces)
    train(network, start, DATA, optax.sgd, learning_rate=0.7, **arguments)
    assert len(traces) == first


def test_a_diverged_run_keeps_its_last_sound_parameters() -> None:
    network = mlp(64, [16] * 3, 10, activation="relu", init="he_normal")
    start, key = network.init(key=jax.random.key(0)), jax.random.key(1)
    run, history = train(
        network, start, DATA, optax.sgd, learning_rate=1e6, steps=20, every=10, batch_size=8, key=key, watch=WATCH
    )
    at = int(history.diverged_at)
    assert 0 < at < 20
    assert bool(history.diverged)
    assert history.final_loss == np.inf
    floating = [leaf for leaf in jax.tree.leaves((run, history)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert not any(bool(jnp.isnan(leaf).any()) for leaf in floating)  # a norm of 0 has the log minus infinity
    assert bool(jnp.isfinite(history.loss).all())
    # What it keeps is what a plain loop had before the first loss that is not finite.
    params = start
    for step in range(at):
        x, y = DATA.batch(8, key=jax.random.fold_in(key, step))
        loss, gradient = jax.value_and_grad(lambda p, x=x, y=y: cross_entropy(network, p, x, y))(params)
        assert bool(jnp.isfinite(loss))
        previous, params = params, jax.tree.map(lambda p, g: p - 1e6 * g, params, gradient)
    kept = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(run.params)])
    candidates = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(p)]) for p in (previous, params)]
    assert min(np.abs(kept - other).max() / np.abs(other).max() for other in candidates) < 1e-3


class Terminal(io.StringIO):
    """What a progress bar takes for a terminal."""

    def isatty(self) -> bool:
        """Returns that it is one."""
        return True


@pytest.mark.parametrize("stderr", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_progress_is_shown_on_a_terminal_and_changes_nothing(whole, stderr, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    start, settings = NETWORK.init(key=jax.random.key(0)), SETTINGS | {"progress": True}
    run, history = train(NETWORK, start, DATA, MOMENTUM, steps=200, key=jax.random.key(1), **settings)
    assert ("/200" in stderr.getvalue()) is stderr.isatty()
    assert same(run, whole[0])
    assert same(history, whole[1])


def test_adam_starts_with_steps_of_the_learning_rate() -> None:
    start = NETWORK.init(key=jax.random.key(0))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes an integer count with its rates
        run, _ = train(
            NETWORK, start, DATA, optax.adam, learning_rate=1e-3, steps=1, key=jax.random.key(1), watch=WATCH
        )
    moved = jnp.abs(run.params[-1]["weight"] - start[-1]["weight"])
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-2)


def test_convolutions_train_too() -> None:
    data = digits(images=True)
    network = sequential((8, 8, 1), [Conv(4, "relu", initializer="he_normal"), Flatten(), Dense(10)])
    start = network.init(key=jax.random.key(0))
    _, history = train(network, start, data, optax.sgd(0.1), steps=100, batch_size=16, key=jax.random.key(1))
    assert history.loss[-1] < history.loss[0] / 2
    assert history.parameter_gradient.layers == ("0 conv", "2 dense")


class NoLabels:
    """Data whose labels are floating-point numbers."""

    def batch(self, size, *, key):
        """Returns ones."""
        return jnp.ones((size, 64)), jnp.ones(size)


jax.tree_util.register_static(NoLabels)


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (ValueError, "steps=0", {"steps": 0}),
        (ValueError, "batch_size=-3", {"batch_size": -3}),
        (ValueError, "every=3 does not divide steps=4", {"every": 3}),
        (ValueError, r"looks=\[0, 3\] is accepted .* steps=4 as the last", {"looks": [0, 3]}),
        (ValueError, r"looks=\[3, 1, 4\] is accepted .* increasing", {"looks": [3, 1, 4]}),
        (TypeError, r"looks=\[0.5, 4.0\] is accepted as a sequence of whole", {"looks": [0.5, 4.0]}),
        (TypeError, "every=2 and looks=.* both say when to look", {"every": 2, "looks": [4]}),
        (TypeError, "key is missing", {"key": None}),
        (TypeError, "learning_rate is missing", {"learning_rate": None}),
        (ValueError, "learning_rate=-1", {"learning_rate": -1.0}),
        (ValueError, "learning_rate=nan", {"learning_rate": float("nan")}),
        (TypeError, r"an optimiser such as optax.sgd\(0.1\) has its own", {"optimizer": optax.sgd(0.1)}),
        (TypeError, "optimizer='sgd' is a str", {"optimizer": "sgd"}),
        (TypeError, "data is a tuple without a method batch", {"data": ()}),
        (ValueError, r"data has examples of shape \(8, 8, 1\)", {"data": digits(images=True)}),
        (ValueError, "data has labels of shape .* float32", {"data": NoLabels()}),
        (ValueError, "watch has labels from 0 to 12", {"watch": (WATCH[0][:2], jnp.array([0, 12]))}),
        (ValueError, r"watch has labels of shape \(3,\)", {"watch": (WATCH[0][:2], jnp.zeros(3, int))}),
        (ValueError, r"x has shape \(2, 5\)", {"watch": (jnp.ones((2, 5)), jnp.zeros(2, int))}),
        (ValueError, "params have the shapes", {"start": mlp(64, [3], 10).init(key=jax.random.key(0))}),
    ],
)
def test_bad_input_is_refused(error: type[Exception], words: str, arguments: dict) -> None:
    usual = {
        "start": NETWORK.init(key=jax.random.key(0)),
        "data": DATA,
        "optimizer": optax.sgd,
        "learning_rate": 0.1,
        "steps": 4,
        "key": jax.random.key(1),
    }
    with pytest.raises(error, match=words):
        train(NETWORK, **usual | arguments)


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_a_run_that_goes_on_has_its_own_key(whole) -> None:
    with pytest.raises(TypeError, match="key is accepted with fresh parameters only"):
        train(NETWORK, whole[0], DATA, MOMENTUM, steps=50, key=jax.random.key(1))


def test_runs_are_read_only_for_what_they_are(whole, tmp_path) -> None:
    path = tmp_path / "run.npz"
    load = partial(Run.load, path, NETWORK)
    with pytest.raises(FileNotFoundError):
        load(MOMENTUM)
    whole[0].save(path)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"has float32.* accepted for this network and optimiser is nothing"):
        load(optax.sgd)
    with pytest.raises(
        ValueError, match=r"has float32\(1, 16\) as .optimizer_state.*; accepted .* is float32\(1, 17\)"
    ):
        Run.load(path, mlp(64, [17], 10), MOMENTUM)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is no run written by Run"):
        load(MOMENTUM)
    path.write_text("hello")
    with pytest.raises(ValueError, match="is no run written by Run"):
        load(MOMENTUM)
