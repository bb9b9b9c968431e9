"""Planned and pruned from shards to shards: as in memory, bit for bit, however often it is stopped."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.shard_cases import X, assert_same, write_shards
from torch import nn
from torch.nn.utils import parametrizations, prune

import slimfast
from slimfast.checkpoints.shard_plans import plan_checkpoint
from slimfast.checkpoints.shards import prune_checkpoint
from slimfast.checkpoints.thin_shards import load_checkpoint
from slimfast.errors import SlimfastError
from slimfast.pruning.manifests import manifest


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


def test_error_curves_decide_the_widths_as_in_memory(index: Path, model: nn.Module, empty: nn.Module) -> None:
    graph = slimfast.trace_channels(model, X)
    calibration = slimfast.calibrate(model, graph, [torch.randn(8, *X.shape[1:])])
    curves = slimfast.error_curves(model, graph, calibration)
    found = plan_checkpoint(index, empty, X, macs=0.7, curves=curves)
    assert found.to_json() == slimfast.plan(model, X, macs=0.7, calibration=calibration).to_json()


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


@pytest.mark.parametrize("select", ["l1", "lookahead", "pivoted_cholesky"])
def test_units_are_measured_by_what_layers_compute_with_as_in_memory(tmp_path: Path, select: str) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Conv2d(12, 4, 1)).eval()
        parametrizations.spectral_norm(model[0])
        prune.random_unstructured(model[2], "weight", 0.5)
        return model

    model = made()
    with torch.no_grad():
        model[3].weight[::2] = 0
    plan = slimfast.plan(model, X, params=0.4)
    index = write_shards(tmp_path, model.state_dict())
    prune_checkpoint(index, plan, tmp_path / "thin", model=made().to("meta"), select=select)
    expected = slimfast.prune_channels(model, plan, select=select)
    assert_same(load_checkpoint(tmp_path / "thin", made()), expected)


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
