"""Parameters, MACs and bytes of a network at a set of widths."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs: ``params`` elements, ``macs`` multiply-accumulates of one forward, ``bytes`` of
    params.
    """

    params: int
    macs: int
    bytes: int
