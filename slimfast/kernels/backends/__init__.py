"""Backends: modules with the same functions, ``why_not`` and the four ops."""
