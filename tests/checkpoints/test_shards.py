"""Planned and pruned from shards to shards: as in memory, bit for bit, however often it is stopped."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.paths import ROOT
from support.pruning_cases import ConvNet
from torch import Tensor, nn

import slimfast
from slimfast.checkpoints import shards
from slimfast.checkpoints.shards import INDEX, load_checkpoint, plan_checkpoint, prune_checkpoint
from slimfast.errors import SlimfastError
from slimfast.pruning.manifests import manifest
from slimfast.storage.safetensors_writer import write_tensors
from slimfast.storage.weights import open_weights

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def write_shards(folder: Path, tensors: dict[str, Tensor], count: int = 3) -> Path:
    names = list(tensors)
    files = {name: f"part{i * count // len(names)}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n].contiguous() for n in names if files[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    return index


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = ConvNet()
    model.norm.running_mean.uniform_()
    return model.eval()


@pytest.fixture
def index(tmp_path: Path, model: nn.Module) -> Path:
    (tmp_path / "wide").mkdir()
    return write_shards(tmp_path / "wide", model.state_dict())


@pytest.fixture
def empty() -> nn.Module:
    with torch.device("meta"):
        return ConvNet().eval()


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    a, b = found.state_dict(), expected.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    "wish", [{"macs": 0.5}, {"params": 0.6, "multiple_of": 2}, {"explained_variance": 0.8}]
)
def test_the_plan_is_that_of_the_model_in_memory(
    index: Path, model: nn.Module, empty: nn.Module, tmp_path: Path, wish: dict[str, float]
) -> None:
    expected = slimfast.plan(model, X, **wish)
    for resume in (None, tmp_path / "side", tmp_path / "side"):
        found = plan_checkpoint(index, empty, X, resume=resume, **wish)
        assert found.to_json() == expected.to_json()


def test_the_keywords_are_those_of_what_it_calls() -> None:
    own = inspect.signature(plan_checkpoint).parameters
    for verb in (slimfast.plan_widths, slimfast.measure_spectra):
        others = {n: p for n, p in inspect.signature(verb).parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert {n: str(own[n]) for n in others if n != "taus"} == {
            n: str(p) for n, p in others.items() if n != "taus"
        }
    assert all(p.kind is not p.VAR_KEYWORD for p in own.values())


@pytest.mark.parametrize(
    "wish",
    [
        {"params": 0.6, "overrides": {"branch": 3}, "min_width": 2},
        {"macs": 0.7, "exclude": ["branch"]},
        {"macs": 0.8, "include": ["expand", "branch"]},
    ],
)
def test_every_wish_reaches_the_widths(
    index: Path, model: nn.Module, empty: nn.Module, wish: dict[str, Any]
) -> None:
    assert plan_checkpoint(index, empty, X, **wish).to_json() == slimfast.plan(model, X, **wish).to_json()


@pytest.mark.parametrize("select", ["l1", "l2", "lookahead", "geometric_median", "pivoted_cholesky"])
def test_thin_shards_are_the_thin_model(
    index: Path, model: nn.Module, empty: nn.Module, tmp_path: Path, select: str
) -> None:
    plan = slimfast.plan(model, X, macs=0.4)
    expected = slimfast.prune_channels(model, plan, select=select)
    seen: list[tuple[int, int]] = []
    described = prune_checkpoint(
        index,
        slimfast.Plan.from_json(plan.to_json()),
        tmp_path / "thin",
        model=empty,
        select=select,
        progress=lambda *at: seen.append(at),
    )
    assert json.loads(described.to_json()) == json.loads(manifest(expected).to_json())
    found = load_checkpoint(tmp_path / "thin", empty)
    assert_same(found, expected)
    assert torch.equal(found(X), expected(X))
    assert manifest(found).to_json() == described.to_json()
    assert [total for _, total in seen] == [len(model.state_dict())] * 3
    assert seen[-1][0] == seen[-1][1]


def test_a_manifest_needs_no_model(index: Path, model: nn.Module, empty: nn.Module, tmp_path: Path) -> None:
    expected = slimfast.prune_channels(model, slimfast.plan(model, X, macs=0.4))
    prune_checkpoint(index, manifest(expected), tmp_path / "thin")
    assert_same(load_checkpoint(tmp_path / "thin", empty), expected)
    with pytest.raises(ValueError, match="expected the model of the plan"):
        prune_checkpoint(index, slimfast.plan(model, X, macs=0.4), tmp_path / "thin")


def test_tied_weights_and_buffers_that_are_not_stored(tmp_path: Path) -> None:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        pytest.skip("transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    tensors = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    index = write_shards(tmp_path, tensors)
    example = {"input_ids": torch.arange(8).reshape(1, 8)}
    plan = plan_checkpoint(index, empty, example, params=0.6)
    assert plan.to_json() == slimfast.plan(model, example, params=0.6).to_json()
    expected = slimfast.prune_channels(model, plan)
    prune_checkpoint(index, plan, tmp_path / "thin", model=empty)
    # Rotary frequencies are in no checkpoint: they come from the model.
    fresh = transformers.LlamaForCausalLM(config)
    found = load_checkpoint(tmp_path / "thin", fresh)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert_same(found, expected)
    with pytest.raises(SlimfastError, match=r"inv_freq is not stored and has no values in the model"):
        load_checkpoint(tmp_path / "thin", empty)


def test_a_single_file_and_a_wrapper_s_prefix(model: nn.Module, empty: nn.Module, tmp_path: Path) -> None:
    plan = slimfast.plan(model, X, macs=0.4)
    save_file({f"module.{name}": t for name, t in model.state_dict().items()}, tmp_path / "wide.safetensors")
    torch.save(model.state_dict(), tmp_path / "wide.pth")
    for file in ("wide.safetensors", "wide.pth"):
        prune_checkpoint(tmp_path / file, plan, tmp_path / "thin", model=empty)
        assert_same(load_checkpoint(tmp_path / "thin", empty), slimfast.prune_channels(model, plan))


# What stops a run


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
        shards._alone(tmp_path / "thin"),
        pytest.raises(SlimfastError, match="thin: another run writes to it"),
    ):
        prune_checkpoint(index, described, tmp_path / "thin")


def test_checkpoints_and_models_of_something_else(
    index: Path, model: nn.Module, empty: nn.Module, tmp_path: Path
) -> None:
    plan = slimfast.plan(model, X, macs=0.4)
    described = prune_checkpoint(index, plan, tmp_path / "thin", model=empty)
    state = model.state_dict()
    save_file({**state, "stem.weight": torch.zeros(9, 3, 3, 3)}, tmp_path / "shape.safetensors")
    save_file({**state, "other": torch.zeros(2)}, tmp_path / "more.safetensors")
    save_file({n: t for n, t in state.items() if n != "stem.weight"}, tmp_path / "less.safetensors")
    for file, reason in (
        ("shape", r"stem\.weight: expected shape \(8, 3, 3, 3\), got shape \(9, 3, 3, 3\)"),
        ("more", r"other: expected no such tensor, got shape \(2,\)"),
        ("less", r"stem\.weight: expected a tensor to cut, got none"),
    ):
        with pytest.raises(SlimfastError, match=reason):
            prune_checkpoint(tmp_path / f"{file}.safetensors", described, tmp_path / "out")
    with pytest.raises(SlimfastError, match="expected the wide model it was cut from"):
        load_checkpoint(tmp_path / "thin", nn.Linear(2, 2))
    with pytest.raises(SlimfastError, match="expected a wide model, got one that is already thin"):
        prune_checkpoint(index, plan, tmp_path / "out", model=slimfast.prune_channels(model, plan))


# The writer


def test_files_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = {
        f"{dtype}": torch.randn(3, 4).mul(50).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.int64, torch.bfloat16, torch.float16, torch.int8)
    } | {
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3, dtype=torch.int32),
        "empty": torch.zeros(0, 4),
        "fp8": torch.randn(5).to(torch.float8_e4m3fn),
        "strided": torch.randn(6, 4).T,
    }
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_tensors(tmp_path / "a.safetensors", shapes, tensors.items(), metadata={"b": "ü"})
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].double(), tensor.double())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"b": "ü"}
    assert open_weights(tmp_path / "a.safetensors").infos["torch.bfloat16"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([("a", torch.zeros(2))], "expected .*'b'.*, got no more tensors"),
        ([("a", torch.zeros(3))], r"expected .*\(2,\).*, got .*\(3,\)"),
        ([("b", torch.zeros(2)), ("a", torch.zeros(2))], "expected .*'a'.*, got .*'b'"),
        ([("a", torch.zeros(2).double())], "float32.*, got .*float64"),
    ],
)
def test_tensors_that_were_not_announced(
    tmp_path: Path, given: list[tuple[str, Tensor]], reason: str
) -> None:
    shapes = {"a": ((2,), torch.float32), "b": ((2,), torch.float32)}
    with pytest.raises(SlimfastError, match=reason):
        write_tensors(tmp_path / "a.safetensors", shapes, given)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SlimfastError, match=r"a is of torch\.complex64"):
        write_tensors(tmp_path / "a.safetensors", {"a": ((1,), torch.complex64)}, [])


def test_the_code_of_the_page_runs(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "large-models.md"
    code = page.read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"Net": lambda: ConvNet().eval(), "example": X}
    exec(code, scope)
    thin = scope["thin"]
    assert isinstance(thin, nn.Module)
    assert thin(X).shape == (2, 5)
    assert (tmp_path / "spectra.sidecar").exists()
