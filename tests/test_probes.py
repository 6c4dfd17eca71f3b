"""Probes against gradients with respect to explicit perturbations, in every mode that a training step may run in."""

from math import log10

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradcourse.probes import Probe, probe, profile, squares
from gradcourse.rescaling import RescalingProbe

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


# Arguments


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: probe(X, jnp.zeros(())), TypeError, r"probe got p=.*accepted is Probe.zeros\(\) or None"),
        (lambda: probe(X, RescalingProbe.zeros()), TypeError, r"accepted is Probe.zeros\(\)"),
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
    ],
)
def test_bad_arguments_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_a_float64_model_asks_for_a_float64_probe():
    with jax.enable_x64(True), pytest.raises(TypeError, match=r"float32 for h with 64 bits; .*dtype='float64'"):
        probe(jnp.ones(3, "float64"), Probe.zeros(dtype="float32"))
