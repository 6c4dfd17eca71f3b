"""The monitor changes nothing, keeps what it should, and says it in the order of time."""

import json
import sys
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import gradcourse as gc
from gradcourse.diagnosis.findings import THRESHOLDS
from gradcourse.diagnosis.monitor_history import MonitorHistory
from gradcourse.diagnosis.monitoring import monitor
from gradcourse.profile import Profile

X = jax.random.normal(jax.random.key(0), (8, 4))
PARAMS = {
    "body": {"dense": {"weight": 0.3 * jax.random.normal(jax.random.key(1), (4, 5)), "bias": jnp.zeros(5)}},
    "head": {"weight": 0.5 * jax.random.normal(jax.random.key(2), (5, 1))},
}
LAYERS = ("body.dense", "head")
MOMENTUM = optax.sgd(0.1, momentum=0.9)
third = itemgetter(2)


@pytest.fixture
def promotion_of_others():
    """Optax's Adam, Equinox and Flax count on JAX's usual rules for mixed dtypes, which our tests forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def loss(params):
    dense = params["body"]["dense"]
    h = jnp.maximum(X @ dense["weight"] + dense["bias"][None] - 0.5, 0)
    return jnp.mean(jnp.square(h @ params["head"]["weight"] - 1))


def stepper(optimizer, **options):
    @partial(jax.jit, **options)
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def run(optimizer, steps=7, wrap=lambda step: step, **options):
    """The last parameters, state and loss."""
    step = wrap(stepper(optimizer, **options))
    params, value = jax.tree.map(jnp.copy, PARAMS), None
    state = optimizer.init(params)
    for _ in range(steps):
        params, state, value = step(params, state)
    return params, state, value


def same(one, other):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "momentum": MOMENTUM,
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
}


@pytest.mark.usefixtures("promotion_of_others")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_training_is_the_same_to_the_last_bit(name):
    watch, plain = monitor(every=2, keep=3), run(OPTIMIZERS[name])
    for wrap in (lambda step: step, watch.wrap):
        params, state, value = run(watch.optimizer(OPTIMIZERS[name]), wrap=wrap)
        same((params, state.inner, value), plain)


def reference(optimizer, steps=7):
    """What there is to see, in NumPy float64."""
    params, state, seen = PARAMS, optimizer.init(PARAMS), []

    def norms(tree):
        parts = (tree["body"], tree["head"])
        flat = [np.concatenate([np.ravel(np.float64(leaf)) for leaf in jax.tree.leaves(part)]) for part in parts]
        return np.array([np.sqrt(np.sum(one**2)) for one in flat]), [np.mean(one == 0) for one in flat]

    for _ in range(steps):
        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        (size, zeros), (moved, _), (weight, _) = norms(gradient), norms(updates), norms(params)
        seen.append((np.log10(size), moved / weight, zeros))
        params = optax.apply_updates(params, updates)
    return [np.array(part) for part in zip(*seen, strict=True)]


@pytest.mark.usefixtures("promotion_of_others")
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_last_snapshots_are_kept_in_order_of_time(wrapped):
    watch, optimizer = monitor(every=2, keep=3), optax.adam(1e-2)
    _, state, _ = run(watch.optimizer(optimizer), steps=9, wrap=watch.wrap if wrapped else lambda step: step)
    history = watch.history(state)
    assert history.layers == LAYERS
    np.testing.assert_array_equal(history.step, [4, 6, 8])  # of 0, 2, 4, 6, 8
    gradient, ratio, zeros = (part[[4, 6, 8]] for part in reference(optimizer, 9))
    np.testing.assert_allclose(history.gradient.log10_norm, gradient, atol=1e-4)
    np.testing.assert_allclose(history.values()["update_to_weight"], ratio, rtol=1e-4)
    np.testing.assert_allclose(history.zero_share, zeros, atol=1e-6)
    assert history.finite.all()
    assert history.zero_share[:, 0].max() > 0  # the rectifier's silent units are seen


def test_before_and_within_the_first_round_nothing_is_made_up():
    watch = monitor(every=2, keep=3)
    optimizer = watch.optimizer(optax.sgd(0.1))
    empty = watch.history(optimizer.init(PARAMS))
    assert empty.step.shape == (0,)
    assert empty.gradient.log10_norm.shape == (0, 2)
    assert repr(empty) == "0 snapshots of 2 layers"
    assert watch.history(run(optimizer, steps=2)[1]).step.tolist() == [0]


def test_it_works_in_scan_in_vmap_and_with_donated_buffers():
    watch = monitor(every=2, keep=3)
    optimizer = watch.optimizer(MOMENTUM)
    step = stepper(optimizer)
    _, expected, _ = run(optimizer)

    @jax.jit
    def scanned(params):
        def one(carry, _):
            return step(*carry)[:2], None

        return lax.scan(one, (params, optimizer.init(params)), length=7)[0][1]

    same(scanned(PARAMS).count, expected.count)
    np.testing.assert_allclose(scanned(PARAMS).seen, expected.seen, rtol=1e-5)
    np.testing.assert_allclose(run(optimizer, donate_argnums=(0, 1))[1].seen, expected.seen, rtol=1e-5)

    two = jax.vmap(scanned)(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS))
    np.testing.assert_allclose(two.seen[0], expected.seen, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"is of \(2,\) runs; accepted is one run's"):
        watch.history(two)
    first = watch.history(jax.tree.map(lambda leaf: leaf[0], two))
    np.testing.assert_array_equal(first.step, watch.history(expected).step)


def once(gradient, params, inner=None):
    watch = monitor(every=1, keep=2)
    optimizer = watch.optimizer(optax.sgd(1.0) if inner is None else inner)
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    return watch.history(state)


def test_no_magnitude_is_lost_and_what_is_not_finite_is_seen():
    params = {name: {"w": jnp.ones(4)} for name in ("a", "b", "c", "d", "e")}
    values = {"a": 1e-30, "b": 1e30, "c": 0.0, "d": jnp.nan, "e": jnp.inf}
    gradient = {name: {"w": jnp.full(4, value)} for name, value in values.items()}
    history = once(gradient, params)
    np.testing.assert_allclose(
        history.gradient.log10_norm[0], [-30 + np.log10(2), 30 + np.log10(2), -np.inf, np.nan, np.inf], rtol=1e-6
    )
    np.testing.assert_allclose(history.values()["update_to_weight"][0], [1e-30, 1e30, 0, np.nan, np.inf], rtol=1e-4)
    np.testing.assert_array_equal(history.zero_share[0], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(history.finite[0], [True, True, True, False, False])
    written = json.dumps(history.to_dict(), allow_nan=False)
    assert json.loads(written)["log10_gradient"][0][2:] == ["-inf", None, "inf"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_other_number_formats(dtype):
    params = {"a": {"w": jnp.full(4, 2, dtype)}, "b": jnp.full(4, 2, dtype), "index": jnp.arange(3)}
    gradient = {"a": {"w": jnp.full(4, 0.5, dtype)}, "b": jnp.full(4, 0.25, dtype), "index": None}
    history = once(gradient, params, optax.identity())
    assert history.layers == ("a", "b")  # whole numbers are no weights
    np.testing.assert_allclose(history.gradient.log10_norm[0], np.log10([1, 0.5]), atol=1e-6)
    np.testing.assert_allclose(history.values()["update_to_weight"][0], [0.25, 0.125], rtol=1e-6)


def test_float64_is_measured_in_float64():
    with jax.enable_x64(True):
        params = {"a": jnp.full(4, 0.5, jnp.float64)}
        history = once({"a": jnp.full(4, 0.5e-200, jnp.float64)}, params)
        assert history.gradient.log10_norm[0, 0] == pytest.approx(-200, rel=1e-6)


def test_without_parameters_there_is_no_ratio():
    watch = monitor(every=1)
    optimizer = watch.optimizer(optax.sgd(0.1))
    _, state = optimizer.update(PARAMS, optimizer.init(PARAMS))
    assert np.isnan(watch.history(state).values()["update_to_weight"]).all()
    assert watch.history(state).finite.all()


@pytest.mark.usefixtures("promotion_of_others")
def test_it_is_found_inside_other_optimisers():
    watch = monitor(every=1)
    inner = watch.optimizer(optax.adam(1e-2))
    several = optax.MultiSteps(inner, 2).gradient_transformation()
    changing = watch.optimizer(optax.inject_hyperparams(optax.adam)(learning_rate=1e-2))
    for optimizer, steps in (
        (optax.chain(optax.clip(1.0), inner), [0, 1, 2, 3]),
        (optax.apply_if_finite(inner, 3), [0, 1, 2, 3]),
        (several, [0, 1]),  # two updates of four gradients
        (changing, [0, 1, 2, 3]),
    ):
        for wrap in (lambda step: step, watch.wrap):
            _, state, _ = run(optimizer, steps=4, wrap=wrap)
            assert watch.history(state).step.tolist() == steps
    with pytest.raises(ValueError, match="holds the states of 2 monitored optimisers; accepted is one"):
        watch.history(optax.chain(inner, inner).init(PARAMS))
    with pytest.raises(ValueError, match="holds the states of 0 monitored optimisers"):
        watch.history(optax.adam(1e-2).init(PARAMS))


def test_further_arguments_reach_the_optimiser():
    def update(updates, state, params=None, *, factor):
        return jax.tree.map(lambda leaf: factor * leaf, updates), state

    optimizer = monitor().optimizer(optax.GradientTransformationExtraArgs(lambda params: (), update))
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, factor=2.0)
    np.testing.assert_array_equal(updates["head"]["weight"], 2 * PARAMS["head"]["weight"])


def test_layers_that_are_stacked_are_told_apart():
    network = gc.mlp(3, [3] * 4, 2)
    params = network.init(key=jax.random.key(0))
    scale = (jnp.array([1.0, 10.0, 100.0, 1000.0]), jnp.ones(1))
    gradient = tuple(
        jax.tree.map(lambda leaf, by=by: leaf.at[:].set(by.reshape(-1, *[1] * (leaf.ndim - 1))), stage)
        for stage, by in zip(params, scale, strict=True)
    )
    count = np.sqrt([12, 12, 12, 12, 8])  # weights and biases
    for watch, layers in (
        (monitor(network=network), network.layer_names),
        (monitor(stacked=["0"]), ("0.0", "0.1", "0.2", "0.3", "1")),
    ):
        optimizer = watch.optimizer(optax.sgd(1.0))
        _, state = optimizer.update(gradient, optimizer.init(params), params)
        history = watch.history(state)
        assert history.layers == layers
        np.testing.assert_allclose(10 ** history.gradient.log10_norm[0], count * [1, 10, 100, 1000, 1], rtol=1e-5)
    with pytest.raises(ValueError, match="stacked='blocks' is not known"):
        monitor(stacked=["blocks"]).optimizer(optax.sgd(1.0)).init(params)
    with pytest.raises(ValueError, match=r"params has 'body\.dense', which is no stage of network"):
        monitor(network=network).optimizer(optax.sgd(1.0)).init(PARAMS)


# ---- the step


def test_a_wrapped_step_is_the_step_and_notes_what_it_did():
    watch, optimizer = monitor(every=3, keep=2), optax.sgd(0.1)
    step = watch.wrap(stepper(optimizer, donate_argnums=(0, 1)), loss=third)
    plain = stepper(optimizer)
    params, state = jax.tree.map(jnp.copy, PARAMS), optimizer.init(PARAMS)
    known, known_state, losses = PARAMS, state, []
    for _ in range(8):
        params, state, _ = step(params, state)
        known, known_state, value = plain(known, known_state)
        losses.append(float(value))
    same(params, known)
    history = step.history()
    assert history.layers == LAYERS
    np.testing.assert_array_equal(history.step, [3, 6])  # of 0, 3, 6
    np.testing.assert_array_equal(history.loss, [losses[3], losses[6]])
    np.testing.assert_allclose(history.values()["update_to_weight"], reference(optimizer)[1][[3, 6]], rtol=1e-3)
    assert (history.seconds_per_step > 0).all()
    assert history.gradient is None
    assert "seconds per step (median)" in repr(history)
    assert step.__name__ == "step"


def test_step_and_optimiser_together_are_compiled_twice_and_leave_no_trace():
    compiled, watch = [], monitor(every=2)
    optimizer = watch.optimizer(MOMENTUM)

    @jax.jit
    def step(params, state):
        compiled.append(state.about.look)
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state, loss(params)

    wrapped, params, state = watch.wrap(step, loss=third), PARAMS, optimizer.init(PARAMS)
    structure = jax.tree.structure(state)
    for _ in range(6):
        params, state, _ = wrapped(params, state)
        assert jax.tree.structure(state) == structure
    assert compiled == [True, False]
    assert watch.history(state).loss is None
    history = wrapped.history(state)
    np.testing.assert_array_equal(history.step, [0, 2, 4])
    assert history.loss.shape == history.seconds_per_step.shape == (3,)
    assert np.isnan(history.seconds_per_step[0])
    assert wrapped.history().layers == ()  # the optimiser has it all but loss and time


def test_a_train_state_is_looked_into():
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Training:
        params: object
        optimizer_state: object

        def replace(self, **changes):
            return Training(**{"params": self.params, "optimizer_state": self.optimizer_state} | changes)

    watch, looked = monitor(every=2), []
    optimizer = watch.optimizer(optax.sgd(0.1))

    @jax.jit
    def step(training):
        looked.append(training.optimizer_state.about.look)
        gradient = jax.grad(loss)(training.params)
        updates, state = optimizer.update(gradient, training.optimizer_state, training.params)
        return Training(optax.apply_updates(training.params, updates), state)

    training, step = Training(PARAMS, optimizer.init(PARAMS)), watch.wrap(step)
    for _ in range(3):
        training = step(training)
    assert looked == [True, False]
    assert watch.history(training).step.tolist() == [0, 2]


def test_every_wrapped_step_keeps_notes_of_its_own():
    watch = monitor(every=1)
    first = watch.wrap(lambda params, by: params * by, loss=jnp.sum)
    second = watch.wrap(lambda params, by: params / by)
    for _ in range(3):
        first(jnp.ones(2), 3.0)
    second(jnp.ones(2), 4.0)
    assert first.history().step.tolist() == [0, 1, 2]
    assert first.history().loss.tolist() == [6, 6, 6]
    np.testing.assert_allclose(first.history().values()["update_to_weight"], [[2]] * 3, rtol=1e-6)
    assert second.history().loss is None
    np.testing.assert_allclose(second.history().values()["update_to_weight"], [[0.75]], rtol=1e-6)


def test_the_parameters_are_found_by_name_and_by_form():
    pair = (jnp.ones(2), jnp.ones(3))  # a tuple, as networks of this package have it
    halved = lambda pair: jax.tree.map(lambda leaf: leaf / 2, pair)  # noqa: E731
    wrap = monitor(every=1).wrap
    alone = wrap(halved)
    beside = wrap(lambda x, pair: (halved(pair), x), params="pair")
    named = wrap(lambda x, pair: {"x": x, "new": halved(pair)}, params="pair", new_params=lambda result: result["new"])
    alone(pair)
    beside(1.0, pair)
    beside(1.0, pair=pair)
    named(pair=pair, x=1.0)
    for step, count in ((alone, 1), (beside, 2), (named, 1)):
        np.testing.assert_allclose(step.history().values()["update_to_weight"], [[0.5, 0.5]] * count, rtol=1e-6)


def test_an_optimisers_state_is_found_among_named_arguments():
    watch, looked = monitor(every=2), []
    optimizer = watch.optimizer(MOMENTUM)

    @jax.jit
    def step(params, state):
        looked.append(state.about.look)
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    wrapped, params, state = watch.wrap(step), PARAMS, optimizer.init(PARAMS)
    for _ in range(4):
        params, state = wrapped(params=params, state=state)
    assert looked == [True, False]
    assert wrapped.history(state).step.tolist() == [0, 2]


def test_what_a_step_cannot_give_is_refused():
    wrap = monitor(every=1).wrap
    with pytest.raises(ValueError, match=r"params='parms' is not known; did you mean 'params'\?"):
        wrap(lambda params: params, params="parms")
    with pytest.raises(ValueError, match="params is the first argument of the step, which was called without it"):
        wrap(lambda: PARAMS)()
    with pytest.raises(ValueError, match="the step returned a list, and neither that nor its first entry has the form"):
        wrap(lambda params: [1.0, params])(PARAMS)
    with pytest.raises(ValueError, match=r"loss returned an array of shape \(5,\); accepted is a scalar"):
        wrap(lambda params: (params, jnp.ones(5)), loss=lambda result: result[1])(PARAMS)
    with pytest.raises(ValueError, match="holds the states of 0 monitored optimisers"):
        wrap(lambda params: params).history(PARAMS)
    still = wrap(lambda params: params)
    still(PARAMS)
    np.testing.assert_array_equal(still.history().values()["update_to_weight"], [[0, 0]])


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_a_position_is_no_function():
    with pytest.raises(TypeError, match=r"loss=2 is a int; accepted is a function of what the step returns"):
        monitor().wrap(lambda params: params, loss=2)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"every": 0}, ValueError, "every=0 is accepted from 1 up"),
        ({"keep": 1.5}, TypeError, "keep=1.5 is a float"),
        ({"stacked": "blocks"}, TypeError, r"write \['blocks'\]"),
    ],
)
@pytest.mark.usefixtures("no_runtime_typecheck")
def test_wrong_settings(arguments, kind, words):
    with pytest.raises(kind, match=words):
        monitor(**arguments)


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_no_optimiser_and_no_parameters():
    with pytest.raises(TypeError, match="accepted is an optax optimiser"):
        monitor().optimizer(jnp.sin)
    with pytest.raises(ValueError, match="params holds no floating-point array"):
        monitor().optimizer(optax.sgd(0.1)).init({"steps": jnp.arange(3)})


# ---- what is made of a history


class Writer:
    """What every TensorBoard writer has."""

    def __init__(self, folder=None):
        self.folder, self.closed, self.written = folder, False, []

    def add_scalar(self, tag, value, step):
        self.written.append((tag, value, step))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True


@pytest.fixture(scope="module")
def history():
    watch = monitor(every=2)
    return watch.history(run(watch.optimizer(MOMENTUM), steps=5)[1])


def test_scalars_are_written(history, monkeypatch, tmp_path):
    writer = Writer()
    history.write(writer, "run")
    assert len(writer.written) == 3 * 2 * 4
    assert ("run/log10_gradient/body.dense", history.gradient.log10_norm[1, 0], 2) in writer.written
    assert ("run/finite/head", 1.0, 4) in writer.written
    module, opened = ModuleType("tensorboardX"), []
    module.SummaryWriter = lambda folder: opened.append(Writer(folder)) or opened[-1]
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    history.write(tmp_path)
    assert (opened[0].folder, opened[0].closed, len(opened[0].written)) == (str(tmp_path), True, 24)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        history.write(tmp_path)


def test_tensorboardx_writes_a_file(history, tmp_path):
    pytest.importorskip("tensorboardX", reason="an extra: pip install -e '.[tensorboard]'")
    history.write(tmp_path)
    assert any("tfevents" in path.name for path in tmp_path.iterdir())


def test_the_table_is_short_and_the_plot_has_every_layer(history):
    lines = repr(history).splitlines()
    assert lines[0] == "3 snapshots of 2 layers, steps 0 to 4"
    assert [line.split()[0] for line in lines[1:]] == ["layer", *LAYERS]
    assert history.plot("update_to_weight").axes[0].get_yscale() == "log"
    with pytest.raises(ValueError, match="quantity='loss' is not known"):
        history.plot("loss")
    deep = {f"layer{index:02}": {"w": jnp.ones(3)} for index in range(40)}
    many = once(deep, deep)
    shown = repr(many).splitlines()
    assert "layer00" in shown[2]
    assert "layer39" in shown[-2]
    assert shown[-1] == "(28 layers between these are not shown)"
    assert len(many.plot().axes[0].lines) == 12


def test_findings_name_layers_and_steps():
    ratio = np.array([[1e-3, 1e-9, 1e-9], [1e-3, 1e-9, 1e-3], [1e-3, 1e-8, 1e-3]])
    finite = np.ones((3, 3), bool)

    def findings(step, ratio, finite, **options):
        profile = Profile.from_log10(np.log10(ratio), layers=("a", "b", "c"), quantity="update over weight")
        return MonitorHistory(np.array(step), profile, finite).findings(**options)

    (frozen,) = findings([0, 5, 10], ratio, finite)
    assert (frozen.kind, frozen.layers, frozen.threshold) == ("frozen", ("b",), THRESHOLDS["frozen"])
    assert "step 10 the update of b is at most 1e-08" in frozen.evidence
    assert frozen.read_on == "chapter 6 of the course, the learning rate"
    assert findings([0, 5, 10], ratio, finite, read_on={})[0].read_on == ""
    assert findings([0, 5], ratio[:2], finite[:2]) == ()
    finite[1:, 2], finite[2, 0] = False, False
    bad, _ = findings([0, 5, 10], ratio, finite)
    assert (bad.kind, bad.layers) == ("not finite", ("a", "c"))
    assert bad.evidence == "NaN or infinity since step 5, first seen in c"
    (both,) = findings([0, 1, 2], ratio * [[1e-9, 1, 1]], np.ones((3, 3), bool))
    assert both.layers == ("a", "b")
    assert "of a, b is at most 1e-08 of their weights" in both.evidence


# ---- other libraries


@pytest.mark.usefixtures("promotion_of_others")
def test_equinox():
    eqx = pytest.importorskip("equinox")
    watch = monitor(every=2)
    optimizer = watch.optimizer(optax.adam(1e-2))

    @eqx.filter_jit
    def step(model, state):
        value, gradient = eqx.filter_value_and_grad(lambda model: jnp.mean(jnp.square(jax.vmap(model)(X))))(model)
        updates, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, value

    model = eqx.nn.MLP(4, 2, 5, 2, key=jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    step = watch.wrap(step, loss=third)
    for _ in range(4):
        model, state, _ = step(model, state)
    history = step.history(state)
    assert history.layers == ("layers.0", "layers.1", "layers.2")
    np.testing.assert_array_equal(history.step, [0, 2])
    assert history.finite.all()
    assert history.loss[1] < history.loss[0]
    plain = eqx.filter_jit(lambda model: eqx.tree_at(lambda m: m.layers[0].weight, model, replace_fn=lambda w: w * 1.5))
    alone = monitor(every=1).wrap(plain)
    alone(model)
    assert alone.history().values()["update_to_weight"][0, 1:].tolist() == [0, 0]
    assert 0.1 < alone.history().values()["update_to_weight"][0, 0] <= 0.5


@pytest.mark.usefixtures("promotion_of_others")
def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 5, rngs=rngs)
            self.rest = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(2)])

        def __call__(self, x):
            h = self.first(x)
            for layer in self.rest:
                h = jnp.tanh(layer(h))
            return h

    watch, model = monitor(every=2, keep=2), Model(nnx.Rngs(0))
    chained = optax.chain(optax.clip(1.0), watch.optimizer(optax.adam(1e-2)))
    optimizer = nnx.Optimizer(model, chained, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradient = nnx.grad(lambda model: jnp.mean(jnp.square(model(X))))(model)
        optimizer.update(model, gradient)

    for _ in range(6):
        step(model, optimizer)
    history = watch.history(optimizer.opt_state)
    assert history.layers == ("first", "rest.0", "rest.1")
    np.testing.assert_array_equal(history.step, [2, 4])
    assert history.finite.all()
    assert (history.values()["update_to_weight"] > 0).all()
