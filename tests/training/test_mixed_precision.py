"""Descent in short formats: loss scaling that changes nothing or gives way, and weights that are kept in them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradcourse.nn.network import mlp
from gradcourse.training.data import digits
from gradcourse.training.mixed_precision import Descent, Dynamic, train_in

KEY, DATA = jax.random.key(0), digits()
SMALL = mlp(64, [16], 10, activation="tanh", init="glorot_uniform")


def descended(**settings: Any) -> Descent:
    settings = {"dtype": "float32", "learning_rate": 0.1, "steps": 4, "every": 2, **settings}
    return train_in(
        SMALL, SMALL.init(key=KEY), DATA, optax.sgd, watch=(DATA.x_train[:50], DATA.y_train[:50]), key=KEY, **settings
    )


def test_a_power_of_two_changes_no_bit_of_the_path() -> None:
    plain, scaled = descended(), descended(loss_scale=2.0**20)
    assert plain.step.tolist() == [0, 2, 4]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), plain.params, scaled.params))


def test_a_dynamic_scale_falls_until_nothing_overflows_and_grows_again() -> None:
    run = descended(dtype="float16", loss_scale=Dynamic(2.0**40, patience=2), steps=40, every=1)
    scale, skipped = np.asarray(run.scale), np.asarray(run.skipped)
    first = int(np.argmax(np.diff(skipped) == 0))
    assert first > 5
    assert scale[: first + 1].tolist() == [2.0 ** (40 - k) for k in range(first + 1)]
    assert run.loss[first] == run.loss[0]  # steps that overflow are left out
    assert scale[first + 2] == 2 * scale[first]
    assert run.loss[-1] < run.loss[0]
    assert np.isfinite(run.loss).all()


def test_weights_kept_in_a_short_format_stay_in_it_and_may_stand_still() -> None:
    start = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), SMALL.init(key=KEY))
    settings = {"dtype": "bfloat16", "learning_rate": 3e-5, "steps": 40, "every": 40}
    still, moved = (descended(keep=keep, **settings).params for keep in ("nearest", "stochastic"))
    assert still[0]["weight"].dtype == jnp.bfloat16
    assert float((still[0]["weight"] != start[0]["weight"]).mean()) < 0.005
    assert float((moved[0]["weight"] != start[0]["weight"]).mean()) > 0.02


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"dtype": "float64"}, ValueError, "dtype='float64' is not known"),
        ({"keep": "nearst"}, ValueError, "did you mean 'nearest'"),
        ({"loss_scale": 1000.0}, ValueError, "loss_scale=1000.0 is accepted as a power of two"),
        ({"loss_scale": 0.0}, ValueError, "loss_scale=0.0 is not accepted"),
        ({"every": 3}, ValueError, "every=3 does not divide steps=4"),
        ({"learning_rate": None}, TypeError, "learning_rate is missing"),
    ],
)
def test_what_does_not_fit_is_refused(settings: Any, error: type, words: str, no_runtime_typecheck: None) -> None:
    with pytest.raises(error, match=words):
        descended(**settings)
