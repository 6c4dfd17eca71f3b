"""Probes against gradients with respect to explicit perturbations, in every mode that a training step may run in."""

from math import log10

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradcourse.probes import (
    Probe,
    RescalingProbe,
    check_rescaling,
    exponents,
    parameter_profile,
    probe,
    profile,
    rescale,
    squares,
)

DEPTH, WIDTH, BATCH = 4, 3, 2


def drawn(*shape, seed=0, scale=1.0, dtype=jnp.float32):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


WEIGHTS, X = drawn(DEPTH, WIDTH, WIDTH), drawn(BATCH, WIDTH, seed=1)


def outputs(weights, x, through):
    """A dense network that hands every layer's output to `through(index, h)`."""
    h = x
    for index in range(len(weights)):
        h = through(index, jnp.tanh(h @ weights[index]))
    return h


def loss(weights, probes, x):
    return jnp.square(outputs(weights, x, lambda index, h: probe(h, probes[index]))).sum()


def scanned(weights, probes, x):
    def step(h, layer):
        weight, p = layer
        return probe(jnp.tanh(h @ weight), p), None

    return jnp.square(lax.scan(step, x, (weights, probes))[0]).sum()


def activation_gradients(weights, x):
    """Explicit gradients with respect to what is added to each layer's output, `(layer, batch, width)`."""

    def perturbed(added):
        return jnp.square(outputs(weights, x, lambda index, h: h + added[index])).sum()

    return np.asarray(jax.grad(perturbed)(jnp.zeros((len(weights), *x.shape))), np.float64)


def log_norms(gradients, axes):
    return np.log10(np.square(gradients).sum(axis=axes)) / 2


def found_by(function, weights, probes, x, **options):
    return profile(jax.grad(function, argnums=1)(weights, probes, x), **options).log10_norm


def test_norms_are_those_of_explicit_gradients():
    expected = activation_gradients(WEIGHTS, X)
    together = found_by(loss, WEIGHTS, [Probe.zeros()] * DEPTH, X)
    np.testing.assert_allclose(together, log_norms(expected, (1, 2)), atol=1e-6)
    single = found_by(loss, WEIGHTS, [Probe.zeros(BATCH)] * DEPTH, X)
    np.testing.assert_allclose(single, log_norms(expected, 2).T, atol=1e-6)


def test_scan_remat_and_jit_change_nothing():
    expected = log_norms(activation_gradients(WEIGHTS, X), (1, 2))
    for function in (scanned, jax.checkpoint(scanned), jax.jit(scanned), jax.jit(jax.checkpoint(loss))):
        np.testing.assert_allclose(found_by(function, WEIGHTS, Probe.zeros(DEPTH), X), expected, atol=1e-6)
    single = found_by(scanned, WEIGHTS, Probe.zeros(DEPTH, BATCH), X, axis=0)
    np.testing.assert_allclose(single, log_norms(activation_gradients(WEIGHTS, X), 2).T, atol=1e-6)


def test_seeds_and_examples_may_be_vmapped():
    seeds = jnp.stack([WEIGHTS, WEIGHTS / 2, -WEIGHTS])
    found = jax.vmap(jax.grad(scanned, argnums=1), in_axes=(0, None, None))(seeds, Probe.zeros(DEPTH), X)
    expected = [log_norms(activation_gradients(weights, X), (1, 2)) for weights in seeds]
    np.testing.assert_allclose(profile(found).log10_norm, expected, atol=1e-6)
    found = jax.vmap(jax.grad(scanned, argnums=1), in_axes=(None, None, 0))(WEIGHTS, Probe.zeros(DEPTH), X)
    np.testing.assert_allclose(profile(found).log10_norm, log_norms(activation_gradients(WEIGHTS, X), 2).T, atol=1e-6)


