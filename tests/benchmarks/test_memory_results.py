"""The benchmark of peak memory: its errors, its table, and that rows are kept."""

from __future__ import annotations

import json

import pytest

from benchmarks import memory
from slimfast.errors import SlimfastError

STAMP = {
    "machine": {"cpu": "a board", "isa": "avx2", "load": 0.1},
    "versions": {"torch": "2.0"},
    "date": "2026-01-01",
    "commit": "abc",
}
ROW = {
    "bytes": 40_000_000,
    "weights": 30_000_000,
    "activations": 9_000_000,
    "shares": {
        "0.75": {"predicted": 22e6, "measured": 20e6},
        "0.5": {"predicted": 10e6, "measured": 10e6},
        "0.25": {"predicted": 4e6, "measured": 4e6},
    },
    "budget": {"predicted": 19e6, "measured": 19.2e6, "macs": 0.4, "params": 0.45},
}


def test_errors_and_the_table() -> None:
    rows = {"net, batch 1": ROW, "other": {"failed": "no graph"}}
    assert memory.errors_of(rows) == pytest.approx([0.1, 0.0, 0.0, 0.2 / 19.2])
    text = memory.table_text({"stamp": STAMP, "rows": rows})
    assert (
        "| net, batch 1 | 40.0 | 30.0 | 22.00 / 20.00 | 10.00 / 10.00 | 4.00 / 4.00 | 0.480 | 0.400 |" in text
    )
    assert "| other | no graph |" in text
    assert "worst 10.0%, within 5 % in 3 of 4; plans inside when measured: 1 of 1" in text
    fixed = {**ROW, "budget": {"failed": "cannot"}}
    assert len(memory.errors_of({"net": fixed})) == 3
    assert "4.00 / 4.00 | cannot be reached | - |" in memory.table_text(
        {"stamp": STAMP, "rows": {"net": fixed}}
    )
    assert memory.table_text({}) == "Not measured yet.\n"


def test_rows_are_kept_and_failures_measured_again(tmp_path, monkeypatch) -> None:
    path = tmp_path / "memory.json"
    path.write_text(
        json.dumps({"stamp": STAMP, "rows": {"resnet18, batch 1": ROW, "vit_tiny, batch 1": {"failed": "x"}}})
    )
    asked = []

    def measured(name, batch):
        asked.append((name, batch))
        if name == "swin_tiny":
            raise SlimfastError("cannot run")
        return ROW

    monkeypatch.setattr(memory, "measured", measured)
    assert (
        memory.main(["--only", "resnet18", "vit_*", "swin_*", "--batches", "1", "--results", str(path)]) == 0
    )
    assert asked == [("vit_tiny", 1), ("swin_tiny", 1)]
    rows = json.loads(path.read_text())["rows"]
    assert rows["vit_tiny, batch 1"].items() >= ROW.items()
    assert rows["swin_tiny, batch 1"]["failed"] == "cannot run"
