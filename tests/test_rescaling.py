"""Rescaling probes against the plain gradient where float32 holds it, and against float64 where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradcourse import probes
from gradcourse.rescaling import RescalingProbe, exponents, profile, rescale

DEPTH, WIDTH, BATCH = 4, 3, 2


def drawn(*shape, seed=0, scale=1.0, dtype=jnp.float32):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


WEIGHTS, X = drawn(DEPTH, WIDTH, WIDTH), drawn(BATCH, WIDTH, seed=1)


def chain(weights, probes, x, added=None):
    """A scanned dense network, rescaled at every layer's output, to which something may be added."""

    def step(h, layer):
        weight, p, more = layer
        h = jnp.tanh(h @ weight)
        return rescale(h if more is None else h + more, p), None

    return jnp.square(lax.scan(step, x, (weights, probes, added))[0]).sum()


def listed_chain(weights, probes, x):
    for weight, p in zip(weights, probes, strict=True):
        x = rescale(jnp.tanh(x @ weight), p)
    return jnp.square(x).sum()


def behind_the_sum(weights, probes, x):
    """Shortcuts whose probes lie on the whole sums: a chain of blocks."""
    for weight, p in zip(weights, probes, strict=True):
        x = rescale(x + jnp.tanh(x @ weight), p)
    return jnp.square(x).sum()


def log_norms(gradients, axes):
    return np.log10(np.square(gradients).sum(axis=axes)) / 2


def activation_log_norms(weights):
    """The norms of explicit gradients with respect to what is added to each layer's output."""
    nothing = jnp.zeros((len(weights), *X.shape))
    gradients = jax.grad(lambda added: chain(weights, None, X, added))(nothing)
    return log_norms(np.asarray(gradients, np.float64), (1, 2))


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
    of_first = np.log10(2) * np.asarray(exponents(found))[0] + log_norms(np.asarray(gradient[0], np.float64), (0, 1))
    assert of_first == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize("function", [chain, listed_chain, behind_the_sum])
def test_rescaling_changes_gradients_by_the_powers_handed_out_alone(function):
    one_each = RescalingProbe.zeros(DEPTH) if function is chain else [RescalingProbe.zeros()] * DEPTH
    plain = jax.grad(function)(WEIGHTS, None if function is chain else [None] * DEPTH, X)
    gradient, found = jax.grad(function, argnums=(0, 1))(WEIGHTS, one_each, X)
    powers = np.asarray(exponents(found))
    assert powers.any()
    np.testing.assert_array_equal(np.ldexp(gradient, powers[:, None, None]), plain)


def test_norms_are_those_of_explicit_gradients():
    found = jax.grad(chain, argnums=1)(WEIGHTS, RescalingProbe.zeros(DEPTH), X)
    np.testing.assert_allclose(profile(found).log10_norm, activation_log_norms(WEIGHTS), atol=1e-6)


def test_rescaled_seeds_may_be_vmapped():
    seeds = jnp.stack([WEIGHTS, WEIGHTS / 2])
    found = jax.vmap(jax.grad(chain, argnums=1), in_axes=(0, None, None))(seeds, RescalingProbe.zeros(DEPTH), X)
    expected = [activation_log_norms(weights) for weights in seeds]
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


def test_a_rescaling_probe_marks_one_place():
    def shared(weights, p, x):
        return listed_chain(weights, [p] * DEPTH, x)

    with pytest.raises(ValueError, match=r"'0 probe' was passed 4 times on the way back; accepted is once"):
        profile([jax.grad(shared, argnums=1)(WEIGHTS, RescalingProbe.zeros(), X)])
    passed_by = jax.grad(lambda p: listed_chain(WEIGHTS, p[:DEPTH], X))([RescalingProbe.zeros()] * (DEPTH + 1))
    with pytest.raises(ValueError, match="'4 probe' was passed 0 times"):
        profile(passed_by)


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rescale(X, probes.Probe.zeros()), TypeError, r"accepted is RescalingProbe.zeros\(\)"),
        (lambda: rescale(X, RescalingProbe.zeros(2)), ValueError, r"rescale got p of shape \(2,\); accepted is \(\)"),
        (lambda: profile({"a": RescalingProbe.zeros()}), TypeError, "sorts by name; accepted is a list"),
        (lambda: exponents(probes.Probe.zeros(3)), TypeError, "plain probes, which rescale nothing"),
        (lambda: exponents([probes.Probe.zeros()]), TypeError, "plain probes, which rescale nothing"),
        (lambda: profile([]), TypeError, "give what jax.grad returned"),
        (lambda: profile(RescalingProbe.zeros()), ValueError, r"single probe without an axis of layers.*write \[found"),
    ],
)
def test_bad_arguments_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
