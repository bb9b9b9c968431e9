"""The benchmark of latency budgets: its rows, what they are summed up as, and the table of them."""

from __future__ import annotations

import json

import pytest

from benchmarks import latency
from slimfast.errors import SlimfastError

STAMP = {
    "machine": {"cpu": "a board", "isa": "its own", "load": 0.1},
    "versions": {"torch": "2.0"},
    "date": "2026-01-01",
    "commit": "abc",
}
ROW = {
    "table_s": 30.4,
    "seconds": 0.0123,
    "budgets": {
        "0.75": {"predicted": 0.75, "measured": 0.74, "macs": 0.6},
        "0.5": {"predicted": 0.45, "measured": 0.5, "macs": 0.3},
        "0.35": {"failed": "budget: cannot be reached"},
    },
    "half": {"macs": 0.5, "measured": 0.68},
}


def test_errors_are_shares_of_what_was_measured():
    assert latency.errors_of({"net": ROW}) == pytest.approx([0.75 / 0.74 - 1, 0.1])


def test_the_table_has_predicted_and_measured_shares():
    text = latency.table_text(
        {"stamp": STAMP, "rows": {"net, batch 1": ROW, "other": {"failed": "no graph"}}}
    )
    assert "| net, batch 1 | 12.30 | 0.750 / 0.740 | 0.450 / 0.500 | cannot be reached | 0.680 | 30 |" in text
    assert "| other | no graph |" in text
    assert "median 5.7%, worst 10.0%" in text
    assert "within 3 % under the budget: 2 of 2" in text


def test_two_measurements_are_compared():
    told = {"predicted": 0.5, "measured": 0.5, "again": 0.51, "medians": [0.5, 0.55], "macs": 0.3}
    rows = {"net": {**ROW, "budgets": {"0.5": told, "0.35": {**told, "again": 0.49, "medians": [0.5, 0.4]}}}}
    shown, medians = latency.repeats_of(rows)
    assert shown == pytest.approx([0.02, 0.02])
    assert medians == pytest.approx([0.1, 0.2])
    text = latency.table_text({"stamp": STAMP, "rows": rows})
    assert "differ by 2.0% in the median and 2.0% at most, shares of medians by 15.0% and 20.0%." in text


def test_nothing_measured_is_said():
    assert latency.table_text({}) == "Not measured yet.\n"


def test_rows_are_kept_and_failures_measured_again(tmp_path, monkeypatch):
    path = tmp_path / "latency.json"
    path.write_text(
        json.dumps({"stamp": STAMP, "rows": {"resnet18, batch 1": ROW, "vit_tiny, batch 1": {"failed": "x"}}})
    )
    asked = []

    def measured(name, batch, threads, runtime):
        asked.append((name, batch, threads, runtime))
        if name == "swin_tiny":
            raise SlimfastError("cannot run alone")
        return ROW

    monkeypatch.setattr(latency, "measured", measured)
    only = ["--only", "resnet18", "*_tiny", "--batches", "1", "--results", str(path)]
    assert latency.main(only) == 0
    assert asked == [(name, 1, 1, "torch") for name in ("convnext_tiny", "vit_tiny", "swin_tiny")]
    rows = json.loads(path.read_text())["rows"]
    assert list(rows) == [
        "resnet18, batch 1", "convnext_tiny, batch 1", "vit_tiny, batch 1", "swin_tiny, batch 1",
    ]  # fmt: skip
    assert rows["swin_tiny, batch 1"]["failed"] == "cannot run alone"
    # Each row is of its own commit.
    assert rows["resnet18, batch 1"] == {**ROW, "commit": "abc", "date": "2026-01-01"}
    assert rows["vit_tiny, batch 1"]["date"] != "2026-01-01"
    assert "abc (2026-01-01)" in latency.table_text(json.loads(path.read_text()))
    assert latency.main(["--only", "resnet18", "--batches", "1", "--results", str(path), "--again"]) == 0
    assert asked[-1] == ("resnet18", 1, 1, "torch")
    assert "2026-01-01" not in path.read_text()


def test_each_runtime_has_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "RESULTS", tmp_path)
    monkeypatch.setattr(latency, "measured", lambda name, batch, threads, runtime: {**ROW, "is": runtime})
    only = ["--only", "resnet18", "--batches", "1", "--runtime", "onnxruntime"]
    assert latency.main(only) == 0
    rows = json.loads((tmp_path / "latency-onnxruntime.json").read_text())["rows"]
    assert rows["resnet18, batch 1"]["is"] == "onnxruntime"


def test_the_twelve_networks_are_there():
    assert len(latency.NETWORKS) == 12
