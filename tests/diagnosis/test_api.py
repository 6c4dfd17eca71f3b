"""Reports on anybody's model: the numbers against hand-written jax and the engine, every form, every bad input."""

import json
from functools import partial

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import gradcourse as gc
from gradcourse.diagnosis.api import diagnose
from gradcourse.probes import Probe, probe

DATA = gc.digits()
X, Y = DATA.x_train[:16], DATA.y_train[:16]
IMAGES = jnp.asarray(X).reshape(-1, 8, 8, 1)
CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
few = partial(diagnose, directions=2)


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def log10(tree) -> float:
    return float(np.log10(np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(tree)))))


def hand_written(layers, readout, weights, x, y):
    """Loss, the gradient at every layer's activation and of every layer's weights, by adding a zero there."""

    def loss(zeros, weights):
        h = x
        for layer, weight, zero in zip([*layers, readout], weights, zeros, strict=True):
            h = layer(h, weight) + zero
        return CROSS_ENTROPY(h, y).mean()

    shapes, h = [], x
    for layer, weight in zip([*layers, readout], weights, strict=True):
        h = layer(h, weight)
        shapes.append(jnp.zeros_like(h))
    value, (activation, parameter) = jax.value_and_grad(loss, argnums=(0, 1))(shapes, weights)
    return value, [log10(one) for one in activation], [log10(one) for one in parameter]


class Mlp(nnx.Module):
    def __init__(self, depth, width, rngs, activation=nnx.tanh):
        self.activation = activation
        self.hidden = nnx.List([nnx.Linear(64 if index == 0 else width, width, rngs=rngs) for index in range(depth)])
        self.readout = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.readout(x)


@pytest.mark.parametrize("seed", range(2))
def test_a_random_flax_model_has_the_norms_of_hand_written_jax(seed: int) -> None:
    depth, width = 2 + seed, 11 + 4 * seed
    model = Mlp(depth, width, nnx.Rngs(seed))
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    weights = [*(state["hidden"][index] for index in range(depth)), state["readout"]]
    linear = lambda h, p: h @ p["kernel"] + p["bias"]  # noqa: E731
    hidden = [lambda h, p: jnp.tanh(linear(h, p))] * depth
    value, activation, parameter = hand_written(hidden, linear, weights, X, Y)
    report = few(model, batch=(X, Y))
    assert [row.name for row in report.layers] == [*(f"hidden.{index}" for index in range(depth)), "readout"]
    np.testing.assert_allclose(report.loss, value, rtol=1e-6)
    np.testing.assert_allclose(report.of("log10_activation_gradient"), activation, atol=1e-5)
    np.testing.assert_allclose(report.of("log10_parameter_gradient"), parameter, atol=1e-5)
    assert list(report.of("count")) == [sum(leaf.size for leaf in one.values()) for one in weights]


class Cnn(eqx.Module):
    convs: list
    linear: eqx.nn.Linear

    def __init__(self, channels, key):
        first, second, last = jax.random.split(key, 3)
        self.convs = [
            eqx.nn.Conv2d(1, channels, 3, padding=1, key=first),
            eqx.nn.Conv2d(channels, channels, 3, stride=2, key=second),
        ]
        self.linear = eqx.nn.Linear(9 * channels, 10, key=last)

    def __call__(self, x):
        for conv in self.convs:
            x = jax.nn.silu(conv(x))
        return self.linear(x.ravel())


