"""Tables and plots of accuracy results, by hand-made results; the order and the resuming of the recovery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tables
from benchmarks.accuracy.data.cifar10_data import Images
from benchmarks.accuracy.networks.resnet_cifar import ResNet
from benchmarks.accuracy.studies import (
    contenders,
    minilm_tables,
    oneshot_tables,
    plots,
    recovery,
    recovery_tables,
    summary_tables,
)
from slimfast.distillation.resume import load_training
from slimfast.errors import SlimfastError

STAMP = {"versions": {"torch": "2.13"}, "date": "2026-01-01", "commit": "abc"}


def recovered() -> dict[str, Any]:
    def row(name: str, seed: int, test: float) -> dict[str, Any]:
        made = {"control": name != "default", "params": 1234, "macs": 5678, "before": 0.3, "validation": 0.8}
        return {"name": name, "seed": seed, "test": test, "seconds": 10.0 + seed, **made}

    return {
        "benchmark": "recovery",
        "settings": {"network": "resnet20", "macs": 0.5, "epochs": 2, "train_images": 5000, "batch": 128}
        | {
            "lr": 0.05,
            "weight_decay": 5e-4,
            "soft": 0.9,
            "hard": 0.1,
            "temperature": 4.0,
            "test_images": 2000,
        },
        "stamp": STAMP,
        "planned": 33,
        "rows": [
            row("uniform, L1", 0, 0.8),
            row("default", 0, 0.84) | {"loss": 2.5},
            row("default", 2, 0.86) | {"loss": 2.7},
        ],
    }


def one_shot() -> dict[str, Any]:
    def row(allocation: str, select: str, repair: str | None, test: float) -> dict[str, Any]:
        return {"share": 0.5, "allocation": allocation, "select": select, "repair": repair, "test": test} | {
            "control": allocation == "uniform"
        }

    return {
        "benchmark": "oneshot",
        "settings": {"network": "resnet20", "test_images": 2000},
        "rows": [
            row("explained variance (paper)", "l1", "activations", 0.8),
            row("unit scaling", "l1", "activations", 0.79),
            row("uniform", "l1", "activations", 0.7),
            row("uniform", "l1", "weights", 0.25),
            row("uniform", "l1", None, 0.2),
        ],
    }


def test_the_readme_has_a_row_of_the_long_recipe_once_it_was_trained() -> None:
    dense = {**one_shot(), "dense": {"test": 0.9}}
    lines = summary_tables.summary({}, {}, dense, recovered(), {}, {}, {}, {}, {}).splitlines()
    assert lines[2] == (
        "| resnet20, 0.5 of the MACs, **2 epochs** on 5,000 images, 2 seeds "
        "| 90.0 % | 85.0 % | 80.0 % | 80.0 % |"
    )
    alone = recovered() | {"rows": recovered()["rows"][1:2]}
    row = summary_tables.summary({}, {}, dense, alone, {}, {}, {}, {}, {}).splitlines()[2]
    assert row.endswith("1 seed | 90.0 % | 84.0 % | not measured | not measured |")


def test_recovery_has_mean_and_deviation_over_the_seeds_that_were_trained() -> None:
    lines = recovery_tables.table(recovered()).splitlines()
    assert lines[2] == "| default | 85.00 % ± 1.41 | 2 | 30.00 % | 80.00 % | 2.600 | 1,234 | 5,678 | 11 s |"
    assert lines[3] == "| uniform, L1 (control) | 80.00 % | 1 | 30.00 % | 80.00 % |  | 1,234 | 5,678 | 10 s |"
    assert "2 epochs on 5,000 images" in lines[-1]
    assert "3 of 33 trainings run" in lines[-1]


def test_what_did_not_help_is_compared_with_what_it_was_tried_instead_of() -> None:
    lines = oneshot_tables.lost(one_shot()).splitlines()
    assert lines[2:4] == [
        "| unit scaling, one tau | 79.00 % | the paper's | 80.00 % | -1.00 |",
        "| weights' repair, uniform | 25.00 % | no repair | 20.00 % | +5.00 |",
    ]
    assert oneshot_tables.lost({}).splitlines()[-1] == "Not measured yet."


def test_a_table_of_losses_is_filled_from_the_result_it_names(tmp_path: Path) -> None:
    (tmp_path / "oneshot-x.json").write_text(json.dumps(one_shot()))
    marks = "<!-- table:accuracy-lost-oneshot-x -->\n<!-- /table -->"
    assert "| unit scaling, one tau | 79.00 % |" in tables.fill(marks, tmp_path)


def test_brief_tables_have_a_column_for_each_network_and_say_what_is_missing(tmp_path: Path) -> None:
    other = one_shot() | {"dense": {"test": 0.9}}
    other["rows"] = [*other["rows"], {**other["rows"][0], "share": 0.3, "test": 0.6}]
    lines = oneshot_tables.brief(other).splitlines()
    assert lines[0] == "| widths | units | repair | resnet20, 0.5 | resnet20, 0.3 |"
    assert lines[2] == "| original |  |  | 90.00 % | 90.00 % |"
    assert "| explained variance (paper) | l1 | activations | 80.00 % | 60.00 % |" in lines
    assert "| uniform (control) | l1 | none | 20.00 % | not measured |" in lines
    assert "| noise null | l1 | activations | not measured | not measured |" in lines
    assert lines[-1].endswith("test images: resnet20 2,000.")
    both = [recovered(), recovered() | {"settings": recovered()["settings"] | {"network": "b", "lr": 0.02}}]
    lines = recovery_tables.brief(*both).splitlines()
    assert lines[0] == "| thin network | resnet20, from 0.05 | b, from 0.02 |"
    assert lines[2] == "| default | 85.00 % ± 1.41 (2) | 85.00 % ± 1.41 (2) |"
    assert "| uniform, L1 (control) | 80.00 % (1) | 80.00 % (1) |" in lines
    assert "| torch-pruning | not measured | not measured |" in lines
    for kind in ("oneshot", "recovery"):
        marks = f"<!-- table:accuracy-brief-{kind} -->\n<!-- /table -->"
        assert "Not measured yet." in tables.fill(marks, tmp_path)
    (tmp_path / "recovery-resnet20.json").write_text(json.dumps(recovered()))
    assert "| default | 85.00 % ± 1.41 (2) |" in tables.fill(marks, tmp_path)
    with pytest.raises(ValueError, match=r"accuracy-brief-x: expected one of .*, accuracy-brief-oneshot,"):
        tables.fill("<!-- table:accuracy-brief-x -->\n<!-- /table -->", tmp_path)


def test_minilm_has_the_cut_networks_and_then_the_distilled_ones() -> None:
    def row(name: str, repair: str | None, seed: int | None, test: float) -> dict[str, Any]:
        made = {"control": name.startswith("uniform"), "dev": 0.8, "encoder": 600}
        return {"name": name, "repair": repair, "seed": seed, "test": test, **made}

    result = {
        "benchmark": "minilm",
        "settings": {
            "encoder": 0.6,
            "calibration": 512,
            "epochs": 1,
            "sentences": None,
            "lr": 3e-4,
            "batch": 32,
        },
        "stamp": STAMP,
        "dense": {"test": 0.82, "dev": 0.86, "encoder": 1000},
        "rows": [
            row("uniform, L1, weights", "weights", None, 0.5),
            row("default, activations", "activations", 0, 0.81),
            row("default, activations", "activations", None, 0.8),
        ],
    }
    lines = minilm_tables.table(result).splitlines()
    assert lines[2:6] == [
        "| original |  |  | 82.00 | 86.00 |  | 1 |",
        "| default | activations |  | 80.00 | 80.00 |  | 0.600 |",
        "| uniform, L1 (control) | weights |  | 50.00 | 80.00 |  | 0.600 |",
        "| default | activations | distilled | 81.00 | 80.00 | 1 | 0.600 |",
    ]
    assert "1 epoch on all of its sentences" in lines[-1]


def test_plots_have_a_dot_for_every_value_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = tmp_path / "results"
    results.mkdir()
    (results / "recovery-x.json").write_text(json.dumps(recovered()))
    (results / "oneshot-x.json").write_text(json.dumps(one_shot()))
    (results / "other.json").write_text("[]")
    for folder in ("a", "b"):
        plots.main(results=results, output=tmp_path / folder)
    names = ["oneshot-x.svg", "recovery-x.svg"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a" / "recovery-x.svg").read_text()
    assert "default" in text
    assert "uniform, L1" in text
    assert plots.recovery(recovered())[1] == [
        ("uniform, L1", [80.0], plots.CONTROL),
        ("default", [84.0, 86.0], plots.OURS),
    ]


def test_the_most_telling_contenders_are_trained_first_with_all_seeds() -> None:
    order = contenders.wanted(contenders.RECOVERY, (0, 1))
    assert order[:2] == [("default", 0), ("uniform, L1", 0)]
    assert len(set(order)) == len(order) == 2 * sum(map(len, contenders.RECOVERY))
    first = contenders.RECOVERY[0]
    assert {name for name, _ in order[: 2 * len(first)]} == set(first)


def test_the_teacher_runs_once_for_all_contenders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = Images(
        torch.randint(0, 256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8),
        torch.randint(0, 10, (60,), generator=generator),
    )
    torch.manual_seed(0)
    network = ResNet(blocks=1).eval()
    monkeypatch.setattr(recovery, "load_network", lambda name, folder: network)
    monkeypatch.setattr(recovery, "load_split", lambda split, folder: images)
    both = {"uniform, L1": contenders.TELLING["uniform, L1"]}, {"paper": contenders.OTHERS["paper"]}
    settings = recovery.replace(
        recovery.SHORT, train_images=40, validation_images=10, test_images=10, batch=8, macs=0.5
    )
    work, path = tmp_path / "work", tmp_path / "rows.json"
    recovery.run(settings, both[:1], work=work, path=path, progress=False)
    size = (work / "teacher.logits").stat().st_size
    recovery.run(settings, both, work=work, path=path, progress=False)
    assert (work / "teacher.logits").stat().st_size == size > 40 * (16 + 40)
    # A contender that has become another network does not go on from the training of what it was.
    folders = {folder.name for folder in work.iterdir() if folder.is_dir()}
    changed = {"uniform, L1": contenders.OTHERS["uniform, from scratch"]}
    recovery.run(settings, [changed], work=work, path=tmp_path / "other.json", progress=False)
    added = {folder.name for folder in work.iterdir() if folder.is_dir()} - folders
    assert [name.rpartition("-")[0] for name in added] == ["uniform-L1-0"]
    rows = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["seed"]) for row in rows] == [("uniform, L1", 0), ("paper", 0)]
    (trained,) = work.glob("paper-0-*")
    saved = load_training(trained)
    assert saved is not None
    assert rows[1]["loss"] == saved["records"][-1]["loss"] > 0.0
    # Only what is asked for is trained.
    asked = recovery.replace(settings, seeds=(0, 1))
    options = {"work": work, "path": tmp_path / "asked.json", "progress": False}
    found = recovery.run(asked, both, names=("paper",), seeds=(1,), **options)
    assert [(row["name"], row["seed"]) for row in found["rows"]] == [("paper", 1)]
    assert found["planned"] == 4
    # Where all images train, the last epoch counts, and the table leaves cells empty.
    whole = recovery.replace(settings, train_images=60, validation_images=0)
    of_all = recovery.run(whole, both[:1], work=tmp_path / "all", path=tmp_path / "all.json", progress=False)
    assert [(row["before"], row["validation"]) for row in of_all["rows"]] == [(None, None)]
    assert "|  |  |" in recovery_tables.table(of_all)
    with pytest.raises(SlimfastError, match="no contender 'papers': expected one of uniform, L1; paper"):
        recovery.run(asked, both, names=("papers",), **options)
    with pytest.raises(SlimfastError, match="seed 2: expected one of 0, 1"):
        recovery.run(asked, both, seeds=(2,), **options)
    with pytest.raises(SlimfastError, match="has results of other settings"):
        recovery.run(recovery.SHORT, work=work, path=path, progress=False)


def test_losses_start_from_one_thin_network_and_end_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (60,), generator=generator))
    torch.manual_seed(0)
    network = ResNet(blocks=1).eval()
    monkeypatch.setattr(recovery, "load_network", lambda name, folder: network)
    monkeypatch.setattr(recovery, "load_split", lambda split, folder: images)
    settings = recovery.replace(
        recovery.OF_LOSSES,
        train_images=40,
        validation_images=10,
        test_images=10,
        batch=8,
        epochs=1,
        seeds=(0,),
    )
    work = tmp_path / "work"
    found = recovery.run(
        settings, (contenders.LOSSES,), work=work, path=tmp_path / "rows.json", progress=False
    )
    assert [row["name"] for row in found["rows"]] == list(contenders.LOSSES)
    # The name of a training's folder ends with the digest of the network that it began from.
    assert len({folder.name.rpartition("-")[2] for folder in work.iterdir() if folder.is_dir()}) == 1
    assert len({row["loss"] for row in found["rows"]}) == len(contenders.LOSSES)


def test_contenders_in_rounds_have_the_same_epochs_as_others():
    assert recovery.epochs_of(1, 5) == [5]
    assert recovery.epochs_of(2, 5) == [1, 4]
    for name, contender in contenders.IN_ROUNDS.items():
        one = {**contenders.TELLING, **contenders.OTHERS}[name.removesuffix(", in 2 rounds")]
        assert (contender.rounds, one.rounds) == (2, 1)
        assert (contender.select, contender.repair, contender.control) == (
            one.select,
            one.repair,
            one.control,
        )
