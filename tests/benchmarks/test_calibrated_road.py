"""The benchmark of the calibrated road: plain PyTorch's repair, rows that are chosen, and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.calibration_cases import images, small

import slimfast
from benchmarks import run, timing
from benchmarks.ops import calibrated, plain_road
from benchmarks.roofline import Roofline
from benchmarks.tables import fill
from slimfast.calibration.consumers import consumers_of

RATES = Roofline({"float32": 1e9, "float64": 1e9, "bfloat16": 1e9}, 1e9)


def test_plain_pytorch_does_the_same_work() -> None:
    torch.manual_seed(0)
    model, batch = small(), images(12)
    graph = slimfast.trace_channels(model, batch[:1])
    calibration = slimfast.calibrate(model, graph, [batch])
    found = plain_road.moments(model, consumers_of(model, graph)[0], lambda network: network(batch))
    for name, (total, products, count) in found.items():
        reading = calibration.readings[name]
        assert count == reading.count
        assert torch.allclose(total / count, reading.mean, atol=1e-5)
        centred = products / count - torch.outer(total, total) / count**2
        assert torch.allclose(centred * count / (count - 1), reading.covariance, atol=1e-4)
    curves = plain_road.curves(small(), graph, calibration, [batch])
    assert curves.keys() == slimfast.error_curves(model, graph, calibration).keys()
    plan = slimfast.plan(model, batch[:1], macs=0.5, calibration=calibration)
    plan = slimfast.select(model, plan, method="activations", calibration=calibration)
    keeps = {group.name: np.array(group.keep) for group in plan.groups}
    cut = slimfast.prune_channels(model, plan, verify=False)
    ours = slimfast.prune_channels(model, plan, repair="activations", calibration=calibration, verify=False)
    with torch.no_grad():
        before = cut(batch)
        plain = plain_road.repair(model, cut, graph, keeps, lambda network: network(batch))(batch)
        expected = ours(batch)
    assert (plain - expected).norm() < 0.02 * (before - expected).norm()


def test_rows_that_are_not_chosen_keep_what_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(module: Any, row: timing.Row, *_: Any) -> dict[str, Any]:
        measured.append(row.name)
        return {"name": row.name, "variants": {timing.OURS: {"seconds": 1.0}}, "bound": None, "facts": {}}

    monkeypatch.setattr(run, "measure_roofline", lambda device, quick: RATES)
    monkeypatch.setattr(run, "_measure", measure)
    common = ["--ops", "calibrated", "--json-dir", str(tmp_path), "--resume", "--only"]
    names = [row.name for row in calibrated.rows("cpu")]
    for only in ("vit_tiny*, 2 threads*", "resnet50, 1 thread: plan", "*, 1 thread: plan"):
        assert run.main([*common, only]) == 0
    kept = [row["name"] for row in json.loads((tmp_path / "cpu-calibrated.json").read_text())["rows"]]
    assert sorted(measured) == sorted(kept)
    assert kept == [name for name in names if "1 thread: plan" in name or "tiny_patch16_224, 2" in name]
    assert len(kept) == 5 + 4


def test_a_stage_runs_with_the_threads_of_its_row() -> None:
    before = torch.get_num_threads()
    seen = calibrated._on(2, torch.get_num_threads)
    assert seen() == 2
    assert torch.get_num_threads() == before
    prepared = calibrated._on(2, timing.Prepared(lambda: 5, lambda made: (made, torch.get_num_threads())))
    assert prepared() == (5, 2)


def test_the_table_of_memory_is_made_from_the_result(tmp_path: Path) -> None:
    text = "<!-- table:calibrated-large -->\n<!-- /table -->"
    assert "| memory: resnet50, 512 images of 224 | not measured |" in fill(text, tmp_path)
    name = "samples: resnet50, 64 images of 96"
    seconds = {"forward": 2.0, "calibrate": 2.5, "plan": 4.0, "prune and repair": 5.0}
    machine = {"cpu": "a processor", "isa": "avx2", "load": 0.5}
    result = {
        "stamp": {"machine": machine, "date": "2026-01-01", "commit": "abc"},
        "rows": {name: {"seconds": seconds, "peak bytes": 3 << 20}},
    }
    (tmp_path / "calibrated-large.json").write_text(json.dumps(result))
    found = fill(text, tmp_path)
    assert f"| {name} | 2.0 s | 1.25 forwards | 2.00 forwards | 2.50 forwards | 3 MiB |" in found
    assert "a processor (avx2), 2026-01-01, commit abc" in found
