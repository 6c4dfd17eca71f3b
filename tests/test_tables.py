"""Tables align; JSON holds what it can and is read back as it was."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.tables import Table, json_value, numbers


def test_columns_align_and_markdown_is_escaped() -> None:
    table = Table.from_columns({"a": ["|x|", "1"], "longer": ["2", "3"]})
    assert repr(table).splitlines() == ["a    longer", "|x|  2", "1    3"]
    assert table._repr_markdown_().splitlines()[2] == "| \\|x\\| | 2 |"


@pytest.mark.parametrize("nan", [None, "nan"])
def test_numbers_come_back_from_json_as_they_were(nan: str | None) -> None:
    values = np.array([[1.5, -np.inf, np.nan], [np.inf, 0.0, -2.0]])
    text = json.dumps(json_value(values, nan=nan), allow_nan=False)
    np.testing.assert_array_equal(numbers(json.loads(text)), values)


def test_whatever_holds_numbers_becomes_lists() -> None:
    given = {"jax": jnp.arange(2), "tuple": (np.float32(0.5), 1), "nested": [{"range": range(2)}], "word": "inf"}
    assert json_value(given) == {"jax": [0, 1], "tuple": [0.5, 1], "nested": [{"range": [0, 1]}], "word": "inf"}
    rounded = json_value({"a": [np.float32(1 / 3), 12345678], "b": True, "c": np.inf}, digits=3)
    assert rounded == {"a": [0.333, 1.23e7], "b": 1.0, "c": "inf"}
