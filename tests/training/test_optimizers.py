"""Rates by layer against updates made by hand, and the largest stable rate against its theory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradcourse.nn.network import mlp
from gradcourse.training.optimizers import largest_stable_rate, layerwise, normalised_steps, scale_by_layer, singh_steps

NETWORK = mlp(3, [4] * 3, 2)
PARAMS = NETWORK.init(key=jax.random.key(0))
GRADIENT = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)), PARAMS)


def test_each_layer_has_its_rate() -> None:
    optimizer = scale_by_layer((0.5, jnp.array([0.1, 0.2]), {"weight": 3.0, "bias": 0.0}))
    updates, _ = optimizer.update(GRADIENT, optimizer.init(PARAMS))
    np.testing.assert_allclose(updates[0]["weight"], 0.5 * GRADIENT[0]["weight"])
    np.testing.assert_allclose(updates[1]["bias"][1], 0.2 * GRADIENT[1]["bias"][1], rtol=1e-6)
    np.testing.assert_allclose(updates[2]["weight"], 3 * GRADIENT[2]["weight"], rtol=1e-6)
    assert not updates[2]["bias"].any()
    with pytest.raises(ValueError, match=r"rates\[1\] has shape \(3,\) for updates of shape \(2, 4\)"):
        scale_by_layer((1.0, jnp.ones(3), 1.0)).update(GRADIENT, optax.EmptyState())


@pytest.mark.parametrize(
    "rule", [optax.sgd(0.1, momentum=0.9), optax.scale_by_trust_ratio(), optax.clip_by_global_norm(1)]
)
def test_a_rule_by_layer_is_the_rule_on_each_layer_alone(rule: optax.GradientTransformation) -> None:
    optimizer = layerwise(rule)
    state = optimizer.init(PARAMS)
    for _ in range(2):  # the second time with a state that has moved
        updates, state = optimizer.update(GRADIENT, state, PARAMS)
    for stage, repeats in enumerate((1, 2, 1)):
        for name in ("weight", "bias"):
            for layer in range(repeats):
                one, gradient = PARAMS[stage][name][layer], GRADIENT[stage][name][layer]
                alone = rule.init(one)
                for _ in range(2):
                    expected, alone = rule.update(gradient, alone, one)
                np.testing.assert_allclose(updates[stage][name][layer], expected, rtol=1e-6)


def test_normalised_steps_are_the_same_share_of_every_layer() -> None:
    tiny = jax.tree.map(lambda leaf: leaf * 1e-12, GRADIENT)
    optimizer = normalised_steps(0.03)
    for gradient in (GRADIENT, tiny):
        updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
        for stage, update in zip(PARAMS, updates, strict=True):
            shares = jnp.linalg.norm(update["weight"], axis=(1, 2)) / jnp.linalg.norm(stage["weight"], axis=(1, 2))
            np.testing.assert_allclose(shares, 0.03, rtol=1e-5)
    assert float(jnp.vdot(updates[0]["weight"], GRADIENT[0]["weight"])) < 0  # downhill


def test_singh_rates_grow_with_the_logarithm_of_a_small_gradient() -> None:
    for scale in (1.0, 1e-6, 0.0):
        gradient = jax.tree.map(lambda leaf, scale=scale: leaf * scale, GRADIENT)
        optimizer = singh_steps(0.1)
        updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
        for layer in range(2):
            one = np.asarray(gradient[1]["weight"][layer], np.float64)
            boost = 1 + np.log1p(1 / np.linalg.norm(one)) if scale else 1
            np.testing.assert_allclose(updates[1]["weight"][layer], -0.1 * boost * one, rtol=1e-5)


def bowl(params: dict) -> jax.Array:
    """Curvatures 6, 2 and 0.5."""
    return 3 * jnp.square(params["a"]).sum() + jnp.square(params["b"]).sum() + jnp.square(params["c"]).sum() / 4


BOWL = {name: jnp.ones(2) for name in "abc"}


@pytest.mark.parametrize(
    ("optimizer", "border"),
    [(optax.sgd, 2 / 6), (lambda rate: optax.sgd(rate, momentum=0.5), 2 * 1.5 / 6)],
    ids=["plain", "momentum"],
)
def test_on_a_quadratic_stability_ends_where_theory_says(optimizer, border: float) -> None:
    low, high = largest_stable_rate(bowl, BOWL, optimizer=optimizer, steps=300)
    assert float(low) == pytest.approx(border, rel=0.01)
    assert 1 < float(high / low) < 1.0001


def test_many_starts_at_once_have_the_same_border() -> None:
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), BOWL)
    low, _ = jax.vmap(lambda start: largest_stable_rate(bowl, start, steps=300))(starts)
    np.testing.assert_allclose(low, 2 / 6, rtol=0.01)


def test_a_catapult_is_stable_in_the_end_and_not_throughout() -> None:
    """Lewkowycz et al. 2020: two layers recover from a start between 2 and 4 over the curvature."""

    def product(params: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.square(params[0] @ params[1] / 64**0.5) / 2

    u, v = jax.random.normal(jax.random.key(0), (2, 64))
    curvature = (u @ u + v @ v) / 64
    v = v + (0.1 - u @ v / 8) * 8 * u / (u @ u)  # the output is 0.1
    for throughout, factor in ((True, 2), (False, 4)):
        low, _ = largest_stable_rate(product, (u, v), steps=300, within=(0.1, 10.0), throughout=throughout)
        assert float(low * curvature) == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize(
    ("within", "words"), [((1.0, 10.0), "1 is not stable. Give a smaller"), ((1e-3, 0.1), "0.1 is stable")]
)
def test_ends_that_enclose_nothing_are_refused(within: tuple[float, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        largest_stable_rate(bowl, BOWL, within=within, steps=20)
    nothing, _ = jax.jit(lambda start: largest_stable_rate(bowl, start, within=within, steps=20))(BOWL)
    assert np.isnan(nothing)