def test_a_probe_used_twice_finds_the_total_square():
    weights = jnp.stack([WEIGHTS[0]] * DEPTH)

    def shared(weight, p, x):
        return jnp.square(lax.scan(lambda h, _: (probe(jnp.tanh(h @ weight), p), None), x, length=DEPTH)[0]).sum()

    found = jax.grad(shared, argnums=1)(WEIGHTS[0], Probe.zeros(), X)
    expected = log_norms(activation_gradients(weights, X), (0, 1, 2))
    np.testing.assert_allclose(profile([found]).log10_norm, expected, atol=1e-6)


def test_both_branches_of_a_shortcut():
    def shortcut(added, probes, x):
        inner = probe(jnp.tanh(x @ WEIGHTS[0]) + added["branch"], probes["branch"])
        outer = probe(x + added["skip"], probes["skip"])
        return jnp.square(probe(inner + outer + added["sum"], probes["sum"])).sum()

    names = ("branch", "skip", "sum")
    added, found = jax.grad(shortcut, argnums=(0, 1))(
        {name: jnp.zeros_like(X) for name in names}, {name: Probe.zeros() for name in names}, X
    )
    measured = profile(found, ("skip", "sum", "branch"))
    assert measured.layers == ("skip", "sum", "branch")
    expected = [log_norms(np.asarray(added[name]), (0, 1)) for name in measured.layers]
    np.testing.assert_allclose(measured.log10_norm, expected, atol=1e-6)


def test_the_loss_and_the_gradient_are_unchanged_bit_for_bit():
    plain = jax.value_and_grad(loss)(WEIGHTS, [None] * DEPTH, X)
    probed = jax.value_and_grad(loss)(WEIGHTS, [Probe.zeros()] * DEPTH, X)
    jitted = jax.jit(jax.value_and_grad(loss))(WEIGHTS, [Probe.zeros(BATCH)] * DEPTH, X)
    for one, other, compiled in zip(plain, probed, jitted, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, compiled, rtol=1e-5)


def test_a_pytree_is_one_vector():
    def tree_loss(p):
        h = {"a": X, "b": (drawn(BATCH, 2, 2), jnp.arange(BATCH)), "c": lax.complex(X, -X)}
        h = probe(h, p)
        return (3 * h["a"]).sum() + (4 * h["b"][0]).sum() + 2 * (h["c"].real * 3 + h["c"].imag * 4).sum()

    per_example = 9 * WIDTH + 16 * 4 + 100 * WIDTH
    measured = profile([jax.grad(tree_loss)(Probe.zeros(BATCH))]).log10_norm
    np.testing.assert_allclose(measured[:, 0], log10(per_example) / 2, atol=1e-6)
    assert profile([jax.grad(tree_loss)(Probe.zeros())]).log10_norm[0] == pytest.approx(
        log10(BATCH * per_example) / 2, abs=1e-6
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_squared_in_single(dtype):
    def half_loss(p, h):
        return (probe(h, p) * h).astype("float32").sum()

    h = drawn(64, scale=1e-5).astype(dtype)  # squared in half precision: 0
    found = jax.grad(half_loss)(Probe.zeros(), h)
    assert found.dtype == jnp.float32
    exact = np.asarray(h, np.float64)
    assert profile([found]).log10_norm[0] == pytest.approx(log_norms(exact, 0), abs=1e-6)


@pytest.mark.parametrize("power", [-149, -125, -64, -48, 0, 48, 64, 120])
def test_no_magnitude_of_float32_is_lost(power):
    v = np.ldexp(np.float32(1), power) * np.ones(64, np.float32)
    exponent, square = squares(jnp.asarray(v))
    with np.errstate(divide="ignore"):
        measured = int(exponent) + np.log2(float(square)) / 2
    assert measured == (power + 3 if power > -127 else -np.inf)  # what is not a normal number, XLA takes for zero


def test_magnitudes_mix_and_zeros_and_faults_show():
    v = np.concatenate([np.geomspace(1e-30, 1e30, 61), np.zeros(3)]).astype(np.float32)
    rows = jnp.asarray([v, v[::-1] * (np.arange(64) > 40), np.zeros(64)], jnp.float32)
    exponent, square = squares(rows, 3)
    expected = np.square(np.asarray(rows, np.float64)).sum(axis=1)
    np.testing.assert_allclose(np.ldexp(np.asarray(square, np.float64), 2 * exponent), expected, rtol=1e-6)
    assert not np.isfinite(squares(rows.at[0, 0].set(jnp.nan)).square)
    assert not np.isfinite(squares(rows.at[0, 0].set(jnp.inf)).square)


def test_float64_is_measured_in_float64():
    with jax.enable_x64(True):
        tiny = jnp.full(4, 1e-200, "float64")
        found = jax.grad(lambda p: (probe(jnp.ones(4, "float64"), p) * tiny).sum())(Probe.zeros())
        assert profile([found]).log10_norm[0] == pytest.approx(-200 + log10(2), abs=1e-12)


def test_forward_mode_is_refused_and_works_without_probes():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: loss(WEIGHTS, [Probe.zeros()] * DEPTH, x), (X,), (X,))
    _, slope = jax.jvp(lambda x: loss(WEIGHTS, [None] * DEPTH, x), (X,), (X,))
    assert np.isfinite(slope)


