"""Half the time spent in three ways: as fast by a device without a clock, scored alike, resumed, shown."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.synthetic_device import Device, stairs_of_8
from torch import nn

from benchmarks.accuracy.networks.resnet_cifar import ResNet
from benchmarks.accuracy.studies import allocations, equal_time, equal_time_search, equal_time_tables
from benchmarks.accuracy.studies.equal_time import OTHERS, OURS
from benchmarks.accuracy.studies.equal_time_search import EQUAL, Clock, moved
from benchmarks.accuracy.studies.equal_time_subjects import SETTINGS, Settings, Subject, short
from benchmarks.accuracy.studies.study import Study
from slimfast.errors import SlimfastError
from slimfast.plans import plan_widths

NAMES = [OURS, *OTHERS]


@pytest.fixture(scope="module")
def study() -> Study:
    torch.manual_seed(0)
    model = ResNet(blocks=1).eval()
    return Study.of(model, torch.zeros(1, 3, 32, 32), [torch.randn(8, 3, 32, 32)], 8)


def smooth() -> Device:
    """A device without stairs, on which any time can be met closely."""
    return Device(lambda a, b: 1e-6 * a * b)


@pytest.fixture(scope="module")
def clock(study: Study) -> Clock:
    return Clock(study, torch.zeros(1, 3, 32, 32), 1.0, measure=smooth())


class Trainings:
    """Counts trainings, and scores by the parameters that are left."""

    def __init__(self, study: Study) -> None:
        self.study, self.trained = study, []

    def subject(self, settings: Settings, work: Path) -> Subject:
        return Subject(self.study, torch.zeros(1, 3, 32, 32), self.scores, self.train)

    def scores(self, network: nn.Module) -> tuple[float, float]:
        left = sum(p.numel() for p in network.parameters()) / 1e6
        return left, left / 2

    def train(self, thin: nn.Module, seed: int, epochs: int, folder: Path) -> float:
        self.trained.append((seed, epochs, folder))
        return 1.5


@pytest.mark.parametrize("name", list(OTHERS))
def test_the_others_are_moved_until_they_are_as_fast(study: Study, clock: Clock, name: str) -> None:
    first = allocations.random(study, 0.4).widths()
    found, measured, apart = moved(study, OTHERS[name], first, clock)
    ours, theirs = clock.measured(first, found.widths())
    assert abs(theirs / ours - 1) <= EQUAL
    assert (measured, apart) == pytest.approx((theirs, theirs / ours - 1))


@pytest.mark.parametrize("fixed", [0.0, 1e-5])
def test_on_stairs_the_plan_within_the_time_has_the_least_error(study: Study, fixed: float) -> None:
    def price(into: int, out: int) -> float:
        return fixed * (into + out) + 1e-6 * stairs_of_8(into) * stairs_of_8(out)

    example = torch.zeros(1, 3, 32, 32)
    clock = Clock(study, example, 1.0, measure=Device(price))
    ours = equal_time.planned_for(Trainings(study).subject(Settings(), Path()), 0.5, clock).widths()
    for allocate in OTHERS.values():
        theirs = moved(study, allocate, ours, clock)[0].widths()
        assert equal_time.error_left(study, ours) < equal_time.error_left(study, theirs)


def test_too_fast_a_network_is_followed_from_both_sides(study: Study, clock: Clock) -> None:
    shares = []

    def allocate(given: Study, share: float) -> Any:
        shares.append(share)
        return allocations.uniform(given, share)

    whole = {group.name: group.n for group in study.graph}
    _, measured, apart = moved(study, allocate, whole, clock)
    assert measured > 0.97
    assert abs(apart) <= EQUAL
    # The whole network's time is above that of half the MACs, so that the search goes up from there.
    assert shares[0] == 0.5
    assert all(a < b for a, b in itertools.pairwise(shares))


def test_budgets_that_cannot_be_reached_are_passed_over(study: Study, clock: Clock) -> None:
    def allocate(given: Study, share: float) -> Any:
        if share < 0.6:
            raise SlimfastError("budget: cannot be reached")
        return allocations.uniform(given, share)

    first = allocations.uniform(study, 0.7).widths()
    assert abs(moved(study, allocate, first, clock)[2]) <= EQUAL

    def never(given: Study, share: float) -> Any:
        raise SlimfastError("budget: cannot be reached")

    with pytest.raises(SlimfastError, match="equal_time: no budget of MACs up to 1 of the whole"):
        moved(study, never, first, clock)


def test_what_cannot_be_equal_comes_nearest_and_says_how_far(study: Study, clock: Clock) -> None:
    wide, narrow = allocations.uniform(study, 0.8), allocations.uniform(study, 0.3)
    first = allocations.uniform(study, 0.7).widths()
    found, _, apart = moved(study, lambda given, share: wide if share > 0.4 else narrow, first, clock)
    assert found.widths() == wide.widths()
    assert apart > EQUAL


def test_what_is_found_to_be_equal_is_measured_longer(
    study: Study, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measured(self: Clock, *several: Any, longer: float = 1.0) -> list[float]:
        asked.append(longer)
        # Looks equal at first, and is not.
        return [0.5, 0.5] if len(asked) == 1 else [0.5, 0.6] if longer > 1 and len(asked) == 2 else [0.5, 0.5]

    monkeypatch.setattr(Clock, "measured", measured)
    _, _, apart = moved(study, allocations.uniform, {}, clock)
    assert asked == [1.0, equal_time_search.LONGER, 1.0, equal_time_search.LONGER]
    assert apart == 0.0


def test_the_error_is_the_share_of_what_the_curves_have_left(study: Study) -> None:
    whole = {group.name: group.n for group in study.graph}
    name, curve = next(iter(study.curves.items()))
    most = sum(float(c.residual[0]) for c in study.curves.values())
    rest = sum(float(c.residual[-1]) for c in study.curves.values()) - float(curve.residual[-1])
    left = equal_time.error_left(study, whole | {name: 3})
    assert left == pytest.approx((rest + float(curve.residual[3])) / most)


def test_all_are_cut_chosen_and_repaired_alike(study: Study) -> None:
    widths = allocations.uniform(study, 0.5).widths()
    plan = plan_widths(study.graph, study.spectra, overrides=widths)
    expected = equal_time.prune_channels(
        study.model, plan, select="lookahead", repair="activations", calibration=study.calibration
    )
    thin = equal_time.cut(study, widths)
    for one, other in zip(thin.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_goes_on_where_it_stopped_and_trains_what_was_measured(study: Study, tmp_path: Path) -> None:
    settings = Settings(latency=0.5, seeds=(0, 100), epochs=2)
    made, device = Trainings(study), smooth()
    options: dict[str, Any] = {
        "work": tmp_path / "work", "path": tmp_path / "rows.json", "loaded": made.subject, "measure": device,
    }  # fmt: skip
    equal_time.run(settings, **options)
    before = json.loads((tmp_path / "rows.json").read_text())
    assert [row["name"] for row in before["rows"]] == NAMES
    ours, *others = before["rows"]
    assert ours["measured"] <= 0.5
    assert ours["apart"] == 0.0
    assert all(abs(row["apart"]) <= EQUAL for row in others)
    assert all(0 < row[cost] < before["dense"][cost] for row in before["rows"] for cost in ("macs", "params"))
    assert made.trained == []
    calls = device.calls
    cut = copy.deepcopy(before)
    cut["rows"] = cut["rows"][:2]
    (tmp_path / "rows.json").write_text(json.dumps(cut))
    equal_time.run(settings, **options)
    again = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["widths"] for row in again] == [row["widths"] for row in before["rows"]]
    assert device.calls > calls
    calls = device.calls
    equal_time.run(settings, **options, train=True, seeds=[100], epochs=1)
    equal_time.run(settings, **options, train=True)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    trained = [(name, seed, epochs) for seed, epochs in ((100, 1), (0, 2), (100, 2)) for name in NAMES]
    assert [(row["name"], row["seed"], row["epochs"]) for row in rows[3:]] == trained
    assert [(seed, epochs) for seed, epochs, _ in made.trained] == [one[1:] for one in trained]
    assert len({folder for *_, folder in made.trained}) == len(trained)
    # Nothing is measured again for a training.
    assert device.calls == calls
    equal_time.run(settings, **options, train=True)
    assert len(made.trained) == len(trained)
    with pytest.raises(SlimfastError, match="has results of other settings"):
        equal_time.run(dataclasses.replace(settings, batch=1), **options)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(SlimfastError, match="expected one of resnet20, resnet56, minilm, got 'resnet21'"):
        equal_time.main(network="resnet21")


@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_quick_run_has_less_of_everything(name: str) -> None:
    whole, quick = SETTINGS[name], short(SETTINGS[name])
    assert (quick.network, quick.latency, quick.threads) == (name, whole.latency, whole.threads)
    assert quick.batch < whole.batch
    assert quick.samples < whole.samples
    assert quick.seconds < whole.seconds
    assert (quick.train or 0) < (whole.train or 0)


def result(*rows: dict[str, Any]) -> dict[str, Any]:
    settings = {**dataclasses.asdict(SETTINGS["minilm"])}
    stamp = {
        "machine": {"load": 0.5},
        "versions": {"torch": "2.0"},
        "date": "2026-01-01",
        "commit": "abc",
    }
    dense = {"held_out": 0.9, "score": 0.8203, "params": 1000, "macs": 4000}
    return {"settings": settings, "stamp": stamp, "dense": dense, "rows": list(rows)}


def row(name: str, error: float, score: float, apart: float = 0.0, **others: Any) -> dict[str, Any]:
    return {
        "name": name, "seed": None, "epochs": None, "error": error, "predicted": 0.48, "measured": 0.495,
        "apart": apart, "params": 450, "macs": 1600, "score": score, **others,
    }  # fmt: skip


def test_the_table_says_who_is_ahead_where() -> None:
    trained = [
        row(name, 0.1, score, seed=seed, epochs=1)
        for seed, scores in ((0, (0.79, 0.78, 0.77)), (100, (0.77, 0.78, 0.75)))
        for name, score in zip(NAMES, scores, strict=True)
    ]
    text = equal_time_tables.table(
        result(
            row(OURS, 0.1, 0.7), row("MACs plan", 0.2, 0.71, 0.013), row("uniform", 0.3, 0.6, -0.05), *trained
        )
    )
    assert "| original | 0 | 1 | 1 |  | 1 | 1 | 82.03 |  |" in text
    assert (
        "| within `latency=` | 0.1000 | 0.480 | 0.495 |  | 0.400 | 0.450 | 70.00 | 78.00 ± 1.41 (2 seeds) |"
        in text
    )
    assert "| within `macs=`, as fast | 0.2000 | 0.480 | 0.495 | +1.3% | 0.400 | 0.450 | 71.00 |" in text
    # Equal means are no lead.
    assert "predicted error: yes; score before training: no; score after 1 epoch: no." in text
    assert "Further apart than 2%, so no comparison: uniform widths (control), as fast." in text
    assert "minilm at 0.5 of its time, batches of 16 of 64 tokens, 1 thread." in text


def test_only_seeds_of_all_three_are_compared() -> None:
    rows = [row(name, error, 0.5 - error) for name, error in zip(NAMES, (0.1, 0.2, 0.3), strict=True)]
    trained = [
        row(name, 0.1, score, seed=0, epochs=5) for name, score in zip(NAMES, (0.8, 0.7, 0.6), strict=True)
    ]
    text = equal_time_tables.table(result(*rows, *trained, row("uniform", 0.1, 0.99, seed=100, epochs=5)))
    assert "score before training: yes; score after 5 epochs: yes." in text
    assert "no comparison" not in text


def test_what_was_not_measured_is_said() -> None:
    assert equal_time_tables.table({}) == "Not measured yet.\n"
    text = equal_time_tables.table(result(row(OURS, 0.1, 0.7)))
    assert "Ahead of both others: not measured." in text
    assert text.count("| not measured | not measured |") >= 2
