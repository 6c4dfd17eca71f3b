"""Mean-field predictions for networks against products of factors, known eigenvalues and wide random networks."""

from math import cos, pi

import jax
import numpy as np
import pytest

from gradcourse.measure import jacobians
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import cnn, mlp, sequential
from gradcourse.profile import Profile
from gradcourse.theory import meanfield

MEASURES = ["backward_jacobian_norms", "forward_jacobian_norms", "layer_jacobian_norms"]


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
