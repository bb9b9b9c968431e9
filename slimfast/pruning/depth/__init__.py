"""Depth: whole layers, and branches of them, that a network can do without."""