# Rescaling


def chain(weights, probes, x):
    def step(h, layer):
        weight, p = layer
        return rescale(jnp.tanh(h @ weight), p), None

    return jnp.square(lax.scan(step, x, (weights, probes))[0]).sum()


def test_a_rescaled_chain_is_right_where_float32_ends():
    depth = 100
    weights = 2.0**-14 * (jnp.eye(WIDTH)[None] + drawn(depth, WIDTH, WIDTH, scale=0.1))

    def linear(weights, probes, x):
        return lax.scan(lambda h, layer: (rescale(h @ layer[0], layer[1]), None), x, (weights, probes))[0].sum()

    gradient, found = jax.jit(jax.grad(linear, argnums=(0, 1)))(weights, RescalingProbe.zeros(depth), X)
    v, scale, expected = np.ones((BATCH, WIDTH)), 0.0, []
    for weight in np.asarray(weights, np.float64)[::-1]:
        expected.append(scale + log_norms(v, (0, 1)))
        v, scale = v / np.abs(v).max(), scale + np.log10(np.abs(v).max())
        first = scale + log_norms(np.asarray(X, np.float64).T @ v, (0, 1))
        v = v @ weight.T
    assert expected[-1] < -400
    np.testing.assert_allclose(profile(found).log10_norm, expected[::-1], atol=1e-4)
    assert parameter_profile(gradient, found).log10_norm[0] == pytest.approx(first, abs=1e-4)


def test_rescaling_changes_gradients_by_the_powers_handed_out_alone():
    plain = jax.grad(scanned)(WEIGHTS, None, X)
    gradient, found = jax.grad(chain, argnums=(0, 1))(WEIGHTS, RescalingProbe.zeros(DEPTH), X)
    powers = np.asarray(exponents(found))
    np.testing.assert_array_equal(np.ldexp(gradient, powers[:, None, None]), plain)
    expected = log_norms(activation_gradients(WEIGHTS, X), (1, 2))
    np.testing.assert_allclose(profile(found).log10_norm, expected, atol=1e-6)
    norms = log_norms(np.asarray(plain, np.float64), (1, 2))
    np.testing.assert_allclose(parameter_profile(gradient, found).log10_norm, norms, atol=1e-6)
    listed = [{"weight": one} for one in gradient]
    np.testing.assert_allclose(parameter_profile(listed, found).log10_norm, norms, atol=1e-6)


def test_rescaled_seeds_may_be_vmapped():
    seeds = jnp.stack([WEIGHTS, WEIGHTS / 2])
    found = jax.vmap(jax.grad(chain, argnums=1), in_axes=(0, None, None))(seeds, RescalingProbe.zeros(DEPTH), X)
    expected = [log_norms(activation_gradients(weights, X), (1, 2)) for weights in seeds]
    np.testing.assert_allclose(profile(found).log10_norm, expected, atol=1e-6)


