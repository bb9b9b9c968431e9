"""Types that the whole package shares, each defined once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

BoolArray: TypeAlias = NDArray[np.bool_]
FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

# The lengths of a tensor's axes.
Shape: TypeAlias = tuple[int, ...]
# What a module is called with: positional arguments, and those by name.
Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
# Called with how much is done, and how much there is.
Progress: TypeAlias = Callable[[int, int], None]
