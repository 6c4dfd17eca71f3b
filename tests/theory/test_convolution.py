"""Chapter 8's theory against published values, other derivations and direct computation."""

from math import cos, erf, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.course.experiments.convolution import scaled, small_digits, weights_only
from gradcourse.measure.singular_values import layer_singular_values
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense
from gradcourse.nn.network import sequential
from gradcourse.theory import meanfield
from gradcourse.theory.convolution import (
    border_factor,
    border_share,
    critical_scheme,
    critical_variance,
    depth_scales,
    gain_variance,
    measured_gain_variance,
    product_quantiles,
    vanilla_cnn,
    wave_walk,
)

# ---- Zero padding


@pytest.mark.parametrize("size", [1, 4, 8, 16, 32])
def test_the_border_factor_is_the_closed_form(size):
    assert border_factor(size) == pytest.approx(((1 + 2 * cos(pi / (size + 1))) / 3) ** 2, rel=1e-12)
    assert border_factor(size, kernel_size=1) == pytest.approx(1)


def test_the_border_factor_is_where_mean_field_theory_ends_up():
    network = sequential((4, 4, 3), [Conv(3, initializer=gaussian(1.0))] * 40)
    with jax.enable_x64(True):
        logs = meanfield.backward_jacobian_norms(network, np.ones((1, 4, 4, 3))).log10_norm
    assert 10 ** (2 * (logs[0] - logs[1])) == pytest.approx(border_factor(4), rel=1e-9)
    share = border_share(4, 40)  # from an even start, as all outputs are
    np.testing.assert_allclose(10 ** (2 * (logs[::-1] - logs[-1])), share[1:] / share[1], rtol=1e-9)
    assert share[0] == 1


# ---- Depth scales

SCHOENHOLZ = [  # at bias variance 0.05: sigma_w^2, q*, c*, chi_1, xi_q, xi_c
    (1.0, 0.1936, 1, 0.7590, 1.748, 3.627),
    (1.7, 0.5331, 1, 0.9867, 1.558, 74.918),
    (2.5, 1.0640, 0.44680, 1.1335, 1.180, 11.796),
    (4.0, 2.1955, 0.16506, 1.3424, 0.873, 6.980),
]


@pytest.mark.parametrize(("sigma_w2", "q", "correlation", "chi", "xi_q", "xi_c"), SCHOENHOLZ)
def test_depth_scales_agree_with_the_table(sigma_w2, q, correlation, chi, xi_q, xi_c):
    found = depth_scales("tanh", sigma_w2=sigma_w2, sigma_b2=0.05)
    assert found[:3] == pytest.approx((q, correlation, chi), abs=6e-5)
    assert found[3:5] == pytest.approx((xi_q, xi_c), abs=6e-4)
    # xi_q by its other formula, -1 / ln(chi + sigma_w^2 E f'' f)
    tanh = ACTIVATIONS["tanh"]
    bend = meanfield.gaussian_mean(lambda s: -2 * tanh(s) ** 2 * tanh.slope(s), found.q)
    assert found.xi_q == pytest.approx(-1 / np.log(found.chi + sigma_w2 * bend), rel=1e-5)


def test_without_a_signal_there_is_no_correlation():
    with pytest.raises(ValueError, match="let the variance fall to 0"):
        depth_scales("tanh", sigma_w2=0.5)


# ---- Dynamical isometry


def test_gain_variances_are_the_closed_forms():
    q = 0.5

    def both(activation):
        return [gain_variance(activation, q=q, depth=3, ensemble=name) for name in ("gaussian", "orthogonal")]

    assert both("identity") == pytest.approx([3, 0], abs=1e-9)
    assert both("relu") == pytest.approx([6, 3], rel=1e-9)
    on = erf(1 / sqrt(2 * q))
    assert both("hard_tanh") == pytest.approx([3 / on, 3 * (1 / on - 1)], rel=1e-6)
    ratio = (1 + pi * q) / sqrt(1 + 2 * pi * q)
    assert both(lambda s: jax.scipy.special.erf(sqrt(pi) / 2 * s)) == pytest.approx([3 * ratio, 3 * (ratio - 1)])


