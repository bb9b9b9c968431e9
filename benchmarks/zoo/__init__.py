"""How many networks out there can be slimmed: ``python -m benchmarks.zoo``."""
