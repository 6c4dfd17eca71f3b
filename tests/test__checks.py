"""Errors name the argument, the value, what is accepted and the way out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse import _checks as checks

pytestmark = pytest.mark.usefixtures("no_runtime_typecheck")


@pytest.mark.parametrize(
    ("value", "nearest"),
    [("sigmod", "sigmoid"), ("ReLU", "relu"), ("leaky-relu", "leaky_relu"), ("Leaky ReLU", "leaky_relu")],
)
def test_an_unknown_name_meets_its_nearest_match(value, nearest):
    with pytest.raises(ValueError, match=f"activation='{value}'.*did you mean '{nearest}'.*Accepted: 'sigmoid'"):
        checks.known_name("activation", value, ["sigmoid", "relu", "leaky_relu"])


def test_a_name_like_no_other_gets_the_list_alone():
    with pytest.raises(ValueError, match=r"init='xyz' is not known. Accepted: 'relu'"):
        checks.known_name("init", "xyz", ["relu"])


@pytest.mark.parametrize("value", [None, 3, ["relu"]])
def test_a_name_must_be_a_string(value):
    with pytest.raises(TypeError, match=r"activation=.* not a name. Accepted: 'relu'"):
        checks.known_name("activation", value, ["relu"])


@pytest.mark.parametrize("value", [1, np.int64(7), 10**9])
def test_positive_integers_pass(value):
    assert checks.positive_integer("depth", value) == value


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-2, ValueError), (2.0, TypeError), (True, TypeError), ("3", TypeError)]
)
def test_other_integers_are_refused(value, error):
    with pytest.raises(error, match=rf"depth={value!r} .*accepted.*from 1 up"):
        checks.positive_integer("depth", value)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1.0, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        ("1", TypeError),
        (None, TypeError),
    ],
)
def test_numbers_must_be_finite_and_positive(value, error):
    with pytest.raises(error, match=f"scale={value!r}.*a finite number above zero"):
        checks.positive_number("scale", value)


def test_zero_is_a_number_where_it_is_allowed():
    assert checks.positive_number("sigma_b", 0, zero=True) == 0.0


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (np.ones((2, 5), "f4"), ValueError, r"x has shape \(2, 5\); accepted is \(batch, 4\)"),
        (np.ones((2, 3, 4), "f4"), ValueError, r"rank 3; accepted is \(batch, 4\)"),
        (np.ones(4, "f4"), ValueError, r"One example\? Write x\[None\]"),
        (np.ones((0, 4), "f4"), ValueError, "empty batch; accepted is at least one example"),
        (np.ones((2, 4), "i4"), TypeError, r"x has dtype int32 and .*Write x.astype\('float32'\)"),
        (np.full((2, 4), np.nan, "f4"), ValueError, "NaN or infinity; accepted are finite numbers"),
        (np.full((2, 4), np.inf, "f4"), ValueError, "NaN or infinity; accepted are finite numbers"),
    ],
)
def test_bad_batches_are_refused(x, error, words):
    with pytest.raises(error, match=words):
        checks.measurable_input(x, (4,), jnp.float32)


def test_inside_jit_only_shapes_are_checked():
    doubled = jax.jit(lambda x: 2 * checks.measurable_input(x, (4,), jnp.float32))
    assert np.isnan(doubled(np.full((1, 4), np.nan, "f4"))).all()
    with pytest.raises(ValueError, match="accepted is"):
        doubled(np.ones((1, 5), "f4"))