@pytest.mark.parametrize("seed", range(2))
def test_a_random_equinox_model_has_the_norms_of_hand_written_jax(seed: int) -> None:
    model = Cnn(3 + seed, jax.random.key(seed))
    x = jnp.moveaxis(IMAGES, -1, 1)

    def conv(h, p, **how):
        dimensions = ("NCHW", "OIHW", "NCHW")
        return lax.conv_general_dilated(h, p.weight, dimension_numbers=dimensions, **how) + p.bias

    weights = [*(eqx.filter(one, eqx.is_inexact_array) for one in model.convs), model.linear]
    layers = [
        lambda h, p: jax.nn.silu(conv(h, p, window_strides=(1, 1), padding=[(1, 1), (1, 1)])),
        lambda h, p: jax.nn.silu(conv(h, p, window_strides=(2, 2), padding="VALID")),
    ]
    readout = lambda h, p: h.reshape(len(h), -1) @ p.weight.T + p.bias  # noqa: E731
    _, activation, parameter = hand_written(layers, readout, weights, x, Y)
    report = few(model, batch=(x, Y))
    assert [row.name for row in report.layers] == ["convs.0", "convs.1", "linear"]
    assert [row.shape for row in report.layers] == [(16, 3 + seed, 8, 8), (16, 3 + seed, 3, 3), (16, 10)]
    np.testing.assert_allclose(report.of("log10_activation_gradient"), activation, atol=1e-5)
    np.testing.assert_allclose(report.of("log10_parameter_gradient"), parameter, atol=1e-5)


@pytest.mark.parametrize("network", [gc.mlp(64, [20] * 3, 10, activation="tanh"), gc.cnn((8, 8, 1), [4, 4], 10)])
def test_on_a_network_of_ours_it_agrees_with_the_engine_and_with_its_own_tracing(network: gc.nn.Network) -> None:
    params = network.init(key=jax.random.key(0))
    x = IMAGES if len(network.input_shape) > 1 else jnp.asarray(X)
    optimizer = optax.sgd(0.1)
    report = few(network, params, (x, Y), optimizer=optimizer)
    engine = gc.activation_gradient_norms(network, params, x, Y, at="preactivation").log10_norm[-1]
    np.testing.assert_allclose(report.layers[-1].log10_activation_gradient, engine - np.log10(16) / 2, atol=1e-5)
    by_parameters = gc.parameter_gradient_norms(network, params, x, Y)
    for name, norm in zip(by_parameters.layers, by_parameters.log10_norm, strict=True):
        assert report[name].log10_parameter_gradient == pytest.approx(norm, abs=1e-5)
    sizes = [np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in p.values())) for _, p in network.layers(params) if p]
    for name, norm, size in zip(by_parameters.layers, by_parameters.log10_norm, sizes, strict=True):
        assert report[name].update_to_weight == pytest.approx(0.1 * 10**norm / size, rel=1e-4)
    statistics = gc.measure.unit_statistics(network, params, x)
    for field in ("mean", "spread", "saturated", "silent", "dead"):
        np.testing.assert_array_equal(report.of(field), getattr(statistics, field))
    # The same network as a plain function: found by tracing, measured by autodiff.
    traced = diagnose(network.apply, params, (x, Y), optimizer=optimizer, directions=60)
    has = [row for row in report.layers if row.count]
    for field in ("log10_activation_gradient", "log10_parameter_gradient", "mean", "spread", "silent", "dead"):
        ours = [getattr(row, field) for row in has]
        np.testing.assert_allclose([getattr(row, field) for row in traced.layers], ours, atol=2e-5, err_msg=field)
    np.testing.assert_allclose(traced.of("update_to_weight"), [row.update_to_weight for row in has], rtol=1e-4)
    for one, other in zip(traced.layers, has, strict=True):
        assert abs(one.gain - other.gain) < 5 * np.hypot(one.gain_error, other.gain_error)


def test_a_gradient_of_1e_minus_400_is_a_number_like_any_other() -> None:
    network = gc.mlp(64, [30] * 470, 10, activation="sigmoid", init="standard")
    report = few(network, network.init(key=jax.random.key(0)), (X, Y))
    assert report.layers[0].log10_activation_gradient < -390
    assert {finding.kind for finding in report.findings} == {"vanishing", "underflow"}


def test_the_gain_is_that_of_the_layers_jacobian() -> None:
    weight = jax.random.normal(jax.random.key(0), (7, 5))
    report = diagnose(lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2), weight, (jnp.ones((3, 7)),), directions=400)
    jacobian = jax.jacobian(lambda x: jnp.tanh(x @ weight))(jnp.ones(7))
    (row,) = report.layers
    expected = float((jacobian**2).sum() / 5)
    assert abs(row.gain - expected) < 4 * row.gain_error
    assert 0 < row.gain_error < 0.1 * expected


