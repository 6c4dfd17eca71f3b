"""What minibatches are drawn from: the digits that ship with scikit-learn, and whatever you have as IDX files.

Nothing is downloaded.

>>> data = digits()
>>> data.x_train.shape, data.x_test.shape
((1437, 64), (360, 64))
"""

import gzip
import math
import zlib
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from gradcourse._checks import positive_integer

__all__ = ["Data", "Dataset", "digits", "idx_folder", "read_idx"]

# The third byte of an IDX file, and the type of its elements, the first byte the most significant.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


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


# ---- IDX files: MNIST, Fashion-MNIST and others


def read_idx(path: str | PathLike[str]) -> Shaped[np.ndarray, "..."]:
    """Returns the array that a file in the IDX format holds, plain or compressed by gzip.

    The format is that of LeCun, Cortes and Burges' MNIST database: two bytes of zero, one for the type of the elements,
    one for the number of axes, the length of each axis in four bytes, then the elements, the last axis fastest; in all
    numbers the most significant byte comes first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "three-idx1-ubyte"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)

    Raises `FileNotFoundError` or `IsADirectoryError` where there is no such file, and `ValueError`, with what was
    found, where it is no whole IDX file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder; give a file in the IDX format. For all: idx_folder.")
    if not path.exists():
        raise FileNotFoundError(f"path={str(path)!r} is not there; give a file in the IDX format.")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":  # by its content, because some programs unpack a file and leave it its name
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file ({error}). Fetch it again.") from error
    if content[:2] != b"\0\0"[: len(content)]:
        raise ValueError(
            f"{path} is no IDX file: it begins with the bytes {content[:4].hex(' ')}; accepted is 00 00, or 1f 8b "
            "where it is compressed. Was a web page saved in its place, or an archive not unpacked?"
        )
    start = 4 + 4 * content[3] if len(content) > 3 else 4
    if len(content) < start:
        raise ValueError(
            f"{path} is truncated: {len(content)} bytes are there, and its header alone has {start}. Fetch it again."
        )
    if content[2] not in _TYPES:
        listing = ", ".join(f"{code:02x} ({np.dtype(name).name})" for code, name in _TYPES.items())
        raise ValueError(
            f"{path} has elements of the type {content[2]:02x}, which IDX does not define. Accepted: {listing}."
        )
    shape = tuple(np.frombuffer(content, ">u4", content[3], 4).tolist())
    kind = np.dtype(_TYPES[content[2]])
    expected = start + kind.itemsize * math.prod(shape)
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "longer than its header says"
        raise ValueError(
            f"{path} is {state}: {len(content)} bytes are there, and for its shape {shape} of {kind.name} accepted are "
            f"{expected}. Fetch it again."
        )
    return np.frombuffer(content, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def idx_folder(folder: str | PathLike[str], *, images: bool = False) -> Dataset:
    """Returns the training and the test set of a folder with the four files of MNIST or Fashion-MNIST.

    They are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, each of them also with `.gz` at its end, and also with `.idx` in place of `-idx`.

    Pixels run from -1 (byte 0) to 1 (byte 255). Examples are vectors `(784,)`, or `(28, 28, 1)` with `images`; files
    with images of another size give theirs.

    Raises `FileNotFoundError` or `NotADirectoryError` where the folder or a file is missing, and `ValueError` where a
    file is damaged or holds something else than its name says, or where images and labels do not belong together.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"folder={str(folder)!r} is not there; give the folder that holds the four files.")
    if not folder.is_dir():
        raise NotADirectoryError(
            f"folder={str(folder)!r} is a file; give the folder that holds the four. For one file: read_idx."
        )
    (x_train, y_train), (x_test, y_test) = _examples(folder, "train"), _examples(folder, "t10k")
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{folder} has training images of {x_train.shape[1:]} pixels and test images of {x_test.shape[1:]}; "
            "accepted are equal sizes. Do all files belong to one data set?"
        )
    shape = (*x_train.shape[1:], 1) if images else (math.prod(x_train.shape[1:]),)
    pixels = [jnp.asarray(x.reshape(-1, *shape), jnp.float32) / 127.5 - 1 for x in (x_train, x_test)]
    return Dataset(pixels[0], jnp.asarray(y_train, jnp.int32), pixels[1], jnp.asarray(y_test, jnp.int32))


def _examples(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one part, as they are in their files, once these are sure to hold such."""
    paths, contents = [], []
    for what, axes in (("images", 3), ("labels", 1)):
        path = _found(folder, f"{part}-{what}-idx{axes}-ubyte")
        content = read_idx(path)
        if content.dtype != np.uint8 or content.ndim != axes:
            raise ValueError(
                f"{path} holds no {what}: accepted is uint8 of rank {axes}, and it has {content.dtype} of the shape "
                f"{content.shape}. Does one file bear another's name?"
            )
        if content.size == 0:
            raise ValueError(f"{path} is empty: its shape is {content.shape}. Accepted is at least one.")
        paths.append(path)
        contents.append(content)
    (x_path, y_path), (x, y) = paths, contents
    if len(x) != len(y):
        raise ValueError(
            f"{x_path} has {len(x)} images and {y_path} has {len(y)} labels; accepted are as many of one as of the "
            "other. Do both belong to one data set?"
        )
    return x, y


def _found(folder: Path, name: str) -> Path:
    names = [other + end for other in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for path in map(folder.joinpath, names):
        if path.is_file():
            return path
    held = sorted(path.name for path in folder.iterdir())
    listing = ", ".join(held[:10] + ["..."] * (len(held) > 10)) or "nothing"
    raise FileNotFoundError(
        f"{folder} has no file {' or '.join(names)}; it holds {listing}. Put the file there, or give "
        "the folder it is in."
    )
