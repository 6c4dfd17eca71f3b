"""Chapter 11's design: its networks, its draws, its two optimisers and its tables, each against something plainer."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradcourse.course.experiments import answer
from gradcourse.course.recording import Results, grid

KEY = jax.random.key(5)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_both_optimizers_are_optax_ones(name: str) -> None:
    rate = 0.02
    rule = {"sgd": optax.sgd, "adam": optax.adam}[name](rate)
    ours = theirs = {"w": jax.random.normal(KEY, (7,))}
    memory, mean, square = rule.init(theirs), *[jax.tree.map(jnp.zeros_like, ours)] * 2
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        for step in range(5):
            gradient = {"w": jnp.sin((1.0 + step) * ours["w"])}
            ours, mean, square = answer.descended(
                ours, mean, square, gradient, jnp.asarray(step), jnp.asarray(rate), jnp.asarray(name == "adam")
            )
            change, memory = rule.update(gradient, memory)
            theirs = optax.apply_updates(theirs, change)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-6)


def test_schemes_differ_by_their_gain_only() -> None:
    draws = {
        (activation, init): answer.start(activation, init, "none", 4, key=KEY)
        for activation, init in [("tanh", "standard"), ("tanh", "glorot"), ("tanh", "matched"), ("relu", "matched")]
    }
    one = draws["tanh", "glorot"]
    for cell, gain in ((("tanh", "standard"), 3**-0.5), (("tanh", "matched"), 1.0), (("relu", "matched"), 2**0.5)):
        other = draws[cell]
        np.testing.assert_allclose(other[1]["3"]["weight"], gain * one[1]["3"]["weight"], rtol=1e-6)
        np.testing.assert_array_equal(other[0]["weight"], one[0]["weight"])
        np.testing.assert_array_equal(other[-1]["weight"], one[-1]["weight"])
    assert float(72 * jnp.square(one[1]["1"]["weight"]).mean()) == pytest.approx(1, abs=0.1)


def test_recentred_sigmoids_of_an_even_picture_have_no_bias_left() -> None:
    """Away from the border, where no zeros are padded: all outputs one half give pre-activations of zero."""
    pairs = answer.start("sigmoid", "matched", "none", 4, key=KEY)[1]
    network = answer.trunk("sigmoid", "none", "none", 4)
    layer = {name: leaf[0] for name, leaf in pairs["1"].items()}
    s = network.stages[1].layer.body[1].apply(layer, jnp.full((1, 4, 4, 8), 0.5))
    np.testing.assert_allclose(s[0, 1:3, 1:3], 0, atol=1e-5)
    assert float(jnp.abs(s[0, 0]).max()) > 0.1


def test_a_cell_has_as_many_convolutions_as_its_depth_says() -> None:
    network = answer.trunk("relu", "batch", "residual", 20)
    assert [stage.repeats for stage in network.stages] == [1, 10, 1, 1, 1]
    assert network.couples_examples
    plain = jax.tree.structure(answer.start("relu", "standard", "batch", 20, key=KEY))
    assert jax.tree.structure(network.init(key=KEY)) == plain


def test_tables_have_an_axis_per_factor() -> None:
    found = [
        {"given": given, "found": {"place": [index, 0]}, "seconds": 0} for index, given in enumerate(answer._CELLS)
    ]
    results = Results("ablation", "", {}, tuple(found))
    table = results.table("place")
    assert table.shape == (*map(len, answer.LEVELS.values()), 2)
    for point in (found[0], found[17], found[-1]):
        levels = tuple(answer.LEVELS[name].index(point["given"][name]) for name in answer.LEVELS)
        assert table[levels][0] == point["found"]["place"][0]
    assert results.table("place", depth=4, init="glorot").shape == (3, 2, 2, 2, 2)
    assert grid(**answer.LEVELS) == answer._CELLS


def test_the_better_rate_is_that_of_all_seeds_together() -> None:
    accuracy = np.zeros((1, 2, 2, 3))  # cell, seed, rate, look
    accuracy[0, :, 0, 1] = 0.6, 0.6
    accuracy[0, :, 1, 1] = 0.1, 0.9  # one lucky seed, a worse rate
    accuracy[0, :, 1, 2] = 0.7, 0.8
    found = answer.of_better_rate(accuracy)
    np.testing.assert_allclose(found[0, :, 1], [0.6, 0.6])
    np.testing.assert_allclose(found[0, :, 2], [0.7, 0.8])


def test_what_is_recorded_is_the_whole_design() -> None:
    results = Results.read(Path(__file__).parents[2] / "book" / "data" / "ablation.json")
    accuracy = results.table("accuracy")
    assert accuracy.shape[-3:] == (answer.SEEDS, 2, len(answer.LOOKS))
    assert ((accuracy >= 0) & (accuracy <= 1)).all()
