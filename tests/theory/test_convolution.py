"""The theory of convolutions against closed forms and direct computation."""

from math import cos, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.measure.jacobians import backward_jacobian_norms, forward_jacobian_norms
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Conv
from gradcourse.nn.network import sequential
from gradcourse.theory import meanfield
from gradcourse.theory.convolution import LocallyConnected, border_factor, border_share, untied, wave_walk

# ---- A convolution without weight sharing


@pytest.fixture(scope="module")
def pair():
    """Two wrapped convolutions and their parameters, and the same without sharing."""
    shared = sequential((4, 5, 2), [Conv(3, "tanh", padding="CIRCULAR")] * 2)
    local = sequential((4, 5, 2), [LocallyConnected(3, "tanh")] * 2)
    params = shared.init(key=jax.random.key(0))
    return shared, local, params, untied(shared, params)


def test_untied_it_computes_the_same_and_its_gradients_add_up(pair):
    shared, local, params, loose = pair
    x = jax.random.normal(jax.random.key(1), (6, 4, 5, 2))
    np.testing.assert_allclose(local.apply(loose, x), shared.apply(params, x), rtol=1e-5, atol=1e-6)

    def loss(network, p):
        return jnp.sum(jnp.square(network.apply(p, x)))

    whole = jax.grad(lambda p: loss(shared, p))(params)
    parts = jax.grad(lambda p: loss(local, p))(loose)
    for one, many in zip(whole, parts, strict=True):
        kernel = one["weight"]
        np.testing.assert_allclose(many["weight"].sum(axis=(1, 2)).reshape(kernel.shape), kernel, rtol=1e-4, atol=1e-5)


def test_untied_it_has_the_same_jacobians(pair):
    shared, local, params, loose = pair
    x = jax.random.normal(jax.random.key(2), (2, 4, 5, 2))
    for measure in (backward_jacobian_norms, forward_jacobian_norms):
        expected, found = (measure(network, p, x).log10_norm for network, p in ((shared, params), (local, loose)))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_kernels_at_different_places_are_drawn_independently():
    weight = LocallyConnected(3, init=gaussian(2.0)).init((8, 8, 10), key=jax.random.key(0))["weight"]
    assert weight.shape == (8, 8, 90, 3)
    assert 90 * float(jnp.var(weight)) == pytest.approx(4, rel=0.05)
    kernels = np.asarray(weight).reshape(64, -1)
    correlations = np.corrcoef(kernels)[np.triu_indices(64, 1)]
    assert np.abs(correlations).max() < 6 / sqrt(270)


def test_what_cannot_be_untied_is_refused():
    padded = sequential((4, 4, 2), [Conv(2)])
    with pytest.raises(ValueError, match="accepted are stride=1 and padding='CIRCULAR'"):
        untied(padded, padded.init(key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"input of shape \(4,\); accepted are \(height, width, channel\)"):
        LocallyConnected(2).output_shape((4,))


# ---- Zero padding


@pytest.mark.parametrize("size", [1, 4, 8, 16, 32])
def test_the_border_factor_is_the_closed_form(size):
    assert border_factor(size) == pytest.approx(((1 + 2 * cos(pi / (size + 1))) / 3) ** 2, rel=1e-12)
    assert border_factor(size, kernel_size=1) == pytest.approx(1)


def test_the_border_factor_is_where_mean_field_theory_ends_up():
    network = sequential((4, 4, 3), [Conv(3, init=gaussian(1.0))] * 40)
    with jax.enable_x64(True):
        logs = meanfield.backward_jacobian_norms(network, np.ones((1, 4, 4, 3))).log10_norm
    assert 10 ** (2 * (logs[0] - logs[1])) == pytest.approx(border_factor(4), rel=1e-9)
    share = border_share(4, 40)  # from an even start, as all outputs are
    np.testing.assert_allclose(10 ** (2 * (logs[::-1] - logs[-1])), share[1:] / share[1], rtol=1e-9)
    assert share[0] == 1


# ---- Waves


def test_the_walk_of_waves_is_that_of_random_kernels():
    generator, side, channels, draws = np.random.default_rng(0), 3, 2, 4000
    v = np.zeros((draws, side, side, channels))
    v[:, 0, 0, 0] = 1  # all waves alike
    logs = []
    for _ in range(6):
        kernels = generator.normal(size=(3, 3, draws, channels, channels)) / sqrt(9 * channels)
        v = sum(
            np.einsum("dhwi,dio->dhwo", np.roll(v, (row, column), axis=(1, 2)), kernels[row, column])
            for row in range(3)
            for column in range(3)
        )
        logs.append(np.log10(np.square(v).sum(axis=(1, 2, 3))) / 2)
    expected = wave_walk(channels, side, [2, 6], draws=4000)
    for found, value in zip((logs[1], logs[5]), expected, strict=True):
        error = sqrt(2) * found.std() / sqrt(draws)
        assert found.mean() == pytest.approx(value, abs=4 * error)
    assert expected[1] < -0.1


def test_a_walk_goes_forward():
    with pytest.raises(ValueError, match=r"layers=\[10, 5\] is accepted in increasing order"):
        wave_walk(4, 3, [10, 5])
