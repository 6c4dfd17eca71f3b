"""The theory of convolutions against closed forms and direct computation."""

from math import cos, pi, sqrt

import jax
import numpy as np
import pytest

from gradcourse.nn.convolutions import Conv
from gradcourse.nn.initializers import gaussian
from gradcourse.nn.network import sequential
from gradcourse.theory import meanfield
from gradcourse.theory.convolution import border_factor, border_share, wave_walk


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
