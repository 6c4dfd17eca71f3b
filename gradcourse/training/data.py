"""What minibatches are drawn from, and the digits that ship with scikit-learn: nothing is downloaded.

>>> data = digits()
>>> data.x_train.shape, data.x_test.shape
((1437, 64), (360, 64))
"""

from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gradcourse._checks import positive_integer

__all__ = ["Data", "Dataset", "digits"]


@runtime_checkable
class Data(Protocol):
    """What minibatches are drawn from: a `Dataset`, a `Shapeset`, or anything of yours with this method.

    It must be a pytree; `jax.tree_util.register_static` makes one of a class that holds no arrays.
    """

    def batch(self, size: int, *, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Returns `size` examples and their labels, drawn by `key`."""


class Dataset(NamedTuple):
    """Examples and labels, split into a training and a test set."""

    x_train: Float[Array, "train *shape"]
    y_train: Int[Array, " train"]
    x_test: Float[Array, "test *shape"]
    y_test: Int[Array, " test"]

    def batch(self, size: int, *, key: PRNGKeyArray) -> tuple[Float[Array, "size *shape"], Int[Array, " size"]]:
        """Returns `size` training examples and their labels, drawn with replacement by `key`.

        >>> x, y = digits().batch(32, key=jax.random.key(0))
        >>> x.shape, y.shape
        ((32, 64), (32,))
        """
        chosen = jax.random.randint(key, (positive_integer("size", size),), 0, len(self.x_train))
        return self.x_train[chosen], self.y_train[chosen]


def digits(*, images: bool = False) -> Dataset:
    """Returns scikit-learn's 1797 handwritten digits (UCI, 8 x 8 pixels, ten classes), shuffled and split 1437 / 360.

    Pixels run from -1 (paper) to 1 (ink). Examples are vectors `(64,)`, or `(8, 8, 1)` with `images`. The order is the
    permutation of NumPy's `default_rng(0)`, so that every reader has the same split.

    >>> x = digits(images=True).x_train
    >>> x.shape, float(x.min()), float(x.max())
    ((1437, 8, 8, 1), -1.0, 1.0)
    """
    pixels, labels = _shuffled_digits()
    x, y = jnp.asarray(pixels.reshape(-1, 8, 8, 1) if images else pixels), jnp.asarray(labels)
    return Dataset(x[:1437], y[:1437], x[1437:], y[1437:])


@lru_cache(maxsize=1)
def _shuffled_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels, read once; in NumPy's double precision, whatever that of the run."""
    from sklearn.datasets import load_digits  # takes a second, which only those who want the digits should pay

    source = load_digits()
    order = np.random.default_rng(0).permutation(len(source.target))
    return source.data[order] / 8 - 1, source.target[order]
