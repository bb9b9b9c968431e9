"""Calibration from shards: that of the model in memory bit for bit, one layer's weights at a time."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from support.shard_cases import write_shards
from support.streamed_cases import MEMORY, Case, Decoder, case, tokens
from torch import Tensor, nn

import slimfast
from slimfast.calibration import together
from slimfast.calibration.folders import INDEX
from slimfast.checkpoints import calibrating
from slimfast.storage.stored_tensors import Shelf, StoredTensor, entry_of, left_on_shelves
from slimfast.storage.weights import open_weights

__all__ = ["case"]
MEASURED = r"^cannot write .*reading-\d+.safetensors: File too large$"
WAITS = r"^calibrate: .*File too large, after .* bytes of activations in .*state; nothing was changed: free"
TWICE = ("mix.weight", "back.weight")


def assert_alike(found: slimfast.Calibration, wanted: slimfast.Calibration) -> None:
    assert list(found.readings) == list(wanted.readings)
    for name, reading in wanted.readings.items():
        other = found.readings[name]
        assert other.count == reading.count
        for part in ("mean", "covariance", "norms"):
            one, two = getattr(other, part), getattr(reading, part)
            # Of what is called twice the calls come in another order.
            same = torch.allclose(one, two, rtol=1e-12) if name in TWICE else torch.equal(one, two)
            assert same, (name, part)
    assert dict(found.left) == dict(wanted.left)
    assert (found.samples, found.bytes_held) == (wanted.samples, wanted.bytes_held)
    assert found.bytes_made == wanted.bytes_made
    for mask, other_mask in zip(wanted.masks, found.masks, strict=True):
        assert (mask is None) == (other_mask is None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("options", [{}, {"samples": 9, "dtype": torch.float64}])
def test_moments_from_shards_are_those_in_memory(case: Case, tmp_path: Path, options: Any) -> None:
    found = case.from_shards(tmp_path / "state", **options)
    wanted = case.in_memory(**options)
    assert len(list(wanted.slices(MEMORY))) > 2
    assert_alike(found, wanted)
    assert_alike(slimfast.load_calibration(tmp_path / "state"), wanted)
    slimfast.save_calibration(found, tmp_path / "file.safetensors")
    assert_alike(slimfast.load_calibration(tmp_path / "file.safetensors"), wanted)


def test_half_precision_shards_are_computed_with_as_the_model_says(tmp_path: Path) -> None:
    case = Case(tmp_path, Decoder, tokens())
    stored = {name: tensor.bfloat16() for name, tensor in case.model.state_dict().items()}
    case.index = write_shards(tmp_path / "wide", stored)
    case.model.load_state_dict(stored)
    assert_alike(case.from_shards(tmp_path / "state"), case.in_memory())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, slimfast.Cancelled])
def test_a_run_that_dies_at_any_file_goes_on(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    case.from_shards(tmp_path / "whole")
    whole, real = contents(tmp_path / "whole"), os.replace
    state, made, at = tmp_path / "state", list[str](), 0

    def replace(source: str, target: str) -> None:
        if len(made) == at:
            Path(f"{source}".replace(".part", ".x.part")).write_bytes(Path(source).read_bytes()[:50])
            raise stop
        made.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    while True:
        try:
            case.from_shards(state)
            break
        except stop:
            assert "calibration.json" not in contents(state)
            at += 1
    # Each file was written once, whatever was written before.
    assert sorted(made) == sorted(whole)
    assert contents(state) == whole


def test_progress_tells_the_layers_and_stops_the_work(case: Case, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            raise slimfast.Cancelled

    with pytest.raises(slimfast.Cancelled):
        case.from_shards(tmp_path / "state", progress=progress)
    case.from_shards(tmp_path / "state", progress=progress)
    assert told[-1][0] == told[-1][1] >= len(case.in_memory().readings)
    assert told[3:] == sorted(told[3:])


@pytest.mark.parametrize("change", ["samples", "weights", "options"])
def test_a_folder_of_something_else_is_refused(case: Case, tmp_path: Path, change: str) -> None:
    case.from_shards(tmp_path / "state")
    before, options = contents(tmp_path / "state"), dict[str, Any]()
    if change == "samples":
        options["samples"] = 8
    elif change == "options":
        options["dtype"] = torch.float64
    else:
        write_shards(tmp_path / "wide", {n: t + 1 for n, t in case.model.state_dict().items()})
    with pytest.raises(slimfast.SlimfastError, match=r"a calibration of another model.*name another folder"):
        case.from_shards(tmp_path / "state", **options)
    assert contents(tmp_path / "state") == before


def test_a_full_disk_loses_nothing(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case.from_shards(tmp_path / "whole")
    whole, before = contents(tmp_path / "whole"), resource.getrlimit(resource.RLIMIT_FSIZE)

    def stop(done: int, total: int) -> None:
        raise slimfast.Cancelled

    with pytest.raises(slimfast.Cancelled):
        case.from_shards(tmp_path / "state", progress=stop)
    limit = max(len(content) for name, content in whole.items() if "reading" in name) - 1
    # Nothing that waits goes to the disk, so that what is measured meets its end; and then what waits.
    for share, told in ((2**-20, MEASURED), (1 << 30, WAITS)):
        monkeypatch.setattr(together, "KEPT", share)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(slimfast.SlimfastError, match=told):
                case.from_shards(tmp_path / "state")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert INDEX not in contents(tmp_path / "state")
    case.from_shards(tmp_path / "state")
    assert contents(tmp_path / "state") == whole


def test_what_is_not_finite_is_named(case: Case, tmp_path: Path) -> None:
    with torch.no_grad():
        bias = case.model.get_parameter("up.bias" if isinstance(case.model, Decoder) else "project.bias")
        bias[0] = float("nan")
    case.index = write_shards(tmp_path / "wide", case.model.state_dict())
    with pytest.raises(slimfast.SlimfastError, match=r"calibrate: .*read by (down|grouped|branch), batch 0"):
        case.from_shards(tmp_path / "state")


def test_a_damaged_file_is_refused(case: Case, tmp_path: Path) -> None:
    found = case.from_shards(tmp_path / "state")
    path = tmp_path / "state" / "reading-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(slimfast.SlimfastError, match=r"reading-00001.safetensors: it is damaged"):
        dict(found.readings)


def test_tensors_that_are_missing(case: Case, tmp_path: Path) -> None:
    with torch.device("meta"):
        case.empty = type(case.model)().eval()
    if isinstance(case.model, Decoder):
        with pytest.raises(slimfast.SlimfastError, match=r"positions is not stored.*without_weights"):
            case.from_shards(tmp_path / "state")
    else:
        # All of its buffers are stored.
        assert_alike(case.from_shards(tmp_path / "state"), case.in_memory())
    tensors = case.model.state_dict()
    name = next(name for name in tensors if name.endswith("weight"))
    case.index = write_shards(tmp_path / "wide", {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(slimfast.SlimfastError, match=f"{name}: expected a tensor of this name, got none"):
        case.from_shards(tmp_path / "other")
    case.index = write_shards(tmp_path / "wide", {**tensors, name: torch.zeros(3, 5)})
    with pytest.raises(slimfast.SlimfastError, match=rf"{name}: expected shape .*got shape \(3, 5\)"):
        case.from_shards(tmp_path / "other")


def test_weights_are_in_memory_one_at_a_time(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no room on the shelf each weight is read for each slice, and never more than one is kept."""
    shelves: list[Shelf] = []

    class Counting(Shelf):
        def __init__(self, memory: int) -> None:
            super().__init__(0)
            shelves.append(self)
            self.most = 0

        def take(self, entry: Any) -> Tensor:
            found = super().take(entry)
            self.most = max(self.most, len(self._held))
            return found

    monkeypatch.setattr(calibrating, "Shelf", Counting)
    assert_alike(case.from_shards(tmp_path / "state"), case.in_memory())
    assert [shelf.most for shelf in shelves] == [1]


