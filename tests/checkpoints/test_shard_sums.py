"""Thin shards that were damaged, exchanged or written before they had checksums."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.pruning_cases import ConvNet
from support.shard_cases import X, assert_same, write_shards
from torch import nn

import slimfast
from slimfast.checkpoints.shard_folder import INDEX
from slimfast.errors import SlimfastError
from slimfast.storage.file_sums import FILE_SUM, check_sum
from slimfast.storage.safetensors_writer import write_tensors


@pytest.fixture
def thin(index: Path, model: nn.Module, empty: nn.Module, tmp_path: Path) -> Path:
    """A folder of three thin shards."""
    slimfast.prune_checkpoint(index, slimfast.plan(model, X, macs=0.4), tmp_path / "thin", model=empty)
    return tmp_path / "thin"


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def flip(path: Path, place: float, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_a_flipped_byte_of_a_shard_names_it(thin: Path, which: int, place: float) -> None:
    shard = shards_of(thin)[which]
    flip(shard, place)
    with pytest.raises(SlimfastError, match=shard.name) as caught:
        slimfast.load_checkpoint(thin, ConvNet().eval())
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(SlimfastError, match=shard.name):
        slimfast.export_dcp(thin, thin.parent / "dcp")
    assert not (thin.parent / "dcp").exists()


def test_weights_alone_that_differ_are_found(thin: Path) -> None:
    """The last bytes are of a tensor, and change nothing else."""
    flip(shards_of(thin)[1], 0.9999, bit=0)
    reason = r"00002-of-00003\.safetensors: it is damaged: its content is not what was written; remove it and"
    with pytest.raises(SlimfastError, match=reason):
        slimfast.load_checkpoint(thin, ConvNet().eval())


def test_the_remedy_works(index: Path, model: nn.Module, empty: nn.Module, thin: Path) -> None:
    flip(shards_of(thin)[2], 0.9)
    shards_of(thin)[2].unlink()
    plan = slimfast.plan(model, X, macs=0.4)
    slimfast.prune_checkpoint(index, plan, thin, model=empty)
    assert_same(slimfast.load_checkpoint(thin, empty), slimfast.prune_channels(model, plan))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_no_damage_to_a_file_passes(tmp_path: Path, place: float, bit: int, cut: bool) -> None:
    path, tensors = tmp_path / "x.safetensors", {"a": torch.arange(6.0), "b": torch.ones(3).int()}
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_tensors(path, shapes, tensors.items(), metadata={"format": "pt"}, summed=True)
    found = check_sum(path, "again")
    assert found is not None
    assert found["format"] == "pt"
    assert all(torch.equal(read, tensors[name]) for name, read in load_file(path).items())
    whole = path.read_bytes()
    if cut:
        path.write_bytes(whole[: int(place * len(whole))])
    else:
        flip(path, place, bit)
    try:
        held = check_sum(path, "again")
    except SlimfastError:
        return
    # Only a damaged name of the checksum makes it one of a file without: the folder's index knows better.
    assert held is None


@pytest.mark.parametrize("place", [k / 40 for k in range(40)])
def test_a_flipped_byte_of_the_index_is_no_other_network(thin: Path, place: float) -> None:
    expected = slimfast.load_checkpoint(thin, ConvNet().eval())
    flip(thin / INDEX, place, bit=1)
    refused = ""
    try:
        found = slimfast.load_checkpoint(thin, ConvNet().eval())
    except SlimfastError as error:
        refused = str(error)
    if refused:
        assert len(refused.splitlines()) == 1
        assert str(thin) in refused
    else:
        # Space between the entries says nothing.
        assert_same(found, expected)


def test_a_shard_of_another_run_is_refused(
    index: Path, model: nn.Module, empty: nn.Module, thin: Path, tmp_path: Path
) -> None:
    state = {name: t * 2 if t.is_floating_point() else t for name, t in model.state_dict().items()}
    (tmp_path / "other").mkdir()
    other = write_shards(tmp_path / "other", state)
    plan = slimfast.plan(model, X, macs=0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the plan is of other weights
        slimfast.prune_checkpoint(other, plan, tmp_path / "twice", model=empty)
    shutil.copy(shards_of(tmp_path / "twice")[1], shards_of(thin)[1])
    with pytest.raises(
        SlimfastError, match=r"00002-of-00003\.safetensors: expected a shard of .* another run"
    ):
        slimfast.load_checkpoint(thin, empty)


def without_sums(thin: Path, shards: list[Path]) -> None:
    """Write shards as they were before they had checksums."""
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            metadata = file.metadata()
        save_file(load_file(shard), shard, metadata={k: v for k, v in metadata.items() if k != FILE_SUM})


def test_a_folder_of_before_there_were_checksums_loads_and_says_so(thin: Path, empty: nn.Module) -> None:
    expected = slimfast.load_checkpoint(thin, empty)
    without_sums(thin, shards_of(thin))
    said = json.loads((thin / INDEX).read_text())
    del said["metadata"][FILE_SUM]
    (thin / INDEX).write_text(json.dumps(said))
    with pytest.warns(UserWarning, match="of before they had checksums") as caught:
        found = slimfast.load_checkpoint(thin, empty)
    assert len(caught) == 1
    assert_same(found, expected)


def test_a_checksum_that_one_file_has_lost_is_missed(thin: Path, empty: nn.Module) -> None:
    whole = (thin / INDEX).read_text()
    said = json.loads(whole)
    del said["metadata"][FILE_SUM]
    (thin / INDEX).write_text(json.dumps(said))
    with pytest.raises(SlimfastError, match=r"index\.json: it is damaged: its checksum is missing"):
        slimfast.load_checkpoint(thin, empty)
    (thin / INDEX).write_text(whole)
    without_sums(thin, shards_of(thin)[:1])
    with pytest.raises(SlimfastError, match=r"00001-of-00003\.safetensors: .* without the checksum"):
        slimfast.load_checkpoint(thin, empty)
