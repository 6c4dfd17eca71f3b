"""Activations against autodiff in float64, their bounds and their tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.nn.activations import ACTIVATIONS, Activation, resolve

everyone = pytest.mark.parametrize("name", ACTIVATIONS)
TAIL = np.geomspace(8, 40, 50)
GRID = np.concatenate([-TAIL[::-1], np.linspace(-8, 8, 1600), TAIL])  # steps over 0 and the kinks at -1 and 1


@everyone
def test_the_slope_is_the_derivative(name):
    activation = ACTIVATIONS[name]
    with jax.enable_x64(True):
        autodiff = jax.vmap(jax.grad(activation.function))(jnp.asarray(GRID))
        np.testing.assert_allclose(activation.slope(GRID), autodiff, rtol=1e-9, atol=2e-15)


@everyone
def test_the_slope_keeps_its_digits_in_float32_tails(name):
    activation = ACTIVATIONS[name]
    reach = {"erf": 6, "tanh": 20, "gelu": 6}.get(name, 40)
    s = np.float32(GRID[np.abs(GRID) <= reach])
    s = s[(np.abs(s + 0.7518) > 0.1) & (np.abs(s + 1.2785) > 0.1)]  # where gelu and silu turn, the slope is 0
    with jax.enable_x64(True):
        exact = np.asarray(activation.slope(np.float64(s)))
    np.testing.assert_allclose(activation.slope(s), exact, rtol=2e-5 if name in ("gelu", "silu") else 1e-5, atol=0)


@pytest.mark.parametrize(("name", "rate", "s"), [("sigmoid", 1, 40.0), ("tanh", 2, 20.0)])
def test_saturated_slopes_are_tiny_not_zero(name, rate, s):
    decay = np.exp(-rate * s)
    exact = rate**2 * decay / (1 + decay) ** 2
    np.testing.assert_allclose([ACTIVATIONS[name].slope(s), ACTIVATIONS[name].slope(-s)], exact, rtol=1e-5)


@everyone
def test_what_is_not_a_number_is_not_a_slope(name):
    assert np.isnan(ACTIVATIONS[name].slope(np.nan)) or name == "identity"


@everyone
def test_the_class_that_is_declared_is_the_functions_own(name):
    """`f(s)` is `s f'(s)` next to 0, or everywhere; and the slope jumps at 0."""
    activation = ACTIVATIONS[name]
    near, far = np.float32([-1e-10, -1e-20, 0, 1e-20, 1e-10]), np.float32([-1e30, -1, 1, 1e30])

    def is_linear(s):
        value, straight = np.asarray(activation(s)), s * np.asarray(activation.slope(s))
        return bool((np.abs(value - straight) <= 1e-3 * np.abs(value)).all())

    assert activation.linear_at_zero == is_linear(near)
    assert activation.homogeneous == (is_linear(near) and is_linear(far))
    below, above = activation.slope(np.float32([-1e-10, 1e-10]))
    assert activation.kinked_at_zero == (not np.isclose(below, above, rtol=1e-3))


@everyone
def test_the_bound_holds_and_is_attained(name):
    activation = ACTIVATIONS[name]
    with jax.enable_x64(True):
        steepest = np.abs(activation.slope(np.linspace(-40, 40, 800_001))).max()
    assert activation.derivative_bound - 1e-6 <= steepest <= activation.derivative_bound + 1e-14


@everyone
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_kept(name, dtype):
    with jax.enable_x64(True):
        s = jnp.linspace(-3, 3, 7, dtype=dtype)
        assert ACTIVATIONS[name](s).dtype == ACTIVATIONS[name].slope(s).dtype == dtype


@everyone
def test_jit_changes_nothing(name):
    activation, s = ACTIVATIONS[name], np.float32(GRID)
    for function in (activation, activation.slope):
        np.testing.assert_allclose(jax.jit(function)(s), function(s), rtol=2e-6, atol=2e-8)


def test_numbers_of_your_own_are_welcome():
    assert float(resolve("relu")(2.0)) == 2.0


def test_a_function_of_your_own_is_differentiated():
    def cube(s):
        return s**3

    activation = resolve(cube)
    assert activation.name == "cube"
    assert np.isnan(activation.derivative_bound)
    assert (activation.linear_at_zero, activation.homogeneous, activation.kinked_at_zero) == (False, False, True)
    np.testing.assert_allclose(activation.slope(np.float32([1, 2])), [3, 12], rtol=1e-6)


def test_an_activation_resolves_to_itself():
    activation = Activation("mine", jnp.sin)
    assert resolve(activation) is activation


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"activation=3 is a int, not a name. Accepted: 'identity'"):
        resolve(3)