# ---- Shapes that models come in


def test_shared_layers_tuples_dicts_scans_and_vmaps() -> None:
    def model(params, x):
        h = jnp.tanh(x @ params["in"][0] + params["in"][1])
        for _ in range(2):
            h = jnp.tanh(h @ params["shared"])
        h, _ = lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), h, params["stack"])
        h = jax.vmap(lambda w: jnp.tanh(h @ w))(params["heads"]).mean(0)
        return h @ params["out"]

    keys = jax.random.split(jax.random.key(0), 5)
    shapes = {"shared": (8, 8), "stack": (3, 8, 8), "heads": (2, 8, 8), "out": (8, 10)}
    params = {
        name: jax.random.normal(key, shape) / 3 for key, (name, shape) in zip(keys[1:], shapes.items(), strict=True)
    }
    params["in"] = (jax.random.normal(keys[0], (64, 8)) / 8, jnp.zeros(8))
    report = few(model, params, (X, Y), optimizer=optax.sgd(1.0))
    names = ["in", "shared", "shared (use 2)", "stack[0]", "stack[1]", "stack[2]", "heads", "out"]
    assert [row.name for row in report.layers] == names
    assert sorted(report["heads"].shape) == [2, 8, 16]
    assert report["heads"].units == 16
    assert report["stack[1]"].count == 64
    gradient = jax.grad(lambda p: CROSS_ENTROPY(model(p, X), Y).mean())(params)
    assert report["shared"].log10_parameter_gradient == pytest.approx(log10(gradient["shared"]), abs=1e-5)
    assert report["stack[1]"].log10_parameter_gradient == pytest.approx(log10(gradient["stack"][1]), abs=1e-5)
    ratio = 10 ** (log10(gradient["stack"][2]) - log10(params["stack"][2]))
    assert report["stack[2]"].update_to_weight == pytest.approx(ratio, rel=1e-4)


def test_scanned_layers_of_flax_and_equinox() -> None:
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(8, 8, rngs=rngs)

        def __call__(self, h):
            return h + nnx.tanh(self.linear(h))

    class Scanned(nnx.Module):
        def __init__(self, rngs):
            self.first, self.out = nnx.Linear(64, 8, rngs=rngs), nnx.Linear(8, 10, rngs=rngs)
            stacked = nnx.vmap(Block, in_axes=(0,), out_axes=0)
            self.blocks = nnx.split_rngs(splits=3)(stacked)(rngs)

        def __call__(self, x):
            step = nnx.scan(lambda h, block: block(h), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            return self.out(step(self.first(x), self.blocks))

    class Stacked(eqx.Module):
        first: eqx.nn.Linear
        blocks: eqx.nn.Linear
        out: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.first, self.out = eqx.nn.Linear(64, 8, key=keys[0]), eqx.nn.Linear(8, 10, key=keys[1])
            make = eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, key=key))
            self.blocks = make(jax.random.split(keys[2], 3))

        def __call__(self, x):
            arrays, static = eqx.partition(self.blocks, eqx.is_array)
            step = lambda h, one: (h + jnp.tanh(eqx.combine(one, static)(h)), None)  # noqa: E731
            return self.out(lax.scan(step, self.first(x), arrays)[0])

    for model, name in ((Scanned(nnx.Rngs(0)), "blocks.linear"), (Stacked(jax.random.key(0)), "blocks")):
        report = few(model, batch=(jnp.asarray(X), Y))
        assert [row.name for row in report.layers] == ["first", *(f"{name}[{turn}]" for turn in range(3)), "out"]
        assert [row.count for row in report.layers] == [520, 72, 72, 72, 90]
        assert np.isfinite(report.of("log10_parameter_gradient")).all()


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(17, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=8, decode=False, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.batch_norm = nnx.BatchNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, 17, rngs=rngs)

    def __call__(self, tokens):
        h = self.embed(tokens)
        h = h + self.drop(self.attention(self.norm(h)))
        return self.out(nnx.relu(self.batch_norm(h)))


