"""Networks whose embedding and head are larger than all else: never whole in memory, and the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.shard_cases import write_shards
from torch import Tensor, nn

import slimfast
from slimfast.calibration import together
from slimfast.calibration.sleeping import Activations
from slimfast.checkpoints import calibrating, cut_rows, repairing, shard_plans, shards
from slimfast.pruning import unit_scores
from slimfast.pruning.repair import least_squares
from slimfast.storage import long_tensors, stored_tensors, stored_values
from slimfast.storage.stored_tensors import Shelf

WORDS, WIDTH, INNER = 6000, 20, 40
HEAD = WORDS * WIDTH * 4
SLICE = HEAD // 12
MEMORY = 4 * WORDS * 4


class Words(nn.Module):
    """Tokens in, scores of tokens out, and not much between them."""

    def __init__(self, tied: bool, bias: bool) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        self.gate, self.up, self.down = (
            nn.Linear(*s) for s in ((WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH))
        )
        self.head = nn.Linear(WIDTH, WORDS, bias=bias)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norm(x)
        x = x + self.down(self.gate(y).sigmoid() * self.up(y))
        return self.head(x)


class Road:
    """The road in memory, and that from shards."""

    def __init__(self, folder: Path, tied: bool, bias: bool) -> None:
        torch.manual_seed(0)
        self.folder, self.model = folder, Words(tied, bias).eval()
        with slimfast.without_weights():
            self.empty = Words(tied, bias).eval()
        (folder / "wide").mkdir()
        tensors = self.model.state_dict()
        if tied:
            del tensors["head.weight"]
        self.index = write_shards(folder / "wide", tensors)
        self.batches = [torch.randint(WORDS, (count, 8)) for count in (5, 4)]
        self.example = self.batches[0][:1]
        self.plan_options: dict[str, Any] = {"params": 0.75, "memory": MEMORY}
        self.options: dict[str, Any] = {"repair": "activations", "memory": MEMORY}

    def in_memory(self) -> tuple[slimfast.Calibration, slimfast.Plan, nn.Module]:
        graph = slimfast.trace_channels(self.model, self.example)
        found = slimfast.calibrate(self.model, graph, self.batches, memory=MEMORY)
        plan = slimfast.plan(self.model, self.example, calibration=found, **self.plan_options)
        return found, plan, slimfast.prune_channels(
            self.model, plan, calibration=found, verify=False, **self.options
        )  # fmt: skip

    def calibrate(self) -> slimfast.Calibration:
        graph = slimfast.trace_channels(self.empty, self.example)
        return slimfast.calibrate_checkpoint(
            self.index, self.empty, graph, self.batches, self.folder / "state", memory=MEMORY
        )

    def plan(self, found: slimfast.Calibration) -> slimfast.Plan:
        return slimfast.plan_checkpoint(
            self.index, self.empty, self.example, calibration=found, **self.plan_options
        )

    def prune(self, plan: slimfast.Plan, name: str = "thin", **options: Any) -> nn.Module:
        repaired = self.options["repair"] is not None
        found = slimfast.load_calibration(self.folder / "state") if repaired else None
        slimfast.prune_checkpoint(
            self.index,
            plan,
            self.folder / name,
            model=self.empty,
            calibration=found,
            **self.options,
            **options,
        )
        return slimfast.load_checkpoint(self.folder / name, self.empty)


@pytest.fixture(params=["tied", "apart", "bias"])
def road(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Road:
    """One of three kinds of heads, of a size that counts as long here."""
    for module in (calibrating, cut_rows, shard_plans, repairing, shards):
        monkeypatch.setattr(module, "WEIGHTS", HEAD // 8)
    monkeypatch.setattr(long_tensors, "_SLICE", SLICE)
    monkeypatch.setattr(least_squares, "_AT_ONCE", SLICE // 4)
    monkeypatch.setattr(repairing, "_FILE", SLICE)
    monkeypatch.setattr(unit_scores, "_ROWS", SLICE // 8)
    return Road(tmp_path, request.param == "tied", request.param == "bias")


class Peaks:
    """The largest pieces of memory that are taken, in this thread and in those of forwards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = self.read = 0
        self.weighing = False
        self.whole: list[str] = []
        weigh = together.weigh

        def weighed(*args: Any) -> tuple[float, float]:
            self.weighing = True
            found = weigh(*args)
            self.weighing = False
            return found

        note, take, read_values = Activations._note, Shelf.take, stored_values.read_values

        def noted(mode: Activations, given: set[int], leaf: Any) -> None:
            if isinstance(leaf, Tensor) and type(leaf) is Tensor and not leaf.is_meta:
                storage = leaf.untyped_storage()
                # A map of a file is no memory: who reads it all is found by what is made of it.
                if storage._cdata not in given and leaf.dtype != torch.uint8 and not self.weighing:
                    self.made = max(self.made, storage.nbytes())
            note(mode, given, leaf)

        def taken(shelf: Shelf, entry: Any) -> Tensor:
            if shelf.is_long(entry):
                self.whole.append(entry.name)
            return take(shelf, entry)

        def read(*args: Any) -> Tensor:
            found = read_values(*args)
            self.read = max(self.read, found.nbytes)
            return found

        monkeypatch.setattr(together, "weigh", weighed)
        monkeypatch.setattr(Activations, "_note", noted)
        monkeypatch.setattr(Shelf, "take", taken)
        for module in (
            stored_values,
            stored_tensors,
            cut_rows,
        ):
            monkeypatch.setattr(module, "read_values", read)

    def of(self, work: Any) -> Any:
        """Do some work, in which nothing long is read whole."""
        self.made = self.read = 0
        with Activations():
            found = work()
        assert self.whole == []
        assert 0 < self.read <= SLICE
        return found


