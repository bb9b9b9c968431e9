"""Plans and repair from shards with a calibration: those of the network in memory, and gone on with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.shard_cases import assert_same, write_shards
from support.streamed_cases import MEMORY, Case, Decoder, case, tokens
from torch import nn

import slimfast
from slimfast.calibration import sensitivity
from slimfast.checkpoints import repairing, shard_plans
from slimfast.storage.stored_tensors import Shelf

__all__ = ["case"]


def plans(case: Case, folder: Path, **options: Any) -> tuple[slimfast.Plan, slimfast.Plan]:
    """Plan in memory and from shards, by the error curves of the two calibrations."""
    options = {"params": 0.8, "memory": MEMORY, **options}
    wanted = slimfast.plan(case.model, case.example, calibration=case.in_memory(), **options)
    found = slimfast.plan_checkpoint(
        case.index, case.empty, case.example, calibration=case.from_shards(folder), **options
    )
    return wanted, found


def in_memory(case: Case, plan: slimfast.Plan, **options: Any) -> nn.Module:
    return slimfast.prune_channels(
        case.model, plan, calibration=case.in_memory(), memory=MEMORY, verify=False, **options
    )


def from_shards(case: Case, plan: slimfast.Plan, state: Path, folder: Path, **options: Any) -> nn.Module:
    calibration = slimfast.load_calibration(state)
    slimfast.prune_checkpoint(
        case.index, plan, folder, model=case.empty, calibration=calibration, memory=MEMORY, **options
    )
    return slimfast.load_checkpoint(folder, case.empty)


def assert_same_report(found: nn.Module, wanted: nn.Module) -> None:
    a, b = slimfast.repair_report(found), slimfast.repair_report(wanted)
    assert (a.kind, a.norms, dict(a.left)) == (b.kind, b.norms, dict(b.left))
    for weight, fit in b.fits.items():
        other = a.fits[weight]
        assert (other.damping, other.before, other.after) == (fit.damping, fit.before, fit.after)
    assert list(a.fits) == list(b.fits)


@pytest.mark.parametrize("select", ["lookahead", "activations"])
def test_the_road_from_shards_is_the_one_in_memory(case: Case, tmp_path: Path, select: Any) -> None:
    wanted_plan, plan = plans(case, tmp_path / "state")
    assert plan.to_json() == wanted_plan.to_json()
    options: dict[str, Any] = {"repair": "activations", "select": select}
    wanted = in_memory(case, wanted_plan, **options)
    found = from_shards(case, plan, tmp_path / "state", tmp_path / "thin", **options)
    assert_same(found, wanted)
    assert_same_report(found, wanted)
    assert len(slimfast.repair_report(found).fits) > 2
    assert not (tmp_path / "thin" / "repair").exists()


@pytest.mark.parametrize("options", [{"repair": "weights"}, {"repair": "activations", "repair_damping": 0.5}])
def test_other_repairs(case: Case, tmp_path: Path, options: Any) -> None:
    wanted_plan, plan = plans(case, tmp_path / "state")
    wanted = in_memory(case, wanted_plan, **options)
    found = from_shards(case, plan, tmp_path / "state", tmp_path / "thin", **options)
    assert_same(found, wanted)
    assert_same_report(found, wanted)


def test_repair_from_moments(tmp_path: Path) -> None:
    case = Case(tmp_path, Decoder, tokens())
    options: dict[str, Any] = {"repair": "moments", "repair_damping": 1e-3}
    wanted_plan, plan = plans(case, tmp_path / "state")
    wanted = in_memory(case, wanted_plan, **options)
    found = from_shards(case, plan, tmp_path / "state", tmp_path / "thin", **options)
    assert_same(found, wanted)
    ours, theirs = slimfast.repair_report(found), slimfast.repair_report(wanted)
    assert list(ours.fits) == list(theirs.fits) != []
    for weight, fit in theirs.fits.items():
        assert fit.damping >= 1e-3
        # Sums of the same numbers, which lie otherwise in memory.
        assert ours.fits[weight].after == pytest.approx(fit.after, rel=1e-12)


def test_a_plan_that_was_stopped_goes_on(case: Case, tmp_path: Path) -> None:
    wanted, _ = plans(case, tmp_path / "state")
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) in (1, 3):
            raise slimfast.Cancelled

    def again() -> slimfast.Plan:
        found = slimfast.load_calibration(tmp_path / "state")
        return slimfast.plan_checkpoint(
            case.index, case.empty, case.example, params=0.8, memory=MEMORY, calibration=found,
            resume=tmp_path / "sums.safetensors", progress=progress,
        )  # fmt: skip

    ran: list[int] = []
    run = sensitivity._Measured.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity._Measured, "run", lambda *args: (ran.append(1), run(*args)))
        for _ in range(2):
            with pytest.raises(slimfast.Cancelled):
                again()
        assert again().to_json() == again().to_json() == wanted.to_json()
    assert len(ran) == len(list(case.in_memory().slices_for_backward(MEMORY))) > 2
    # Sums of other samples are made anew.
    other = case.from_shards(tmp_path / "other", samples=8)
    options: dict[str, Any] = {"params": 0.8, "memory": MEMORY, "calibration": other}
    fresh = slimfast.plan_checkpoint(case.index, case.empty, case.example, **options)
    found = slimfast.plan_checkpoint(
        case.index, case.empty, case.example, resume=tmp_path / "sums.safetensors", **options
    )
    assert found.to_json() == fresh.to_json()


def test_a_plan_by_explained_variance_needs_no_curves(case: Case, tmp_path: Path) -> None:
    wanted, plan = plans(case, tmp_path / "state", allocation="explained_variance")
    assert plan.to_json() == wanted.to_json()
    assert plan.allocation == "explained_variance"


def test_what_is_stored_in_half_precision_is_repaired_in_the_dtype_of_the_model(tmp_path: Path) -> None:
    case = Case(tmp_path, Decoder, tokens())
    stored = {name: tensor.bfloat16() for name, tensor in case.model.state_dict().items()}
    case.index = write_shards(tmp_path / "wide", stored)
    case.model.load_state_dict(stored)
    wanted_plan, plan = plans(case, tmp_path / "state")
    wanted = in_memory(case, wanted_plan, repair="activations")
    found = from_shards(case, plan, tmp_path / "state", tmp_path / "thin", repair="activations")
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.bfloat16()), name


@pytest.mark.parametrize("stop", [KeyboardInterrupt, slimfast.Cancelled])
def test_a_run_that_dies_at_any_file_goes_on(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    _, plan = plans(case, tmp_path / "state")
    options: dict[str, Any] = {"repair": "activations"}
    wanted = from_shards(case, plan, tmp_path / "state", tmp_path / "whole", **options)
    real, left, solved = os.replace, 0, list[str]()
    note = repairing.RepairFolder.note

    def noted(self: Any, weight: str, fit: Any) -> None:
        note(self, weight, fit)
        solved.append(weight)

    def replace(source: str, target: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            Path(f"{source}".replace(".part", ".x.part")).write_bytes(Path(source).read_bytes()[:50])
            raise stop
        real(source, target)

    monkeypatch.setattr(repairing.RepairFolder, "note", noted)
    monkeypatch.setattr(os, "replace", replace)
    runs = 0
    while True:
        # Four files further each time.
        runs, left = runs + 1, 4
        try:
            found = from_shards(case, plan, tmp_path / "state", tmp_path / "thin", **options)
            break
        except stop:
            assert not (tmp_path / "thin" / "model.safetensors.index.json").exists()
    assert runs > 3
    assert sorted(solved) == sorted(slimfast.repair_report(wanted).fits)
    assert_same(found, wanted)
    assert_same_report(found, wanted)
    # And what is whole is left alone.
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "thin").glob("*.safetensors")}
    left = 1000
    from_shards(case, plan, tmp_path / "state", tmp_path / "thin", **options)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "thin").glob("*.safetensors")} == before
    assert sorted(solved) == sorted(slimfast.repair_report(wanted).fits)


def test_another_repair_begins_anew(case: Case, tmp_path: Path) -> None:
    _, plan = plans(case, tmp_path / "state")
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if (tmp_path / "thin" / "repair" / "repair.json").exists():
            raise slimfast.Cancelled

    with pytest.raises(slimfast.Cancelled):
        from_shards(
            case, plan, tmp_path / "state", tmp_path / "thin", repair="activations", progress=progress
        )
    assert json.loads((tmp_path / "thin" / "repair" / "repair.json").read_text())["fits"]
    options: dict[str, Any] = {"repair": "activations", "repair_damping": 1.0}
    found = from_shards(case, plan, tmp_path / "state", tmp_path / "thin", **options)
    assert_same(found, in_memory(case, plan, **options))
    plain = from_shards(case, plan, tmp_path / "state", tmp_path / "thin", repair=None)
    with pytest.raises(slimfast.SlimfastError, match="no repair was made"):
        slimfast.repair_report(plain)
    shares = [done / total for done, total in told]
    assert shares == sorted(shares)


@pytest.mark.filterwarnings("ignore:prune. the plan was made from other weights")
def test_a_calibration_of_another_model_is_refused(case: Case, tmp_path: Path) -> None:
    _, plan = plans(case, tmp_path / "state")
    other = {name: 3 * tensor + 1 for name, tensor in case.model.state_dict().items()}
    case.index = write_shards(tmp_path / "wide", other)
    with pytest.raises(slimfast.SlimfastError, match=r"calibration: .*expected the weights that were"):
        from_shards(case, plan, tmp_path / "state", tmp_path / "thin", repair="activations")
    with pytest.raises(slimfast.SlimfastError, match=r"calibration: .*expected the weights that were"):
        slimfast.plan_checkpoint(
            case.index, case.empty, case.example, params=0.8,
            calibration=slimfast.load_calibration(tmp_path / "state"),
        )  # fmt: skip


def test_arguments(case: Case, tmp_path: Path) -> None:
    _, plan = plans(case, tmp_path / "state")
    with pytest.raises(ValueError, match="expected a calibration for kind 'activations', got none"):
        slimfast.prune_checkpoint(case.index, plan, tmp_path / "a", model=case.empty, repair="activations")
    described = slimfast.prune_checkpoint(case.index, plan, tmp_path / "thin", model=case.empty)
    with pytest.raises(ValueError, match="expected a plan and its model for a repair"):
        slimfast.prune_checkpoint(case.index, described, tmp_path / "b", repair="weights")
    stored = slimfast.load_calibration(tmp_path / "state")
    with pytest.raises(ValueError, match="or a calibration, got a manifest"):
        slimfast.prune_checkpoint(case.index, described, tmp_path / "b", calibration=stored)


def test_weights_are_let_go(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd keeps none of them for its way back."""
    alive: list[int] = []

    class Watched(Shelf):
        def __init__(self, memory: int) -> None:
            super().__init__(0)

        def take(self, entry: Any) -> Any:
            found = super().take(entry)
            alive.append(sum(self.entry_at(address) is not None for address in self._known))
            return found

    monkeypatch.setattr(shard_plans, "Shelf", Watched)
    wanted, plan = plans(case, tmp_path / "state")
    assert plan.to_json() == wanted.to_json()
    # A few are in use at once: the weight and the bias of an operation, and those of its module.
    assert max(alive) <= 4
