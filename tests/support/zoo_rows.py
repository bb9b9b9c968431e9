"""A row of the zoo as a benchmark writes it."""

from __future__ import annotations

from typing import Any

MACHINE = {"cpu": "a CPU", "threads": 2, "load": 1.5}
VERSIONS = {"torch": "2", "timm": "1", "torch-pruning": "1.6"}
STAMP = {"machine": MACHINE, "versions": VERSIONS, "commit": "abc", "date": "2026-01-01"}


def row(**changes: Any) -> dict[str, Any]:
    """Make the row of a network of which every stage took half a second; ``changes`` are of stages."""
    done = dict.fromkeys(("build", "trace", "spectra", "plan", "prune", "run", "verify", "reload", "train"))
    found = {name: {"seconds": 0.5} for name in done}
    found["trace"]["groups"] = 7
    found["count"] = {"seconds": 0.1, "prunable": 0.987, "reached": 0.4955}
    found["verify"] |= {"compared": 6, "inexact": 1}
    made = {"limit_s": 120.0, "limit_gb": 10.0, "stamp": STAMP, "stages": found | changes}
    made["peer"] = {"build": {"seconds": 1}, "prune": {"seconds": 4.0, "reached": 0.3}, "run": {"seconds": 1}}
    return made