def test_the_road_is_the_one_in_memory_and_no_head_is_ever_whole(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, wanted_plan, wanted_thin = road.in_memory()
    peaks = Peaks(monkeypatch)
    # What weighs the network makes the scores of one sample, which take no memory; nothing does after that.
    scores = 8 * WORDS * 4
    calibration = peaks.of(road.calibrate)
    assert peaks.made <= 2 * SLICE < scores
    assert (calibration.bytes_held, calibration.bytes_made) == (wanted.bytes_held, wanted.bytes_made)
    assert dict(calibration.left) == dict(wanted.left)
    for name, reading in wanted.readings.items():
        other = calibration.readings[name]
        assert torch.equal(other.mean, reading.mean)
        assert torch.equal(other.covariance, reading.covariance)
        torch.testing.assert_close(other.norms, reading.norms, rtol=1e-12, atol=0.0)
    # Those of the slice that runs, and their slope.
    plan = peaks.of(lambda: road.plan(calibration))
    assert peaks.made <= scores
    assert {g.name: g.width for g in plan.groups} == {g.name: g.width for g in wanted_plan.groups}
    assert any(g.width < g.n for g in plan.groups if "residual" in g.name)
    # A file of rows, to which the last of them have come.
    thin = peaks.of(lambda: road.prune(plan))
    assert peaks.made <= 2 * SLICE
    found, expected = thin.state_dict(), wanted_thin.state_dict()
    assert list(found) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)
    fits, wanted_fits = (slimfast.repair_report(each).fits for each in (thin, wanted_thin))
    assert list(fits) == list(wanted_fits)
    assert ("head.weight" in fits) == ("head.weight" in calibration.readings)
    assert [fit.damping for fit in fits.values()] == [fit.damping for fit in wanted_fits.values()]


def test_a_repair_that_was_stopped_behind_the_head_goes_on(road: Road) -> None:
    plan = road.plan(road.calibrate())
    whole = road.prune(plan)

    def stop(done: int, total: int) -> None:
        if done >= 100:
            raise slimfast.Cancelled

    with pytest.raises(slimfast.Cancelled):
        road.prune(plan, "stopped", progress=stop)
    files = list((road.folder / "stopped" / "repair").glob("tensor-*-*"))
    assert (len(files) > 4) == ("head.weight" in slimfast.repair_report(whole).fits)
    found = road.prune(plan, "stopped").state_dict()
    for name, values in whole.state_dict().items():
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("select", ["lookahead", "l1"])
def test_sums_over_weights_choose_as_they_do_in_memory(
    road: Road, monkeypatch: pytest.MonkeyPatch, select: Any
) -> None:
    plan = road.plan(road.calibrate())
    wanted = slimfast.prune_channels(road.model, plan, select=select, verify=False)
    road.options = {"repair": None, "select": select}
    found = Peaks(monkeypatch).of(lambda: road.prune(plan))
    for name, values in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], values), name
