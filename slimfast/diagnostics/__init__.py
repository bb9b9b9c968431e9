"""Diagnostics: what is built and chosen on this machine, and how fast it is beside plain PyTorch."""
