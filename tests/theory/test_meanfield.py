"""Mean-field theory against published tables, closed forms, other quadratures and wide random networks."""

from itertools import pairwise
from math import cos, e, erf, log, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from gradcourse.measure import jacobians
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import cnn, mlp, sequential
from gradcourse.profile import Profile
from gradcourse.theory import meanfield

MEASURES = ["backward_jacobian_norms", "forward_jacobian_norms", "layer_jacobian_norms"]

# Gaussian means


@pytest.mark.parametrize("q", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "silu", "softplus", "erf", "identity"])
def test_smooth_activations_agree_with_gauss_hermite(name, q):
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    with jax.enable_x64(True):
        s = jnp.asarray(np.sqrt(q) * nodes)
        squares = [np.square(function(s)) for function in (ACTIVATIONS[name], ACTIVATIONS[name].slope)]
    expected = [float(weights @ square / sqrt(2 * pi)) for square in squares]
    measured = [meanfield.mean_square(name, q), meanfield.mean_square_slope(name, q)]
    np.testing.assert_allclose(measured, expected, rtol=1e-8)


@pytest.mark.parametrize("q", [1e-6, 0.3, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_agrees_with_adaptive_quadrature(name, q):
    activation, deviation = ACTIVATIONS[name], sqrt(q)
    cuts = sorted({-12.0, 0.0, 12.0, *(c / deviation for c in (-20, -4, -1, 1, 4, 20) if abs(c) < 12 * deviation)})
    with jax.enable_x64(True):

        def mean(function):
            def integrand(z):
                return np.asarray(function(jnp.asarray(deviation * z))) ** 2 * np.exp(-(z**2) / 2) / sqrt(2 * pi)

            return sum(integrate.fixed_quad(integrand, low, high, n=80)[0] for low, high in pairwise(cuts))

        expected = mean(activation), mean(activation.slope)
    measured = meanfield.mean_square(name, q), meanfield.mean_square_slope(name, q)
    np.testing.assert_allclose(measured, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sigmoid", [0.059621, 0.051363, 0.044836, 0.037027]),
        ("tanh", [0.849207, 0.592426, 0.464403, 0.349508]),
        ("erf", [1.076084, 0.735105, 0.569410, 0.424413]),
    ],
)
def test_mean_squared_slopes_are_the_tabulated_ones(name, values):
    measured = [meanfield.mean_square_slope(name, q) for q in (0.1, 0.5, 1.0, 2.0)]
    np.testing.assert_allclose(measured, values, rtol=0, atol=6e-7)


@pytest.mark.parametrize("q", [1e-3, 0.4, 1.0, 50.0])
@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("identity", lambda q: (q, 1.0)),
        ("relu", lambda q: (q / 2, 0.5)),
        ("leaky_relu", lambda q: (q * (1 + 0.01**2) / 2, (1 + 0.01**2) / 2)),
        ("erf", lambda q: (2 / pi * np.arcsin(2 * q / (1 + 2 * q)), 4 / pi / sqrt(1 + 4 * q))),
        ("hard_tanh", lambda q: (None, erf(1 / sqrt(2 * q)))),
    ],
)
def test_closed_forms(name, closed_form, q):
    square, slope = closed_form(q)
    if square is not None:
        assert meanfield.mean_square(name, q) == pytest.approx(square, rel=1e-10)
    assert meanfield.mean_square_slope(name, q) == pytest.approx(slope, rel=1e-10)


def test_selu_has_its_published_fixed_point():
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    assert meanfield.mean_square("selu", 1.0) == pytest.approx(1, abs=1e-9)
    expected = scale**2 * (0.5 + alpha**2 * e**2 * (1 - erf(sqrt(2))) / 2)
    assert meanfield.mean_square_slope("selu", 1.0) == pytest.approx(expected, rel=1e-10)
    assert expected == pytest.approx(1.071575, abs=5e-7)


