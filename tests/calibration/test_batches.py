"""Batches of every kind: too large, not to be parted, of other arguments; and calibrations of older files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.calibration_cases import Words, images, read_by, small
from torch import Tensor, nn

import slimfast
from slimfast.arrays import Arguments
from slimfast.calibration.data import at_most
from slimfast.calibration.forward import slices_of
from slimfast.calibration.heap import give_back
from slimfast.storage.tensor_documents import write_tensor_document


@pytest.fixture
def model() -> nn.Sequential:
    return small()


class Pairs(nn.Sequential):
    """Runs on batches of two samples alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(2, -1, *x.shape[1:]).flatten(0, 1))


def test_batches_that_cannot_be_parted_run_whole() -> None:
    torch.manual_seed(0)
    model = Pairs(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
    batches = [images(2), images(2) + 1]
    graph = slimfast.trace_channels(model, batches[0])
    found = slimfast.calibrate(model, graph, batches, memory=0)
    assert (found.bytes_held, found.bytes_made) == (0.0, 0.0)
    assert torch.allclose(
        found.readings["2.weight"].mean, read_by(model, 2, torch.cat(batches)).mean(1), atol=1e-5
    )
    plan = slimfast.plan(model, batches[0], macs=0.5, calibration=found, memory=0)
    slimfast.prune_channels(model, plan, repair="activations", calibration=found, memory=0)


def test_large_batches_run_a_part_at_a_time(model: nn.Sequential) -> None:
    seen: list[int] = []
    whole = images()

    class Counting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    counting = Counting(*model).eval()
    graph = slimfast.trace_channels(counting, whole[:1])
    expected = slimfast.calibrate(counting, graph, [whole])
    sample = int(expected.bytes_held * whole[0].numel())
    assert sample >= 4 * 6 * 6 * 6
    seen.clear()
    found = slimfast.calibrate(counting, graph, [whole], memory=5 * sample)
    # One to see what a sample holds, then all twelve.
    assert seen == [1, 4, 4, 4]
    for name, reading in expected.readings.items():
        assert torch.allclose(found.readings[name].covariance, reading.covariance, atol=1e-6)
    seen.clear()
    slimfast.error_curves(counting, graph, found, memory=3 * int(found.bytes_made * whole[0].numel()))
    assert max(seen) <= 3
    assert sum(seen) == 12


def test_a_batch_that_is_part_of_a_larger_tensor_holds_no_more_than_its_own(model: nn.Sequential) -> None:
    whole = images(12)
    graph = slimfast.trace_channels(model, whole[:1])
    alone = slimfast.calibrate(model, graph, [whole[:4].clone()])
    for part in (slimfast.calibrate(model, graph, [own]) for own in (whole[:4], whole[4:8])):
        assert (part.bytes_held, part.bytes_made) == (alone.bytes_held, alone.bytes_made)


@pytest.mark.parametrize(("device", "expected"), [("cpu", (24, 4)), ("meta", (100, 4))])
def test_a_processor_gets_no_more_at_once_than_its_memory_is_good_for(
    device: str, expected: tuple[int, int]
) -> None:
    batch = (torch.empty(200, 1 << 20, device=device),), {}
    memory = 400 << 20
    assert at_most(memory, held=4.0)(batch) == expected[0]
    assert at_most(memory, held=4.0, made=100.0)(batch) == expected[1]
    assert at_most(0, held=4.0)(batch) == 1
    assert at_most(memory, held=0.0)(batch) == 200


def test_a_batch_that_does_not_fit_the_example() -> None:
    model = Words()
    tokens, scale = torch.randint(11, (6, 5)), torch.rand(6)
    graph = slimfast.trace_channels(model, (tokens, scale))
    good = (tokens, scale)
    for batch, message in (
        ((tokens,), r"expected 2 arguments as in the example, got 1 \(batch 1\)"),
        (
            (tokens, scale[:, None]),
            r"argument 1: expected floating-point numbers of 1 dim.* of 2 \(batch 1\)",
        ),
        ((tokens.float(), scale), r"argument 0: expected integers of 2 .* got floating-point numbers of 2"),
    ):
        with pytest.raises(slimfast.SlimfastError, match=message):
            slimfast.calibrate(model, graph, [good, batch])


def test_a_file_of_the_first_schema_is_read(model: nn.Sequential, tmp_path: Path) -> None:
    graph = slimfast.trace_channels(model, images(1))
    found = slimfast.calibrate(model, graph, [images()])
    readings = found.readings.values()
    document = {
        "kind": "slimfast.calibration.moments", "schema": 1, "samples": 12, "left": {},
        "readings": [{"weight": reading.weight, "count": reading.count} for reading in readings],
        "inputs": [{"args": [{"tensor": {"shape": [12, 3, 8, 8], "dtype": "float32"}}], "kwargs": {}}],
    }  # fmt: skip
    tensors = {"input:0:0": images()}
    for reading in readings:
        for part in ("mean", "covariance", "norms"):
            tensors[f"{part}:{reading.weight}"] = getattr(reading, part)
    write_tensor_document(tmp_path / "old.safetensors", json.dumps(document), tensors)
    back = slimfast.load_calibration(tmp_path / "old.safetensors")
    assert back.masks == (None,)
    for name, reading in found.readings.items():
        assert torch.equal(back.readings[name].covariance, reading.covariance)
    slimfast.error_curves(model, graph, back)
    plan = slimfast.plan(model, images(1), macs=0.5, calibration=back)
    slimfast.prune_channels(model, plan, repair="activations", calibration=back)


def test_slices_are_neighbours_of_one_shape_joined_or_parted() -> None:
    def sizes(batches: list[Tensor], most: int) -> list[tuple[int, ...]]:
        given: list[tuple[Arguments, None]] = [(((x,), {}), None) for x in batches]
        return [tuple(part.args[0][0].shape) for part in slices_of(given, lambda batch: most)]

    small_ones = [torch.zeros(1, 3)] * 5
    assert sizes(small_ones, 2) == [(2, 3), (2, 3), (1, 3)]
    assert sizes(small_ones, 100) == [(5, 3)]
    assert sizes([torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 4)], 8) == [(2, 3), (4, 4)]
    assert sizes([torch.zeros(16, 3)], 12) == [(8, 3), (8, 3)]
    assert sizes([torch.zeros(7, 3), torch.zeros(7, 3).double()], 20) == [(7, 3), (7, 3)]
    # A tensor that is not of the samples is every slice's, whole.
    constant = torch.zeros(9, 3)
    given = [(((torch.zeros(2, 3), constant), {}), None)] * 2
    (part,) = slices_of(given, lambda batch: 8)
    assert part.samples == 4
    assert part.args[0][0].shape == (4, 3)
    assert part.args[0][1] is constant


