"""Lanczos against Hessians that are formed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gradcourse.measure.curvature import sharpness
from gradcourse.nn.network import mlp
from gradcourse.training.data import digits
from gradcourse.training.loop import cross_entropy

DATA = digits()
NETWORK = mlp(64, [4, 4, 4], 10, activation="tanh", init="glorot_uniform")
X, Y = DATA.x_train[:50], DATA.y_train[:50]
LOSS = partial(cross_entropy, NETWORK)


def quadratic(eigenvalues: list[float], seed: int = 0):
    """A loss with these curvatures in random directions, and its parameters in two arrays."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    hessian = jnp.asarray(rotation @ np.diag(eigenvalues) @ rotation.T, jnp.float32)

    def loss(params):
        flat = jnp.concatenate(params)
        return flat @ hessian @ flat / 2

    return loss, (jnp.ones(2), jnp.ones(len(eigenvalues) - 2)), np.asarray(hessian)


@pytest.mark.parametrize("eigenvalues", [[5.0, 1.0, 0.1, -7.0], [-1.0, -2.0, -3.0, -4.0], [2.0] * 5, [3.0, 3.0, 1.0]])
def test_the_largest_eigenvalue_is_found_whatever_the_others(eigenvalues: list[float]) -> None:
    loss, params, _ = quadratic(eigenvalues)
    found = sharpness(loss, params, key=jax.random.key(0))
    assert float(found.value) == pytest.approx(max(eigenvalues), rel=1e-4)
    assert found.residual < 1e-3


def test_of_a_network_it_is_that_of_the_hessian_and_of_its_blocks() -> None:
    params = NETWORK.init(key=jax.random.key(0))
    flat, unravel = ravel_pytree(params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda flat: LOSS(unravel(flat), X, Y)))(flat))
    whole = jax.jit(lambda p: sharpness(LOSS, p, X, Y, key=jax.random.key(1)))(params)
    assert float(whole.value) == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-4)
    # The second of the two layers that are stacked in the second stage, and the first stage.
    blocks = (
        (False, np.array([False, True]), False),
        ({"weight": True, "bias": False}, False, False),
    )
    for within in blocks:
        chosen = np.concatenate(
            [
                np.broadcast_to(
                    np.reshape(mask, np.shape(mask) + (1,) * (leaf.ndim - np.ndim(mask))), leaf.shape
                ).ravel()
                for stage, masks in zip(params, within, strict=True)
                for name, leaf in sorted(stage.items())
                for mask in [masks[name] if isinstance(masks, dict) else masks]
            ]
        ).astype(bool)
        block = sharpness(LOSS, params, X, Y, within=within, key=jax.random.key(1))
        assert float(block.value) == pytest.approx(np.linalg.eigvalsh(hessian[np.ix_(chosen, chosen)])[-1], rel=1e-3)


def test_an_eigenvalue_lies_within_the_residual() -> None:
    loss, params, hessian = quadratic(list(np.linspace(0.9, 1.0, 40)))
    for steps in (2, 4, 8):
        value, residual = sharpness(loss, params, iterations=steps, key=jax.random.key(steps))
        assert residual > 1e-4  # too few steps to be exact
        assert np.abs(np.linalg.eigvalsh(hessian) - value).min() <= residual * 1.001
        assert value <= 1.0 + 1e-5


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (TypeError, r"params\['n'\] has dtype int32", {"params": {"n": jnp.arange(3)}}),
        (TypeError, "loss returns .* accepted is a scalar", {"loss": lambda p: p[0]}),
        (ValueError, "leaves no parameter to move", {"within": False}),
        (ValueError, r"within\[0\] has shape \(3,\) for parameters of shape \(2,\)", {"within": (np.ones(3), True)}),
        (ValueError, "another structure than params", {"within": {"a": True}}),
        (ValueError, "iterations=0", {"iterations": 0}),
    ],
)
def test_bad_input_is_refused(error: type[Exception], words: str, arguments: dict) -> None:
    loss, params, _ = quadratic([1.0, 2.0, 3.0])
    usual = {"loss": loss, "params": params, "key": jax.random.key(0)} | arguments
    with pytest.raises(error, match=words):
        sharpness(usual.pop("loss"), usual.pop("params"), **usual)