def test_any_functions_mean():
    assert meanfield.gaussian_mean(lambda s: s**4, 0.7) == pytest.approx(3 * 0.7**2, rel=1e-12)
    assert meanfield.gaussian_mean(jnp.abs, 2.0, kinks=(0.0,)) == pytest.approx(sqrt(2 * 2.0 / pi), rel=1e-12)
    assert meanfield.mean_square(jnp.cos, 0.5) == pytest.approx((1 + np.exp(-1.0)) / 2, rel=1e-12)


# Fixed points and the critical line

TANH = [  # sigma_w^2, q*, chi_1, xi at sigma_b^2 = 0.05; Schoenholz et al.'s setting
    (0.5, 0.0876, 0.4320, 1.191),
    (1.0, 0.1936, 0.7590, 3.627),
    (1.3, 0.3153, 0.8802, 7.834),
    (1.5, 0.4180, 0.9386, 15.791),
    (1.7, 0.5331, 0.9867, 74.918),
    (2.0, 0.7218, 1.0477, None),
    (2.5, 1.0640, 1.1335, None),
    (3.0, 1.4280, 1.2089, None),
    (4.0, 2.1955, 1.3424, None),
]


@pytest.mark.parametrize(("sigma_w2", "q_star", "chi", "xi"), TANH)
def test_tanh_has_the_tabulated_fixed_points(sigma_w2, q_star, chi, xi):
    variances = {"sigma_w2": sigma_w2, "sigma_b2": 0.05}
    q = meanfield.fixed_point("tanh", **variances)
    assert q == pytest.approx(q_star, abs=6e-5)
    assert meanfield.variance_map("tanh", q, **variances) == pytest.approx(q, rel=1e-12)
    assert meanfield.chi_1("tanh", **variances) == pytest.approx(chi, abs=6e-5)
    depth = meanfield.depth_scale("tanh", **variances)
    assert depth == pytest.approx(-1 / log(meanfield.chi_1("tanh", **variances)))
    if xi:  # the table's xi_c, which is the gradient's in the ordered phase
        assert depth == pytest.approx(xi, abs=6e-4)
    else:
        assert depth < 0


@pytest.mark.parametrize(
    ("sigma_b2", "critical"),
    [(0.0, 1.0), (0.001, 1.18919), (0.01, 1.42421), (0.05, 1.76095), (0.1, 1.98607), (0.3, 2.50513)],
)
def test_tanhs_critical_line_is_the_tabulated_one(sigma_b2, critical):
    assert meanfield.critical_weight_variance("tanh", sigma_b2=sigma_b2) == pytest.approx(critical, abs=6e-6)


@pytest.mark.parametrize("name", ["tanh", "erf", "hard_tanh", "softsign", "sigmoid", "elu", "selu"])
def test_chi_is_one_on_the_critical_line(name):
    critical = meanfield.critical_weight_variance(name, sigma_b2=0.2)
    assert meanfield.chi_1(name, sigma_w2=critical, sigma_b2=0.2) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "critical"),
    [
        ("relu", 2),
        ("leaky_relu", 2 / 1.0001),
        ("identity", 1),
        ("tanh", 1),
        ("softsign", 1),
        ("elu", 1),
        ("erf", pi / 4),
        ("selu", 2 / (1.0507009873554805**2 * (1 + 1.6732632423543772**2))),
    ],
)
def test_without_biases_the_slope_at_zero_decides(name, critical):
    assert meanfield.critical_weight_variance(name) == pytest.approx(critical, abs=1e-10)


def test_a_sigmoid_is_critical_only_at_a_hundredfold_weight_variance():
    critical = meanfield.critical_weight_variance("sigmoid")
    assert 100 < critical < 110
    assert meanfield.chi_1("sigmoid", sigma_w2=critical) == pytest.approx(1, abs=1e-9)


