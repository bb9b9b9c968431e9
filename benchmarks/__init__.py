"""Benchmarks of slimfast: speed of the kernels and the pipeline, accuracy of the thin networks."""
