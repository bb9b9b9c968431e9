"""Read a budget: a number, or a text such as "50%", "2e9", "1.5G" or "12ms"; and write one."""

from __future__ import annotations

import math
import re
from numbers import Real

from slimfast.errors import ArgumentError, ArgumentTypeError

_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_TIME = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(s|ms|us)\s*")
_BYTES = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([kKMG]?)(i?)B\s*")
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


def time_of(name: str, value: object) -> tuple[float, bool]:
    """Read a budget of time: a share in (0, 1] or as "50%", or seconds as "12ms", "0.5s" or "800us".

    Returns the number, and whether it is seconds. Errors as of :func:`amount_of`.
    """
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        try:
            seconds = float(found[1]) * _SECONDS[found[2]]
        except ValueError:
            seconds = 0.0
        if 0 < seconds < math.inf:
            return seconds, True
    if not isinstance(value, (str, Real)) or isinstance(value, bool):
        raise ArgumentTypeError(
            f"plan: expected {name} to be a share or a text as '12ms', got {type(value).__name__}"
        )
    try:
        share = _number(name, value)
    except ArgumentError:
        share = math.nan
    if not 0 < share <= 1:
        raise ArgumentError(
            f"plan: expected {name} in (0, 1] or up to 100% as a share, or seconds as '12ms', got {value!r}"
        )
    return share, False


def bytes_of(name: str, value: object) -> float:
    """Read a budget of bytes: a share in (0, 1] or as "50%", or above 1 bytes, as "512MiB", "1.5GB" or "2e9".

    Errors as of :func:`amount_of`.
    """
    found = _BYTES.fullmatch(value) if isinstance(value, str) else None
    if found is None or (found[3] and not found[2]):
        return amount_of(name, value)
    base = 1024.0 if found[3] else 1000.0
    try:
        count = float(found[1]) * base ** " KMG".index(found[2].upper() or " ")
    except ValueError:
        count = math.nan
    if not 1 < count < math.inf:
        raise ArgumentError(f"plan: expected {name} above 1 in bytes as '512MiB', got {value!r}")
    return count


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
