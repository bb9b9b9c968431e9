"""The rules: importing them registers them."""

from slimfast.graph.rules import forms, indexing, norms, pointwise, products, spatial, views, writes
from slimfast.graph.rules.registry import find_rule

__all__ = ["find_rule", "forms", "indexing", "norms", "pointwise", "products", "spatial", "views", "writes"]