def test_free_memory_is_given_back() -> None:
    give_back(0)
    give_back(1 << 60)
    kept = [torch.ones(1000) for _ in range(20_000)]
    del kept[::2]
    give_back(0)
    assert all(bool((x == 1).all()) for x in kept[:10])


class Named(nn.Module):
    """Two arguments, of which one may be left out, and labels that no forward takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8, device="cpu"), nn.Linear(8, 3, device="cpu")

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        made: torch.Tensor = self.last(self.first(x).relu() * (1.0 if scale is None else scale))
        return made


def test_what_the_example_has_by_place_may_be_there_by_name() -> None:
    torch.manual_seed(0)
    model = Named().eval()
    x, scale = torch.randn(16, 5), torch.rand(16, 1)
    graph = slimfast.trace_channels(model, (x[:2], scale[:2]))
    by_place = slimfast.calibrate(model, graph, [(x, scale)])
    # In another order, and with what is no argument.
    by_name = slimfast.calibrate(model, graph, [{"scale": scale, "x": x, "labels": torch.zeros(16)}])
    for name, reading in by_place.readings.items():
        assert torch.equal(reading.covariance, by_name.readings[name].covariance)
    plan = slimfast.plan(model, graph=graph, params=0.6, calibration=by_name)
    one, other = (slimfast.prune_channels(model, plan, calibration=c) for c in (by_place, by_name))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_an_argument_that_is_missing_by_name_is_told_of() -> None:
    model = Named().eval()
    graph = slimfast.trace_channels(model, (torch.randn(2, 5), torch.rand(2, 1)))
    with pytest.raises(slimfast.SlimfastError, match=r"expected 2 arguments .*, got 0 and by name x \("):
        slimfast.calibrate(model, graph, [{"x": torch.randn(4, 5)}])
