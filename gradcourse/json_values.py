"""What JSON can hold of a result: it has neither arrays nor infinities nor NaN."""

from collections.abc import Mapping, Sequence
from math import isfinite, isnan
from typing import Any

import numpy as np

__all__ = ["json_value"]


def json_value(value: Any) -> Any:
    """Returns the same with arrays and tuples as lists, infinities as words, and `None` for NaN.

    >>> json_value({"norm": np.array([1.0, -np.inf]), "gain": float("nan")})
    {'norm': [1.0, '-inf'], 'gain': None}
    """
    if isinstance(value, Mapping):
        return {key: json_value(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return json_value(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_value(one) for one in value]
    if isinstance(value, float) and not isfinite(value):
        return None if isnan(value) else str(value)
    return value
