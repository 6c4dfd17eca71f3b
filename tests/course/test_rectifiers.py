"""What the chapter on rectifiers computes besides the package's measurements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.course.experiments.rectifiers import noisy_chance, small_cnn


@pytest.mark.parametrize("s", [-1.0, -0.3, 0.0, 0.7])
def test_a_noisy_rectifier_is_on_as_often_as_drawn(s):
    deviation = np.sqrt(1 / (1 + np.exp(-s)))
    drawn = s + deviation * np.random.default_rng(0).normal(size=200_000)
    share = np.mean(np.maximum(drawn, 0) > 0)
    assert float(noisy_chance(s)) == pytest.approx(share, abs=0.005)


def test_noise_fades_as_a_unit_sinks():
    chances = noisy_chance(jnp.array([-2.0, -1.0, 0.0, 1.0]))
    assert chances[2] == 0.5
    assert bool(jnp.all(jnp.diff(chances) > 0))
    assert chances[0] < 1e-8


def test_the_small_network_ends_in_64_features():
    network = small_cnn("relu", "he_normal")
    assert network.layer_names[-2:] == ("5 flatten", "6 dense")
    params = network.init(key=jax.random.key(0))
    assert params[-1]["weight"].shape == (1, 64, 10)