def test_rescaling_half_precision_and_zeros():
    h = drawn(8, scale=2.0**-20).astype("float16")
    cotangent, found = jax.grad(lambda h, p: (rescale(h, p) * h).astype("float32").sum(), argnums=(0, 1))(
        h, RescalingProbe.zeros()
    )
    assert cotangent.dtype == jnp.float16
    assert profile([found]).log10_norm[0] == pytest.approx(log_norms(np.asarray(h, np.float64), 0), abs=1e-4)
    dead = jax.grad(lambda p: (0 * rescale(h, p)).astype("float32").sum())(RescalingProbe.zeros())
    assert profile([dead]).log10_norm[0] == -np.inf


def listed_chain(weights, probes, x):
    return jnp.square(outputs(weights, x, lambda index, h: rescale(h, probes[index]))).sum()


def around_one(weights, probes, x):
    """The first layer's output goes around the second layer, probe included."""
    h = rescale(jnp.tanh(x @ weights[0]), probes[0])
    h = h + rescale(jnp.tanh(h @ weights[1]), probes[1])
    return jnp.square(rescale(jnp.tanh(h @ weights[2]), probes[2])).sum()


def behind_the_sum(weights, probes, x):
    """A shortcut whose probe lies on the whole sum: a chain of blocks."""
    h = rescale(jnp.tanh(x @ weights[0]), probes[0])
    h = rescale(h + jnp.tanh(h @ weights[1]), probes[1])
    return jnp.square(rescale(jnp.tanh(h @ weights[2]), probes[2])).sum()


def side_by_side(weights, probes, x):
    one, other = (rescale(jnp.tanh(x @ weights[index]), probes[index]) for index in range(2))
    return jnp.square(rescale(jnp.tanh((one * other) @ weights[2]), probes[2])).sum()


def heads_apart(weights, probes, x):
    heads = [jnp.square(rescale(jnp.tanh(x @ weights[index]), probes[index])).sum() for index in range(3)]
    return heads[0] + heads[1] + heads[2]


def regularised(weights, probes, x):
    return listed_chain(weights, probes, x) + 1e-9 * jnp.square(weights).sum()


def tied(weights, probes, x):
    return listed_chain(weights.at[0].set(weights[2]), probes, x)


def out_of_order(weights, probes, x):
    return listed_chain(weights, probes[::-1], x)


@pytest.mark.parametrize("function", [listed_chain, behind_the_sum])
def test_chains_pass_the_check(function):
    check_rescaling(function, WEIGHTS[:3], [RescalingProbe.zeros()] * 3, X)


def test_scanned_and_deep_chains_pass_the_check():
    check_rescaling(chain, WEIGHTS, RescalingProbe.zeros(DEPTH), X)
    check_rescaling(chain, jnp.tile(WEIGHTS / 16, (25, 1, 1)), RescalingProbe.zeros(100), X)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1e-30, "at the rescaling probe '39 probe' cotangents are beyond what one power of two can rescale: scale"),
        (1e30, "at the rescaling probe '39 probe' cotangents are beyond what one power of two can rescale: scale"),
        (np.nan, "the gradient is not finite"),
    ],
)
def test_what_cannot_be_checked_is_not_called_invalid(factor, words):
    def scaled(weights, probes, x):
        return factor * chain(weights, probes, x)

    with pytest.raises(ValueError, match=words):
        check_rescaling(scaled, jnp.tile(WEIGHTS, (10, 1, 1)), RescalingProbe.zeros(40), X)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (around_one, "from the rescaling probe '0 probe' not every path to the loss passes '1 probe' next"),
        (side_by_side, "from the rescaling probe '0 probe' not every path to the loss passes '1 probe' next"),
        (heads_apart, "'1 probe' not every path to the loss passes '2 probe' next"),
        (out_of_order, "the cotangent at the last rescaling probe, '2 probe', changes with other probes"),
        (regularised, "the gradient of params mixes paths"),
        (tied, "the gradient of params mixes paths"),
    ],
)
def test_where_rescaling_is_not_valid_the_check_says_why(function, words):
    with pytest.raises(ValueError, match=words + r".*; accepted is a plain chain.* Use probe\(h, p\) instead"):
        check_rescaling(function, WEIGHTS[:3], [RescalingProbe.zeros()] * 3, X)


