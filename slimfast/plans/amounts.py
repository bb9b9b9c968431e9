"""Read a budget: a number, or a text such as "50%", "2e9" or "1.5G"."""

from __future__ import annotations

import math
import re
from numbers import Real

from slimfast.errors import ArgumentError, ArgumentTypeError

_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_TEXT = re.compile(r"\s*([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([KMGBT%]?)\s*")


def amount_of(name: str, value: object) -> float:
    """Read a budget: a share in (0, 1], or a number above 1.

    Args:
        name: What is limited.
        value: A number, "50%" for a share, or "1.5G" for a number (K, M, G or B, T).

    Returns:
        The number.

    Raises:
        ValueError: For what is neither.
        TypeError: For what is no number and no text.
    """
    percent = isinstance(value, str) and value.rstrip().endswith("%")
    number = _number(name, value)
    if not 0 < number < math.inf or (percent and number > 1):
        raise ArgumentError(
            f"plan: expected {name} in (0, 1] or up to 100% as a share, or above 1 as a number, got {value!r}"
        )
    return number


def share_of(name: str, value: object) -> float:
    """Read a share, a number or a text as "90%"; ``ValueError`` and ``TypeError`` as :func:`amount_of`."""
    return _number(name, value)


def _number(name: str, value: object) -> float:
    if isinstance(value, str):
        found = _TEXT.fullmatch(value)
        try:
            number = float(found[1]) if found else math.nan
        except ValueError:
            number = math.nan
        if found is None or math.isnan(number):
            raise ArgumentError(
                f"plan: expected {name} as a number, a share as '50%' or an amount as '1.5G', got {value!r}"
            )
        return number / 100 if found[2] == "%" else number * _SUFFIXES[found[2]]
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(
            f"plan: expected {name} to be a number or a text as '50%', got {type(value).__name__}"
        )
    return float(value)
