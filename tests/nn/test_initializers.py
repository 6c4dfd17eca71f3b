"""Initialisers against the moments and structures that their papers give."""

import jax
import numpy as np
import pytest

from gradcourse.nn.initializers import INITIALIZERS, Initializer, gaussian, resolve

RANDOM = [name for name in INITIALIZERS if "orthogonal" not in name]
SHAPES = [(150, 200), (3, 3, 80, 40)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(init, shape):
    return np.asarray(init.weights(shape, key=jax.random.key(1)), np.float64)


@shapes
@pytest.mark.parametrize("name", RANDOM)
def test_weights_have_mean_zero_and_the_stated_second_moment(name, shape):
    init = Initializer(name, scale=1.5)
    weights, moment = draw(init, shape), np.mean(init.second_moment(shape))
    kurtosis = 1.8 if name in ("standard", "lecun_uniform", "glorot_uniform", "he_uniform") else 3.0
    assert abs(weights.mean()) < 4 * np.sqrt(moment / weights.size)
    assert abs(np.square(weights).mean() / moment - 1) < 4 * np.sqrt((kurtosis - 1) / weights.size)


@shapes
@pytest.mark.parametrize("name", ["standard", "lecun_uniform", "glorot_uniform", "he_uniform"])
def test_uniform_weights_fill_their_interval(name, shape):
    init = Initializer(name)
    largest, bound = np.abs(draw(init, shape)).max(), np.sqrt(3 * np.mean(init.second_moment(shape)))
    assert 0.998 * bound < largest <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("standard", 1 / (3 * 50)),
        ("lecun_normal", 1 / 50),
        ("lecun_uniform", 1 / 50),
        ("glorot_normal", 2 / 80),
        ("glorot_uniform", 2 / 80),
        ("he_normal", 2 / 50),
        ("he_uniform", 2 / 50),
        ("gaussian", 1 / 50),
        ("orthogonal", 1 / 50),
        ("delta_orthogonal", 1 / 50),
    ],
)
def test_variances_are_those_of_the_papers(name, variance):
    assert Initializer(name).second_moment((50, 30)) == pytest.approx(variance, rel=1e-12)


def test_standard_is_a_sixth_of_he():
    for shape in SHAPES:
        ratio = Initializer("he_uniform").second_moment(shape) / Initializer("standard").second_moment(shape)
        np.testing.assert_allclose(ratio, 6, rtol=1e-12)


@shapes
def test_orthogonal_weights_are_orthonormal(shape):
    init = Initializer("orthogonal")
    matrix = np.asarray(init.weights(shape, key=jax.random.key(0))).reshape(-1, shape[-1])
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)
    np.testing.assert_allclose(np.square(matrix).mean(), np.mean(init.second_moment(shape)), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_a_delta_orthogonal_kernel_is_one_orthogonal_tap(size):
    init = Initializer("delta_orthogonal")
    kernel = np.array(init.weights((size, size, 6, 8), key=jax.random.key(0)))
    centre = (size - 1) // 2
    tap = kernel[centre, centre].copy()
    np.testing.assert_allclose(tap @ tap.T, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(np.square(kernel).mean(axis=(2, 3)), init.second_moment(kernel.shape), rtol=1e-5)
    kernel[centre, centre] = 0
    assert not kernel.any()


def test_a_dense_delta_orthogonal_layer_is_orthogonal():
    key = jax.random.key(3)
    weights = [Initializer(name).weights((5, 5), key=key) for name in ("orthogonal", "delta_orthogonal")]
    np.testing.assert_array_equal(*weights)


def test_sigma_w_and_sigma_b_are_the_mean_field_scheme():
    init, key = gaussian(1.7, 0.3), jax.random.key(0)
    assert init.second_moment((100, 10)) * 100 == pytest.approx(1.7**2)
    biases = np.asarray(init.biases((10_000,), key=key))
    assert biases.std() == pytest.approx(0.3, rel=4 / np.sqrt(20_000))
    assert not np.any(Initializer("he_normal").biases((10,), key=key))


def test_a_key_decides_the_draw():
    init = Initializer("he_normal")
    first, again, other = (np.asarray(init.weights((5, 5), key=jax.random.key(seed))) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).all()


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: resolve("he_norml"), ValueError, "init='he_norml'.*did you mean 'he_normal'"),
        (lambda: resolve(3), TypeError, "init=3 is a int.*Accepted: 'standard'"),
        (lambda: Initializer("he_normal", scale=-1.0), ValueError, "scale=-1.0 .*zero or more"),
        (lambda: Initializer("he_normal", sigma_b=-1.0), ValueError, "sigma_b=-1.0 .*zero or more"),
        (lambda: gaussian(-0.1), ValueError, "sigma_w=-0.1 .*zero or more"),
        (lambda: gaussian(1.0, float("nan")), ValueError, "sigma_b=nan"),
        (
            lambda: Initializer("delta_orthogonal").weights((3, 3, 8, 4), key=jax.random.key(0)),
            ValueError,
            "8 channels in and 4 out; accepted is out >= in. Widen",
        ),
    ],
)
def test_bad_schemes_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
