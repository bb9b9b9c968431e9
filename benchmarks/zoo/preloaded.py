"""Imported once, by the process that the others are forked from."""

from benchmarks.zoo.networks import preload

preload()