def test_a_stored_tensor_computes_as_its_values_do(tmp_path: Path) -> None:
    values = {"w": torch.randn(6, 4), "b": torch.randn(6)}
    weights, shelf = open_weights(write_shards(tmp_path, values)), Shelf(1 << 20)
    stored = {name: StoredTensor(entry_of(weights, name, torch.float32), shelf) for name in values}
    x = torch.randn(3, 4)
    assert torch.equal(
        nn.functional.linear(x, stored["w"], stored["b"]), nn.functional.linear(x, *values.values())
    )
    assert type(stored["w"].T) is Tensor
    assert type(stored["w"].detach()) is StoredTensor
    with pytest.raises(
        slimfast.SlimfastError, match="b: a forward writes to a weight that stays in its file"
    ):
        stored["b"].add_(1.0)
    assert torch.equal(stored["b"] + 0.0, values["b"])


def test_what_a_backward_pass_needs_is_not_changed_behind_its_back(tmp_path: Path) -> None:
    weights, shelf = open_weights(write_shards(tmp_path, {"w": torch.randn(4, 4)})), Shelf(0)
    weight, x = (
        StoredTensor(entry_of(weights, "w", torch.float32), shelf),
        torch.randn(3, 4, requires_grad=True),
    )
    for change in (0.0, 1.0):
        with left_on_shelves([shelf]):
            hidden = (x @ weight).exp()
            out = hidden.square().sum()
        if change:
            hidden.detach().add_(change)
            with pytest.raises(slimfast.SlimfastError, match="changes in place what its backward pass needs"):
                out.backward()
        else:
            out.backward()
            plain = weights.load("w")
            (wanted,) = torch.autograd.grad((x @ plain).exp().square().sum(), x)
            assert torch.equal(x.grad, wanted)
