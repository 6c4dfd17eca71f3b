"""The digits are all there, once, in a fixed order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from gradcourse.training.data import Dataset, digits


def test_every_digit_is_there_once_with_its_label() -> None:
    data, source = digits(), load_digits()
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    order = np.lexsort(((x + 1) * 8).T)
    expected = np.lexsort(source.data.T)
    np.testing.assert_array_equal(((x + 1) * 8)[order], source.data[expected])
    np.testing.assert_array_equal(y[order], source.target[expected])


def test_split_sizes_range_and_repeatability() -> None:
    data = digits()
    assert (len(data.x_train), len(data.x_test)) == (1437, 360)
    assert float(data.x_train.min()) == -1
    assert float(data.x_train.max()) == 1
    assert all(jnp.array_equal(one, other) for one, other in zip(data, digits(), strict=True))
    assert min(np.bincount(data.y_test)) >= 20  # every class can be tested


def test_images_are_the_vectors_in_rows() -> None:
    np.testing.assert_array_equal(digits(images=True).x_test.reshape(360, 64), digits().x_test)


def test_a_batch_is_training_examples_with_their_labels_drawn_with_replacement() -> None:
    # Every example says which it is, and so does its label; those of the test set would be told by their sign.
    place = jnp.arange(7)
    data = Dataset(place[:, None].astype(jnp.float32), place, -jnp.ones((3, 1)), -jnp.ones(3, jnp.int32))
    x, y = data.batch(700, key=jax.random.key(0))
    np.testing.assert_array_equal(x[:, 0], y)
    counts = np.bincount(y, minlength=7)
    assert counts.min() > 60  # 100 each on average, with a standard deviation of 9.3
    assert counts.max() < 140
    assert jnp.array_equal(data.batch(700, key=jax.random.key(0))[1], y)
    assert not jnp.array_equal(data.batch(700, key=jax.random.key(1))[1], y)


def test_batches_under_jit_and_vmap_are_those_drawn_one_by_one() -> None:
    data, keys = digits(images=True), jax.random.split(jax.random.key(0), 3)
    x, y = jax.jit(lambda data: jax.vmap(lambda key: data.batch(4, key=key))(keys))(data)
    assert x.shape == (3, 4, 8, 8, 1)
    for key, *drawn in zip(keys, x, y, strict=True):
        for one, other in zip(data.batch(4, key=key), drawn, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_batch_of_no_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0 is accepted from 1 up"):
        digits().batch(0, key=jax.random.key(0))