def test_a_rescaling_probe_marks_one_place():
    def shared(weights, p, x):
        return jnp.square(outputs(weights, x, lambda index, h: rescale(h, p))).sum()

    with pytest.raises(ValueError, match=r"'0 probe' was passed 4 times on the way back; accepted is once"):
        profile([jax.grad(shared, argnums=1)(WEIGHTS, RescalingProbe.zeros(), X)])
    probes = [RescalingProbe.zeros()] * 4
    with pytest.raises(ValueError, match="'3 probe' was passed 0 times"):
        check_rescaling(listed_chain, WEIGHTS[:3], probes, X)


# Arguments


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: probe(X, jnp.zeros(())), TypeError, r"probe got p=.*accepted is Probe.zeros\(\) or None"),
        (lambda: probe(X, RescalingProbe.zeros()), TypeError, r"accepted is Probe.zeros\(\)"),
        (lambda: rescale(X, Probe.zeros()), TypeError, r"accepted is RescalingProbe.zeros\(\)"),
        (lambda: rescale(X, RescalingProbe.zeros(2)), ValueError, r"rescale got p of shape \(2,\); accepted is \(\)"),
        (lambda: probe(X, Probe.zeros(3)), ValueError, r"p of shape \(3,\) for h of shape \(2, 3\).*such as \(2,\)"),
        (lambda: probe(X, Probe.zeros(dtype="bfloat16")), TypeError, r"bfloat16 for h with 32 bits; .*'float32'"),
        (lambda: probe(jnp.arange(3), Probe.zeros()), TypeError, "no floating-point array in h"),
        (lambda: profile(Probe.zeros()), ValueError, r"single probe without an axis of layers.*write \[found\]"),
        (lambda: profile([]), TypeError, "give what jax.grad returned"),
        (lambda: profile(jnp.zeros(3)), TypeError, "give what jax.grad returned"),
        (lambda: profile(Probe.zeros(3), ["a"]), ValueError, "layers has 1 names for 3 probes"),
        (lambda: profile({"a": Probe.zeros()}, ["b"]), ValueError, r"layers names 'b', .* it has \('a',\)"),
        (
            lambda: profile({"a": Probe.zeros(3), "b": Probe.zeros(4)}),
            ValueError,
            r"found holds probes of the shapes \[\(3,\), \(4,\)\]; accepted are probes of one shape",
        ),
        (lambda: profile({"a": RescalingProbe.zeros()}), TypeError, "sorts by name; accepted is a list"),
        (lambda: exponents(Probe.zeros(3)), TypeError, "plain probes, which rescale nothing"),
        (lambda: check_rescaling(loss, WEIGHTS, Probe.zeros(4), X), TypeError, "list of RescalingProbe.zeros"),
        (
            lambda: parameter_profile([X], replace_uses(RescalingProbe.zeros(2))),
            ValueError,
            "gradients has 1 entries for 2 probes",
        ),
    ],
)
def test_bad_arguments_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def replace_uses(probes):
    return RescalingProbe(probes.exponent, probes.square, probes.uses + 1)


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_a_float64_model_asks_for_a_float64_probe():
    with jax.enable_x64(True), pytest.raises(TypeError, match=r"float32 for h with 64 bits; .*dtype='float64'"):
        probe(jnp.ones(3, "float64"), Probe.zeros(dtype="float32"))
