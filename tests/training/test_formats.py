"""Number formats: their ends, where products vanish, stochastic rounding."""

import jax
import jax.numpy as jnp
import pytest

from gradcourse.training.formats import number_format, round_stochastically, vanishing_point


@pytest.mark.parametrize(("dtype", "digits", "bits"), [("float32", 24, 8), ("bfloat16", 8, 8), ("float16", 11, 5)])
def test_a_format_is_what_its_bits_say(dtype: str, digits: int, bits: int) -> None:
    form, most = number_format(dtype), 2 ** (bits - 1) - 1
    assert form.digits == digits
    assert form.normal == 2.0 ** (1 - most)
    assert form.smallest == form.normal * 2.0 ** (1 - digits)
    assert form.largest == 2.0**most * (2 - 2.0 ** (1 - digits))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_products_vanish_at_the_normal_numbers_or_at_half_the_smallest(dtype: str) -> None:
    form = number_format(dtype)
    assert vanishing_point(dtype) in (form.normal, form.smallest / 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_is_right_on_average_and_goes_to_a_neighbour(dtype: str) -> None:
    values = jax.random.normal(jax.random.key(0), (50,))
    rounded = jax.vmap(lambda key: round_stochastically(values, jnp.dtype(dtype), key=key))(
        jax.random.split(jax.random.key(0), 4000)
    ).astype("float32")
    gap = jnp.ldexp(jnp.ones_like(values), jnp.frexp(values)[1] - number_format(dtype).digits)
    assert float(jnp.max(jnp.abs(rounded - values[None]) / gap[None])) < 1
    assert float(jnp.max(jnp.abs(rounded.mean(axis=0) - values) / gap)) < 0.04
