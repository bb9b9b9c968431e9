"""The README's table of what was measured."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.studies import summary_tables


def test_the_summary_of_decoders_takes_the_best_control() -> None:
    def drawn(name: str, draw: int, perplexity: float, *, control: bool) -> dict[str, Any]:
        return {"name": name, "draw": draw, "share": 0.8, "perplexity": perplexity, "control": control}

    ours = "marginal gain, MLP, activations"
    rows = [drawn(ours, draw, 40.0 + draw, control=False) for draw in range(3)]
    rows += [drawn("uniform", draw, 45.0, control=True) for draw in range(3)]
    rows += [drawn("FLAP", draw, 43.0 + draw, control=True) for draw in range(2)]
    settings = {"shares": [0.8, 0.7], "calibration": 32, "calibration_length": 256}
    result = {"settings": settings, "rows": rows, "dense": {"perplexity": 30.0, "tokens": 4088}}
    line = summary_tables.summary({}, {}, {}, {}, {}, result, {}, {}, {}).splitlines()[2]
    assert "3 draws, of the control 2)" in line
    assert line.endswith("| 30.0 | 41.0 | 43.5 | not measured |")
    trained = {"share": 0.8, "steps": 100, "batch": 4, "length": 256}
    after = [
        {"name": name, "seed": 0, "control": control, "after": value}
        for name, control, value in ((ours, False, 32.0), ("uniform", True, 33.0), ("FLAP", True, 34.0))
    ]
    distilled = {"settings": trained, "rows": after, "dense": result["dense"]}
    line = summary_tables.summary({}, {}, {}, {}, {}, {}, distilled, {}, {}).splitlines()[2]
    assert "**100 steps** of 4 x 256 tokens" in line
    assert line.endswith("rough; 1 seed) | 30.0 | 32.0 | 33.0 | not measured |")
