"""What each ATen operation makes of the labels of its operands. Importing a file registers its rules."""

from slimfast.graph.propagation.rules import (  # noqa: F401
    bilinear,
    indexing,
    norms,
    pointwise,
    products,
    spatial,
    views,
    writes,
)
from slimfast.graph.propagation.rules.registry import find_rule

__all__ = ["find_rule"]