def test_a_flax_sequence_model_with_attention_dropout_and_batch_statistics() -> None:
    model = Transformer(nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (4, 6), 0, 17)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    report = few(model, batch=(tokens, tokens))
    names = [
        "embed",
        "norm",
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.out",
        "batch_norm",
        "out",
    ]
    assert [row.name for row in report.layers] == names
    assert not report.elsewhere
    assert report.healthy
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    jax.tree.map(np.testing.assert_array_equal, before, after)

    def loss(model, tokens):
        return CROSS_ENTROPY(model(tokens), tokens).mean()

    same = few(nnx.jit(loss), model, (tokens,))
    np.testing.assert_allclose(same.of("log10_parameter_gradient"), report.of("log10_parameter_gradient"), atol=1e-4)


def test_an_equinox_model_with_attention_dropout_and_state() -> None:
    class Model(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        norm: eqx.nn.BatchNorm
        drop: eqx.nn.Dropout
        out: eqx.nn.Linear

        def __init__(self, key):
            first, second = jax.random.split(key)
            self.attention = eqx.nn.MultiheadAttention(2, 8, key=first)
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
            self.drop = eqx.nn.Dropout(0.3)
            self.out = eqx.nn.Linear(8, 10, key=second)

        def __call__(self, x, state, key):
            h = self.attention(x, x, x).mean(0)
            h, state = self.norm(h, state)
            return self.out(self.drop(jax.nn.relu(h), key=key)), state

    model, state = eqx.nn.make_with_state(Model)(jax.random.key(0))

    def loss(model, state, x, y, key):
        one = lambda x, key, state: model(x, state, key)  # noqa: E731
        mapped = jax.vmap(one, axis_name="batch", in_axes=(0, 0, None), out_axes=(0, None))
        output, state = mapped(x, jax.random.split(key, len(x)), state)
        return CROSS_ENTROPY(output, y).mean(), state

    x = jnp.asarray(X).reshape(-1, 8, 8)
    report = few(loss, model, (state, x, Y, jax.random.key(1)))
    names = {f"attention.{part}_proj" for part in ("query", "key", "value", "output")}
    assert {row.name for row in report.layers} == names | {"norm", "out"}
    with pytest.raises(TypeError) as caught:
        few(model, batch=(x, Y))
    assert "A model with state" in "".join(caught.value.__notes__)


def test_dropout_in_an_equinox_module_is_given_its_key() -> None:
    layers = [
        eqx.nn.Linear(64, 12, key=jax.random.key(0)),
        eqx.nn.Dropout(0.5),
        eqx.nn.Linear(12, 10, key=jax.random.key(1)),
    ]
    report = few(eqx.nn.Sequential(layers), batch=(jnp.asarray(X), Y))
    assert [row.name for row in report.layers] == ["layers.0", "layers.2"]


def test_places_that_the_model_probes_itself_get_rows() -> None:
    def loss(params, probes, x):
        h = probe(jnp.tanh(x @ params["a"]), probes["after a"])
        h = probe(h + jnp.tanh(h @ params["b"]), probes["sum"])
        return jnp.sum(h**2)

    params = {name: jnp.eye(4) / 3 for name in "ab"}
    probes = {name: Probe.zeros() for name in ("after a", "sum")}
    batch = (jnp.linspace(-1, 1, 12).reshape(3, 4),)
    report = few(loss, params, batch, probes=probes)
    assert [row.name for row in report.layers] == ["a", "probe after a", "b", "probe sum"]
    found = jax.grad(loss, argnums=1)(params, probes, *batch)
    for name in probes:
        norm = gc.probes.profile([found[name]]).log10_norm[0]
        assert report[f"probe {name}"].log10_activation_gradient == pytest.approx(norm, abs=1e-6)


# ---- Forms, optimisers, presentation


def dense(params, x):
    return jax.nn.relu(x @ params["w"] + params["b"]) @ params["out"]


PARAMS = {
    "w": jax.random.normal(jax.random.key(0), (64, 12)) / 8,
    "b": jnp.zeros(12),
    "out": jax.random.normal(jax.random.key(1), (12, 10)) / 4,
}


def test_a_model_a_loss_and_a_gradient_function_tell_the_same() -> None:
    def loss(params, x, y):
        return CROSS_ENTROPY(dense(params, x), y).mean()

    reports = [
        few(dense, PARAMS, (X, Y)),
        few(jax.jit(loss), PARAMS, (X, Y)),
        few(lambda params: loss(params, X, Y), PARAMS),
        few(lambda params, batch: loss(params, batch["x"], batch["y"]), PARAMS, {"x": X, "y": Y}),
        few(lambda params, x, y: (loss(params, x, y), {"more": x}), PARAMS, (X, Y)),
        few(jax.value_and_grad(loss), PARAMS, (X, Y)),
        few(dense, PARAMS, (X, Y), loss=lambda output, y: CROSS_ENTROPY(output, y).mean()),
        few(jax.checkpoint(loss), PARAMS, (X, Y)),
    ]
    for report in reports:
        assert [row.name for row in report.layers] == ["w", "out"]
        norms = reports[0].of("log10_parameter_gradient")
        np.testing.assert_allclose(report.of("log10_parameter_gradient"), norms, atol=1e-5)


def test_a_linen_model_is_a_function_of_its_variables() -> None:
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(10)(linen.relu(linen.Dense(7)(x)))

    model = Model()
    variables = model.init(jax.random.key(0), X)
    report = few(model.apply, variables, (X, Y))
    assert [row.name for row in report.layers] == ["params.Dense_1", "params.Dense_0"]  # as linen counts them


def test_regression_targets_and_integer_leaves() -> None:
    params = {**PARAMS, "steps": jnp.array(3), "name": "mine", "rate": 0.1}
    targets = jnp.ones((16, 10))
    report = few(dense, params, (X, targets))
    assert report.loss == pytest.approx(float(jnp.square(dense(PARAMS, X) - targets).mean()))


def test_the_update_is_the_optimisers_next_one() -> None:
    optimizer = optax.adam(1e-3)
    gradient = jax.grad(lambda p: CROSS_ENTROPY(dense(p, X), Y).mean())(PARAMS)
    _, state = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
    updates, _ = optimizer.update(gradient, state, PARAMS)
    report = few(dense, PARAMS, (X, Y), optimizer=optimizer, optimizer_state=state)
    expected = 10 ** (log10(updates["out"]) - log10(PARAMS["out"]))
    assert report["out"].update_to_weight == pytest.approx(expected, rel=1e-4)


def test_a_state_of_other_parameters_gets_a_note() -> None:
    optimizer = optax.adam(1e-3)
    with pytest.raises(ValueError, match=r"structure|mismatch|key") as caught:
        few(dense, PARAMS, (X, Y), optimizer=optimizer, optimizer_state=optimizer.init({"w": PARAMS["w"]}))
    assert "Is that the state that optimizer.init has made" in "".join(caught.value.__notes__)


def test_it_is_shown_as_text_html_picture_and_json() -> None:
    report = few(dense, {**PARAMS, "b": jnp.full(12, -1e3)}, (X, Y), optimizer=optax.sgd(0.1))
    text = str(report)
    assert "DEAD: in layer 'w' 100% of 12 units" in text
    assert "Read on: chapter 3 of the course, rectifiers" in text
    assert len({line.index("16x") for line in text.splitlines()[1:3]}) == 1  # aligned
    html = report._repr_html_()
    assert html.count("<tr>") == 3
    assert "<strong>w</strong>" in html
    assert repr(report.plot()) == "<Figure: 1 panel>"
    whole = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert whole["layers"][0]["log10_parameter_gradient"] == "-inf"
    assert whole["healthy"] is False
    assert [finding["kind"] for finding in whole["findings"]] == ["dead", "frozen"]
    table = report.table(["layer", "gain"], digits=1)
    assert table.headings == ("layer", "gain")
    with pytest.raises(ValueError, match="did you mean 'gain'"):
        report.table(["gains"])
    with pytest.raises(KeyError, match="there are w, out"):
        report["nowhere"]
    assert "No problem was found" in few(dense, PARAMS, (X, Y))._repr_html_()


def test_of_a_deep_network_the_first_and_last_rows_are_printed() -> None:
    weights = jnp.stack([jnp.eye(4)] * 100)
    report = few(lambda w, x: jnp.sum(lax.scan(lambda h, w: (h @ w, None), x, w)[0]), weights, (jnp.ones((2, 4)),))
    lines = str(report).splitlines()
    assert "... 40 more; all are in report.layers" in lines
    assert len(lines) < 70
    assert len(report.layers) == 100


# ---- Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model_or_loss": 3}, TypeError, "model_or_loss=3 is a int; accepted is a function"),
        ({"params": None}, TypeError, "params=None is accepted for Flax NNX and Equinox modules alone"),
        ({"params": {"w": 3}}, TypeError, "holds no array of floating-point numbers"),
        ({"batch": (X,), "loss": lambda output, y: output.sum()}, TypeError, "no labels for a model's output"),
        ({"model_or_loss": lambda p, x, y: dense(p, x)}, ValueError, "accepted is a scalar loss"),
        (
            {"batch": (X, jnp.ones((16, 3)))},
            ValueError,
            r"returned float32\[16, 10\] for targets that are float32\[16, 3\]",
        ),
        ({"batch": (X, Y[:7])}, ValueError, r"for targets that are int32\[7\]"),
        (
            {"loss": lambda output, y: CROSS_ENTROPY(output, y)},
            ValueError,
            r"loss returned float32\[16\]; accepted is a",
        ),
        ({"optimizer": 0.1}, TypeError, "accepted is an optax optimiser"),
        ({"directions": 0}, ValueError, "directions=0 is accepted from 1 up"),
        ({"model_or_loss": lambda p, x, y: jnp.sum(x)}, ValueError, "no layer was found"),
    ],
)
def test_bad_input_gets_an_error_that_says_what_to_do(arguments: dict, error: type, words: str) -> None:
    given = {"model_or_loss": dense, "params": PARAMS, "batch": (X, Y)} | arguments
    with pytest.raises(error, match=words):
        diagnose(**given)


