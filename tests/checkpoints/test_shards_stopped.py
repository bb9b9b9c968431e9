"""Pruning from shards to shards that is stopped: it goes on, and nothing of another run is mixed in."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.pruning_cases import ConvNet
from support.shard_cases import X, assert_same, write_shards
from torch import nn

import slimfast
from slimfast.checkpoints import shard_folder, shards
from slimfast.checkpoints.shard_folder import INDEX
from slimfast.checkpoints.shards import prune_checkpoint
from slimfast.checkpoints.thin_shards import load_checkpoint
from slimfast.errors import SlimfastError
from slimfast.pruning.manifests import manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_run_that_dies_at_any_file_goes_on(
    index: Path, model: nn.Module, empty: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    plan = slimfast.plan(model, X, macs=0.4)
    prune_checkpoint(index, plan, tmp_path / "whole", model=empty)
    thin, real, calls = tmp_path / "thin", os.replace, []

    def replace(source: str, target: str) -> None:
        calls.append(Path(target).name)
        if len(calls) == at + 1:
            # As a killed process leaves it: the temporary file stays.
            Path(f"{source}".replace(".part", ".x.part")).write_bytes(Path(source).read_bytes()[:50])
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoint(index, plan, thin, model=empty)
    assert not (thin / INDEX).exists()
    with pytest.raises(SlimfastError, match="no such file"):
        load_checkpoint(thin, empty)
    before = list(calls)
    prune_checkpoint(index, plan, thin, model=empty)
    assert calls[len(before) :] == before[-1:] + sorted(contents(tmp_path / "whole"))[at:-1][1:] + (
        [INDEX] if at < 3 else []
    )
    assert contents(thin) == contents(tmp_path / "whole")


def test_a_disk_that_fills_up(index: Path, model: nn.Module, empty: nn.Module, tmp_path: Path) -> None:
    plan = slimfast.plan(model, X, macs=0.4)
    prune_checkpoint(index, plan, tmp_path / "whole", model=empty)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    thin = tmp_path / "thin"
    sizes = sorted({len(content) for content in contents(tmp_path / "whole").values()})
    for limit in sizes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit - 1, before[1]))
        try:
            with pytest.raises(SlimfastError, match=r"^cannot write .*: File too large$"):
                prune_checkpoint(index, plan, thin, model=empty)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert INDEX not in contents(thin)
        assert not any(".part" in name for name in contents(thin))
    prune_checkpoint(index, plan, thin, model=empty)
    assert contents(thin) == contents(tmp_path / "whole")


def test_another_plan_leaves_nothing_of_the_old_one(
    index: Path, model: nn.Module, empty: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thin = tmp_path / "thin"
    prune_checkpoint(index, slimfast.plan(model, X, macs=0.6), thin, model=empty)
    plan = slimfast.plan(model, X, macs=0.4)

    def no_shard(*args: object) -> None:
        assert not (thin / INDEX).exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shards, "_write_shard", no_shard)
        with pytest.raises(KeyboardInterrupt):
            prune_checkpoint(index, plan, thin, model=empty)
    prune_checkpoint(index, plan, thin, model=empty)
    assert_same(load_checkpoint(thin, empty), slimfast.prune_channels(model, plan))


def test_changed_weights_are_cut_again(
    index: Path, model: nn.Module, empty: nn.Module, tmp_path: Path
) -> None:
    described = manifest(slimfast.prune_channels(model, slimfast.plan(model, X, macs=0.4)))
    prune_checkpoint(index, described, tmp_path / "thin")
    changed = {name: t + 1 if t.is_floating_point() else t for name, t in model.state_dict().items()}
    write_shards(index.parent, changed)
    prune_checkpoint(index, described, tmp_path / "thin")
    other = ConvNet().eval()
    other.load_state_dict(changed)
    prune_checkpoint(index, described, tmp_path / "again")
    assert_same(load_checkpoint(tmp_path / "thin", empty), load_checkpoint(tmp_path / "again", empty))
    wide = load_checkpoint(tmp_path / "thin", empty).classifier.bias
    assert torch.equal(wide, other.classifier.bias)


def test_a_folder_of_something_else_is_not_written_to(index: Path, model: nn.Module, tmp_path: Path) -> None:
    described = manifest(slimfast.prune_channels(model, slimfast.plan(model, X, macs=0.4)))
    before = contents(index.parent)
    with pytest.raises(SlimfastError, match=r"cannot write .*index\.json: another checkpoint is there"):
        prune_checkpoint(index, described, index.parent)
    assert contents(index.parent) == before
    other = tmp_path / "other"
    other.mkdir()
    save_file({"a": torch.ones(2)}, other / "model-00002-of-00003.safetensors")
    with pytest.raises(SlimfastError, match=r"model-00002-of-00003\.safetensors: a file of something else"):
        prune_checkpoint(index, described, other)
    assert list(contents(other)) == ["model-00002-of-00003.safetensors"]


def test_two_runs_on_one_folder(index: Path, model: nn.Module, tmp_path: Path) -> None:
    described = manifest(slimfast.prune_channels(model, slimfast.plan(model, X, macs=0.4)))
    prune_checkpoint(index, described, tmp_path / "thin")
    with (
        shard_folder.alone(tmp_path / "thin"),
        pytest.raises(SlimfastError, match="thin: another run writes to it"),
    ):
        prune_checkpoint(index, described, tmp_path / "thin")
