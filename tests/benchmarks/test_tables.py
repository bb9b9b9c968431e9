"""Tables made of results: what the cells say, old tables found and made anew, those of the documents."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import run, tables, timing
from benchmarks.accuracy.studies import cifar10_tables
from benchmarks.ops import tables as op_tables


def row_of(seconds, **others):
    timed = {"seconds": seconds, "p20": 0.9 * seconds, "p80": 1.25 * seconds, "rounds": 5}
    return {
        "variants": {timing.OURS: timed} | others,
        "bound": 1e-3,
        "facts": {timing.PEAK: 3 << 20, timing.BACKEND: "cpu"},
    }


@pytest.mark.parametrize(
    ("seconds", "cell", "target"), [(2e-3, "50 %", "missed"), (1e-3, "100 %", "reached")]
)
def test_a_table_shows_the_share_of_a_bound(seconds, cell, target):
    row = timing.Row("row", (), (timing.Target(timing.BOUND, 0.6),))
    assert op_tables._cell(row_of(seconds), timing.BOUND) == cell
    assert op_tables._targets(row, row_of(seconds)) == f"60 % of the bound: {target}"


def test_a_bound_that_was_passed_is_none_and_reaches_no_target():
    row, found = timing.Row("row", (), (timing.Target(timing.BOUND, 0.6),)), row_of(1e-5)
    assert op_tables._cell(found, timing.BOUND) == "no bound"
    assert op_tables._targets(row, found) == "60 % of the bound"
    assert op_tables._cell({}, timing.BOUND) == "not measured"


def test_table_says_what_was_reached():
    names = [row.name for row in run.OPS["spectra"].rows("cpu")]
    plain, best = {"seconds": 0.05}, {"seconds": 0.012}
    rows = [
        {"name": names[0]} | row_of(4e-3, torch=plain, best=best),
        {"name": names[1]} | row_of(12.34, torch={"wrong": "error 1"}, best={"failed": "x"}),
    ]
    made = {
        "machine": {"cpu": "Some CPU", "isa": "avx2", "threads": 2, "gpu": None, "load": 0.1},
    }
    made |= {"versions": {"torch": "2.13"}, "date": "2026-01-01", "commit": "abc"}
    text = op_tables.table("cpu", "spectra", {"stamp": made, "quick": False, "rows": rows})
    lines = text.splitlines()
    assert lines[2] == (
        f"| {names[0]} | 4.00 ms (3.60 to 5.00) | 12.5 x | 3.00 x | 25 % | 3 MiB "
        "| 10 x plain PyTorch: reached; 4 x best PyTorch: missed |"
    )
    assert lines[3].startswith(f"| {names[1]} | 12.3 s (11.1 to 15.4) | wrong | failed | 0 % | 3 MiB ")
    assert lines[4].startswith(f"| {names[2]} | not measured | not measured | not measured | not measured ")
    assert "Some CPU (avx2), 2 threads, backend cpu, torch 2.13, 2026-01-01, commit abc" in lines[-1]


def test_a_target_in_seconds_is_missed_by_a_slow_run():
    row = timing.Row("row", (), (timing.Target("torch", 8.0, seconds=10.0),))
    assert op_tables._targets(row, row_of(9.0, torch={"seconds": 90.0})).endswith("under 10 s: reached")
    assert op_tables._targets(row, row_of(11.0, torch={"seconds": 110.0})).endswith("under 10 s: missed")


def test_the_accuracy_table_gives_mean_and_deviation_over_seeds():
    def row(kind, stage, seed, test):
        return {"kind": kind, "stage": stage, "seed": seed, "test": test, "params": 1234, "macs": 5678}

    result = {
        "settings": {"network": "resnet20", "macs": 0.5, "select": "l1", "epochs": 1, "seeds": [0, 1]}
        | {"train_images": 5000, "test_images": 2000},
        "stamp": {"versions": {"torch": "2.13"}, "date": "2026-01-01", "commit": "abc"},
        "wall_seconds": 61.4,
        "rows": [
            row("dense", "trained", None, 0.925),
            row("plan", "distilled", 0, 0.9),
            row("plan", "distilled", 1, 0.92),
        ],
    }
    lines = cifar10_tables.table(result).splitlines()
    assert lines[2] == "| original | 92.50 % | 1,234 | 5,678 |"
    assert lines[3] == "| thin, pruned | not measured | not measured | not measured |"
    assert lines[4] == "| thin, distilled | 91.00 % ± 1.41 | 1,234 | 5,678 |"
    assert "1 epoch of distillation on 5,000 images, 2 seeds, 2,000 test images read once; 61 s" in lines[-1]
    assert cifar10_tables.table({}).splitlines()[-1] == "Not measured yet."


def test_tables_of_the_second_machine_are_of_its_own_results(tmp_path):
    marks = "<!-- table:avx512-gather -->\n<!-- /table -->"
    shutil.copy(tables.RESULTS / "cpu-gather.json", tmp_path)
    assert "Not measured yet." in tables.fill(marks, tmp_path)
    (tmp_path / "avx512").mkdir()
    shutil.move(tmp_path / "cpu-gather.json", tmp_path / "avx512")
    made = op_tables.table("cpu", "gather", json.loads((tmp_path / "avx512" / "cpu-gather.json").read_text()))
    assert made in tables.fill(marks, tmp_path)


def test_a_table_of_nothing_known_is_refused():
    with pytest.raises(ValueError, match="table cpu-nonsense: expected "):
        tables.fill("<!-- table:cpu-nonsense -->\n<!-- /table -->")


def test_old_tables_are_found_and_made_anew(tmp_path, monkeypatch):
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- table:gpu-gather -->\n<!-- /table -->\nafter\n")
    monkeypatch.setattr(tables, "documents", lambda: [document])
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.main(["--check"]) == 1
    assert "ResNet-50" not in document.read_text()
    assert tables.main([]) == 0
    assert "| ResNet-50 | " in document.read_text()
    assert document.read_text().startswith("before\n<!--")
    assert document.read_text().endswith("<!-- /table -->\nafter\n")
    assert tables.main(["--check"]) == 0


def test_every_table_of_the_documents_is_new():
    assert tables.main(["--check"]) == 0