def test_chi_is_the_slope_of_the_correlation_map_at_one():
    sigma_w2, sigma_b2, step = 1.3, 0.05, 1e-4
    q = meanfield.fixed_point("tanh", sigma_w2=sigma_w2, sigma_b2=sigma_b2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    z1, z2 = np.meshgrid(nodes, nodes, indexing="ij")

    def correlation(c):
        product = np.tanh(sqrt(q) * z1) * np.tanh(sqrt(q) * (c * z1 + sqrt(1 - c**2) * z2))
        return (sigma_w2 * (weights @ product @ weights) / (2 * pi) + sigma_b2) / q

    assert correlation(1.0) == pytest.approx(1, abs=1e-12)
    # the second-order difference at the end of the interval
    slope = (3 * correlation(1.0) - 4 * correlation(1 - step) + correlation(1 - 2 * step)) / (2 * step)
    assert slope == pytest.approx(meanfield.chi_1("tanh", sigma_w2=sigma_w2, sigma_b2=sigma_b2), abs=1e-6)


def test_the_depth_scale_is_infinite_where_nothing_shrinks():
    assert meanfield.depth_scale("identity", sigma_w2=1.0) == float("inf")


# Predictions for networks


def squares(profile):
    return 100**profile.log10_norm


def test_a_dense_prediction_is_the_product_of_its_factors():
    network = mlp(7, [20, 30], 5, activation="tanh", init=gaussian(1.3, 0.4))
    x = np.ones((1, 7))
    q, factors = 1.3**2 * 1.0 + 0.4**2, []
    for _ in range(2):
        factors.append(1.3**2 * meanfield.mean_square_slope("tanh", q))
        q = meanfield.variance_map("tanh", q, sigma_w2=1.3**2, sigma_b2=0.4**2)
    factors.append(1.3**2)
    np.testing.assert_allclose(meanfield.preactivation_variances(network, x)[-1], q, rtol=1e-12)
    outs = np.array([20, 30, 5])
    back = 5 * np.cumprod(factors[::-1])[::-1]
    np.testing.assert_allclose(squares(meanfield.layer_jacobian_norms(network, x)), np.array(factors) * outs, rtol=1e-9)
    np.testing.assert_allclose(squares(meanfield.backward_jacobian_norms(network, x)), back, rtol=1e-9)
    forward = np.cumprod(factors) * outs
    np.testing.assert_allclose(squares(meanfield.forward_jacobian_norms(network, x)), forward, rtol=1e-9)


def test_a_rectifier_network_keeps_twice_its_outputs():
    network = mlp(64, [100] * 50, 10, activation="relu", init="he_normal")
    np.testing.assert_allclose(squares(meanfield.backward_jacobian_norms(network, np.ones((1, 64)))), 20, rtol=1e-9)


@pytest.mark.parametrize("side", [4, 8])
def test_zero_padding_leaks_by_its_perron_factor(side):
    network = cnn((side, side, 4), [4] * 60, 10, activation="relu", init="he_normal", padding="SAME")
    ratios = squares(meanfield.backward_jacobian_norms(network, np.ones((1, side, side, 4))))
    assert ratios[0] / ratios[1] == pytest.approx(((1 + 2 * cos(pi / (side + 1))) / 3) ** 2, rel=1e-6)


def test_circular_padding_does_not_leak():
    network = cnn((4, 4, 4), [4] * 60, 10, activation="relu", init="he_normal", padding="CIRCULAR")
    ratios = squares(meanfield.backward_jacobian_norms(network, np.ones((1, 4, 4, 4))))
    np.testing.assert_allclose(ratios[:60] / ratios[0], 1, rtol=1e-9)


def test_a_thousand_sigmoid_layers_lose_what_the_factor_says():
    network = mlp(64, [100] * 1000, 10, activation="sigmoid", init="glorot_uniform")
    log_norm = meanfield.backward_jacobian_norms(network, np.ones((1, 64))).log10_norm
    q = meanfield.fixed_point("sigmoid", sigma_w2=1.0)
    assert log_norm[101] - log_norm[601] == pytest.approx(
        250 * np.log10(meanfield.mean_square_slope("sigmoid", q)), rel=1e-9
    )


def test_predictions_average_the_batch_by_squares():
    network = mlp(4, [10] * 3, 2, activation="tanh")
    x = np.array([[0.1] * 4, [3.0] * 4])
    single = [squares(meanfield.backward_jacobian_norms(network, one[None])) for one in x]
    together = squares(meanfield.backward_jacobian_norms(network, x))
    np.testing.assert_allclose(together, np.mean(single, axis=0), rtol=1e-9)


WIDE = {
    "dense": mlp(64, [256] * 3, 4, activation="sigmoid", init="standard"),
    "biased": mlp(64, [256, 128], 4, activation="tanh", init=gaussian(1.5, 0.3)),
    "zeros": cnn((4, 5, 2), [32] * 2, 4, activation="relu", init="he_normal"),
    "circular": cnn((4, 4, 8), [32] * 2, 4, activation="tanh", init="lecun_normal", padding="CIRCULAR"),
    "strided": sequential(
        (6, 6, 4),
        [
            Conv(32, "erf", stride=2, initializer=gaussian(1.5, 0.2)),
            Conv(32, "erf", kernel_size=2, padding="VALID", initializer=gaussian(1.5, 0.2)),
            Flatten(),
            Dense(4),
        ],
    ),
}


@pytest.mark.parametrize("network", WIDE.values(), ids=WIDE)
def test_wide_random_networks_do_what_is_predicted(network):
    x = jax.random.normal(jax.random.key(1), (2, *network.input_shape))
    draw = jax.jit(lambda key: network.init(key=key))
    seeds = [draw(key) for key in jax.random.split(jax.random.key(0), 24)]
    narrowness = sum(1 / np.prod(stage["weight"].shape[2:-1]) for stage in seeds[0] if stage)  # of fan-ins, summed
    for name in MEASURES:
        measure, predict = getattr(jacobians, name), getattr(meanfield, name)
        norms = [measure(network, params, x).log10_norm for params in seeds]
        measured = Profile.from_log10(norms, layers=network.layer_names, quantity=name).root_mean_square()
        prediction = predict(network, x)
        assert prediction.layers == measured.layers
        tolerance = 4 * measured.standard_error + 0.4 * narrowness  # theory is right to first order in 1/fan_in
        assert (np.abs(measured.log10_norm - prediction.log10_norm) < tolerance).all()


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (
            lambda: meanfield.chi_1("relu", sigma_w2=2.5),
            ValueError,
            r"sigma_w2=2.5.* give relu no fixed point .*finite depth",
        ),
        (lambda: meanfield.fixed_point("tanh", sigma_w2=-1.0), ValueError, "sigma_w2=-1.0 .*above zero"),
        (lambda: meanfield.fixed_point("tnah", sigma_w2=1.0), ValueError, "activation='tnah'.*did you mean 'tanh'"),
        (lambda: meanfield.mean_square("tanh", -1.0), ValueError, "q=-1.0 .*zero or more"),
        (lambda: meanfield.gaussian_mean(jnp.abs, 0.0), ValueError, "q=0.0 .*above zero"),
        (lambda: meanfield.critical_weight_variance("softplus"), ValueError, "sigma_b2=0.0 gives softplus no critical"),
        (
            lambda: meanfield.critical_weight_variance("gelu", sigma_b2=0.1),
            ValueError,
            "gelu no .* the variance settles",
        ),
        (lambda: meanfield.critical_weight_variance("relu", sigma_b2=0.1), ValueError, "sigma_b2=0.1 gives relu no"),
        (
            lambda: meanfield.backward_jacobian_norms(sequential((4, 4, 1), [MaxPool(2)]), np.ones((1, 4, 4, 1))),
            TypeError,
            "network has a max pool layer, .* Measure it with gradcourse.measure.jacobians",
        ),
        (
            lambda: meanfield.forward_jacobian_norms(mlp(3, [4], 2), np.ones((1, 5))),
            ValueError,
            r"accepted is \(batch, 3\)",
        ),
        (
            lambda: meanfield.layer_jacobian_norms(mlp(3, [4], 2), np.full((1, 3), np.nan)),
            ValueError,
            "NaN or infinity",
        ),
    ],
)
def test_bad_questions_are_refused(ask, error, words):
    with pytest.raises(error, match=words):
        ask()
