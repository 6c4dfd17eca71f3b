"""The digits are all there, once, in a fixed order."""

import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from gradcourse.datasets import digits


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