def test_the_measured_gain_variance_is_that_of_the_singular_values():
    network = sequential(12, [Dense(12, "tanh", initializer=gaussian(1.5, 0.3))] * 3)
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (1, 12))
    jacobian = jax.jacfwd(lambda x: network.apply(params, x[None])[0])(x[0])
    squares = np.linalg.svd(np.asarray(jacobian), compute_uv=False) ** 2
    found = measured_gain_variance(network, params, x)
    assert found.shape == (3,)
    assert float(found[-1]) == pytest.approx(np.var(squares) / np.mean(squares) ** 2, rel=1e-4)


def test_a_wrapped_delta_orthogonal_convolution_is_an_isometry():
    network = sequential((6, 6, 8), [Conv(8, padding="CIRCULAR", initializer="delta_orthogonal")])
    params, x = network.init(key=jax.random.key(0)), jnp.ones((1, 6, 6, 8))
    values = layer_singular_values(network, params, x).log10_norm
    assert values.shape == (1, 288, 1)
    np.testing.assert_allclose(values, 0, atol=1e-6)
    np.testing.assert_allclose(measured_gain_variance(network, params, x), 0, atol=1e-5)


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


# ---- Very deep networks


@pytest.mark.parametrize("sigma_b2", [1e-9, 0.05])
def test_the_variance_at_rest_is_one_and_critical(sigma_b2):
    sigma_w2 = critical_scheme("gaussian", sigma_b2=sigma_b2).scale ** 2
    q = critical_variance(sigma_b2=sigma_b2)
    assert sigma_w2 * meanfield.mean_square_slope("tanh", q) == pytest.approx(1, rel=1e-9)
    assert meanfield.variance_map("tanh", q, sigma_w2=sigma_w2, sigma_b2=sigma_b2) == pytest.approx(q, rel=1e-6)


def test_the_images_have_the_variance_at_rest():
    data = small_digits()
    assert float(jnp.mean(jnp.square(data.x_train))) == pytest.approx(critical_variance(), rel=1e-5)
    np.testing.assert_allclose(data.x_train.mean(axis=0), 0, atol=1e-8)


def test_only_weights_are_trained_and_scaled():
    network = vanilla_cnn(5, "delta_orthogonal")
    assert [stage.repeats for stage in network.stages] == [1, 5, 1, 1]
    params = network.init(key=jax.random.key(0))
    optimizer = weights_only(0.5)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    doubled = scaled(params, 2.0)
    for update, after, before in zip(updates, doubled, params, strict=True):
        for name in before:
            moved = name == "weight"
            np.testing.assert_allclose(update[name], -0.5 * moved * before[name])
            np.testing.assert_array_equal(after[name], (2 if moved else 1) * before[name])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_spectrum_of_products_has_its_moments_and_its_edge(depth: int) -> None:
    shares = (np.arange(200_000) + 0.5) / 200_000
    squares = product_quantiles(depth, shares)
    assert squares.mean() == pytest.approx(1, abs=2e-3)
    assert squares.var() == pytest.approx(depth, rel=0.02)
    edge = product_quantiles(depth, np.array([1.0]))[0]
    assert edge == pytest.approx((depth + 1) ** (depth + 1) / depth**depth, rel=1e-4)


def test_one_layers_spectrum_is_the_quarter_circle() -> None:
    radius = np.linspace(0.1, 1.9, 10)
    share = (radius * np.sqrt(4 - radius**2) / 2 + 2 * np.arcsin(radius / 2)) / np.pi
    np.testing.assert_allclose(product_quantiles(1, share), radius**2, rtol=1e-3)
    with pytest.raises(ValueError, match="accepted from 0 to 1"):
        product_quantiles(1, np.array([1.5]))
