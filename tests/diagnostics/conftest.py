"""Tests of diagnostics see NaN where a kernel left memory unwritten."""

from support.poison import poisoned_empty

__all__ = ["poisoned_empty"]
