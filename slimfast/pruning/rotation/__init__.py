"""Rotation: bases inside attention heads in which what matters least comes last."""