def test_a_batch_of_the_wrong_shape_is_named_beside_the_models_own_error() -> None:
    with pytest.raises(TypeError) as caught:
        diagnose(dense, PARAMS, (X[:, :5], Y))
    assert "diagnose called dense with the parameters and a batch of (float32[16, 5], int32[16])" in "".join(
        caught.value.__notes__
    )


def test_a_model_without_a_batch_is_told_to_give_one() -> None:
    with pytest.raises(TypeError, match=r"give batch=\(inputs, labels\)"):
        diagnose(Mlp(1, 4, nnx.Rngs(0)))


def test_nan_in_parameters_batch_and_our_own_networks() -> None:
    broken = {**PARAMS, "w": PARAMS["w"].at[0, 0].set(jnp.nan)}
    (finding,) = few(dense, broken, (X, Y)).findings
    assert finding.kind == "not finite"
    assert "'w' on, whose parameters hold it" in finding.evidence
    (finding,) = few(dense, PARAMS, (jnp.asarray(X).at[3].set(jnp.nan), Y)).findings
    assert "the batch itself holds NaN" in finding.evidence
    network = gc.mlp(64, [8] * 3, 10, activation="relu")
    params = network.init(key=jax.random.key(0))
    too_large = jax.tree.map(lambda leaf: leaf * 1e25, params)
    (finding,) = few(network, too_large, (X, Y)).findings
    assert finding.kind == "not finite"
    with pytest.raises(ValueError, match="contain NaN or infinity"):
        few(network, jax.tree.map(lambda leaf: leaf * jnp.nan, params), (X, Y))


def test_flax_and_equinox_are_imported_only_when_their_models_are_passed() -> None:
    import subprocess
    import sys

    code = (
        "import sys, gradcourse as gc, jax.numpy as jnp\n"
        "from gradcourse.diagnosis.api import diagnose\n"
        "diagnose(lambda w, x: jnp.sum(x @ w), jnp.ones((2, 2)), (jnp.ones((3, 2)),), directions=1)\n"
        "assert not {'flax', 'equinox', 'tensorboardX'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
