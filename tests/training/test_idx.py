"""IDX files as NumPy would write them come back, and every way in which one can be damaged has its own message."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from gradcourse.training.data import idx_folder, read_idx

CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
RNG = np.random.default_rng(0)
CONTENTS = (
    RNG.integers(0, 256, (5, 28, 28), np.uint8),
    np.array([3, 1, 4, 1, 9], np.uint8),
    RNG.integers(0, 256, (2, 28, 28), np.uint8),
    np.array([0, 12], np.uint8),  # more than ten classes, as in EMNIST
)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in zip(NAMES, CONTENTS, strict=True):
        (tmp_path / name).write_bytes(idx(content))
    return tmp_path


@pytest.mark.parametrize("dtype", CODES)
def test_every_element_type_comes_back(tmp_path: Path, dtype: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 5 - 60 * (dtype != "uint8")).astype(dtype)
    for content in (idx(array), gzip.compress(idx(array))):
        (tmp_path / "some.idx").write_bytes(content)
        read = read_idx(tmp_path / "some.idx")
        assert read.dtype == np.dtype(dtype)
        assert read.dtype.isnative
        np.testing.assert_array_equal(read, array)


def test_the_first_bytes_of_mnist_are_read_as_its_own_description_says(tmp_path: Path) -> None:
    # Magic number 0x00000803, 2 images, 1 row, 3 columns: written out, not by the writer above.
    path = tmp_path / "images"
    path.write_bytes(bytes.fromhex("00000803 00000002 00000001 00000003 00 80 ff 01 02 03"))
    assert read_idx(str(path)).tolist() == [[[0, 128, 255]], [[1, 2, 3]]]
    path.write_bytes(bytes.fromhex("00000c02 00000001 00000002 00000102 ffffffff"))
    assert read_idx(path).tolist() == [[258, -1]]


@pytest.mark.parametrize(("dotted", "zipped"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_folder_is_a_dataset_whatever_its_files_are_called(tmp_path: Path, dotted: bool, zipped: bool) -> None:
    for name, content in zip(NAMES, CONTENTS, strict=True):
        name = name.replace("-idx", ".idx") if dotted else name
        packed = gzip.compress(idx(content)) if zipped else idx(content)
        (tmp_path / (name + ".gz" * zipped)).write_bytes(packed)
    data = idx_folder(tmp_path)
    assert [one.shape for one in data] == [(5, 784), (5,), (2, 784), (2,)]
    assert [one.dtype.name for one in data] == ["float32", "int32"] * 2
    np.testing.assert_allclose((data.x_train + 1) * 127.5, CONTENTS[0].reshape(5, 784), atol=2e-5)
    np.testing.assert_array_equal(data.y_train, CONTENTS[1])
    np.testing.assert_array_equal(data.y_test, CONTENTS[3])
    assert float(data.x_train.min()) == -1
    assert float(data.x_train.max()) == 1
    in_rows = idx_folder(str(tmp_path), images=True)
    assert in_rows.x_test.shape == (2, 28, 28, 1)
    np.testing.assert_array_equal(in_rows.x_test.reshape(2, 784), data.x_test)


def changed(content: bytes, place: int, byte: int) -> bytes:
    return content[:place] + bytes([byte]) + content[place + 1 :]


GOOD = idx(np.zeros((2, 3), np.int16))  # 12 bytes of header, 12 of elements
PACKED = gzip.compress(GOOD, mtime=0)  # without the time of day, which the names of tests would contain


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>", "is no IDX file: it begins with the bytes 3c 21 44 4f; accepted is 00 00"),
        (b"PK\x03\x04", "is no IDX file: it begins with the bytes 50 4b 03 04"),
        (b"", "is truncated: 0 bytes are there, and its header alone has 4"),
        (b"\0", "is truncated: 1 bytes are there, and its header alone has 4"),
        (GOOD[:3], "is truncated: 3 bytes are there, and its header alone has 4"),
        (GOOD[:11], "is truncated: 11 bytes are there, and its header alone has 12"),
        (GOOD[:-1], "is truncated: 23 bytes are there, and for its shape (2, 3) of int16 accepted are 24"),
        (
            changed(GOOD, 4, 255),
            "is truncated: 24 bytes are there, and for its shape (4278190082, 3) of int16 accepted",
        ),
        (
            GOOD + b"\0",
            "is longer than its header says: 25 bytes are there, and for its shape (2, 3) of int16 accepted",
        ),
        (changed(GOOD, 2, 0x0A), "has elements of the type 0a, which IDX does not define. Accepted: 08 (uint8), 09"),
        (PACKED[:-9], "is a damaged gzip file (Compressed file ended before"),
        (changed(PACKED, len(PACKED) - 1, 99), "is a damaged gzip file (Incorrect length"),
        (changed(PACKED, 10, 255), "is a damaged gzip file (Error -3"),
        (gzip.compress(GOOD[:-2], mtime=0), "is truncated: 22 bytes are there"),
    ],
)
def test_a_damaged_file_says_how(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {re.escape(words)}"):
        read_idx(path)


def test_what_is_not_there_or_no_file_says_so(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none' is not there; give a file in the IDX format"):
        read_idx(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match=r"is a folder; give a file in the IDX format\. For all: idx_folder"):
        read_idx(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none' is not there; give the folder that holds the four files"):
        idx_folder(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match=r"is a file; give the folder .* For one file: read_idx"):
        idx_folder(folder / NAMES[0])
    (folder / NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError) as missing:
        idx_folder(folder)
    assert (
        "has no file t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz or t10k-labels.idx1-ubyte or "
        "t10k-labels.idx1-ubyte.gz; it holds t10k-images-idx3-ubyte, train-images-idx3-ubyte, train-labels-idx1-ubyte. "
        "Put the file there"
    ) in str(missing.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"it holds nothing\."):
        idx_folder(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (NAMES[1], CONTENTS[0], r"train-labels-idx1-ubyte holds no labels: accepted is uint8 of rank 1.*\(5, 28, 28\)"),
        (NAMES[2], CONTENTS[3], r"t10k-images-idx3-ubyte holds no images: accepted is uint8 of rank 3.*uint8 .*\(2,\)"),
        (NAMES[3], np.array([0, 1], np.int32), r"holds no labels: .* and it has int32 of the shape \(2,\)"),
        (NAMES[1], CONTENTS[3], r"-ubyte has 5 images and .*train-labels-idx1-ubyte has 2 labels"),
        (NAMES[2], CONTENTS[2][:, 1:], r"training images of \(28, 28\) pixels and test images of \(27, 28\)"),
        (NAMES[0], CONTENTS[0][:0], r"train-images-idx3-ubyte is empty: its shape is \(0, 28, 28\)"),
    ],
)
def test_files_that_do_not_belong_together_are_named(folder: Path, name: str, array: np.ndarray, words: str) -> None:
    (folder / name).write_bytes(idx(array))
    with pytest.raises(ValueError, match=words):
        idx_folder(folder)
