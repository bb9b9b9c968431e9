"""A plan knows the weights it was made from, and a network with others is not cut without a word."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import slimfast
from slimfast.plans.fingerprint import fingerprint

X = torch.zeros(1, 6)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def test_other_weights_are_a_warning_and_with_strict_an_error(tmp_path: Path) -> None:
    slimfast.plan(net(), X, params=0.6).save(tmp_path / "plan.json")
    plan = slimfast.Plan.load(tmp_path / "plan.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slimfast.prune_channels(net(), plan, strict=True)
    with pytest.warns(UserWarning, match="made from other weights of the same shapes") as caught:
        slimfast.prune_channels(net(1), plan)
    assert caught[0].filename == __file__, "it points to who has called"
    with pytest.raises(slimfast.SlimfastError, match="other weights"):
        slimfast.prune_channels(net(1), plan, strict=True)


def test_one_step_of_a_training_is_seen() -> None:
    model = net()
    plan = slimfast.plan(model, X, params=0.6)
    model(torch.ones(2, 6)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    with pytest.raises(slimfast.SlimfastError, match="other weights"):
        slimfast.prune_channels(model, plan, strict=True)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(7,), (3, 5), (4, 3, 3, 3), (2, 0), (1,), ()]), st.sampled_from(["float32", "float16"])
)
def test_it_goes_by_values_whatever_their_dtype_and_layout(shape: tuple[int, ...], dtype: str) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(shape).to(getattr(torch, dtype)))
    other = copy.deepcopy(module).double()
    if len(shape) == 4:
        other = other.to(memory_format=torch.channels_last)
    assert fingerprint(module) == fingerprint(other)


def test_what_has_no_values_has_no_fingerprint() -> None:
    assert fingerprint(net().to("meta")) is None
    assert fingerprint(nn.ReLU()) is None


def test_a_checkpoint_has_the_fingerprint_of_its_model(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    save_file(net(1).state_dict(), tmp_path / "other.safetensors")
    empty = net().to("meta")
    plan = slimfast.plan_checkpoint(tmp_path / "w.safetensors", empty, X, params=0.6)
    assert plan.weights == slimfast.plan(net(), X, params=0.6).weights is not None
    slimfast.prune_checkpoint(tmp_path / "w.safetensors", plan, tmp_path / "a", model=empty, strict=True)
    with pytest.raises(slimfast.SlimfastError, match="other weights"):
        slimfast.prune_checkpoint(
            tmp_path / "other.safetensors", plan, tmp_path / "b", model=empty, strict=True
        )
    assert not (tmp_path / "b").exists()


def test_plans_by_gain_have_one_too() -> None:
    model = net()
    data = slimfast.calibrate(model, slimfast.trace_channels(model, X), [torch.randn(16, 6)])
    assert slimfast.plan(model, X, params=0.6, calibration=data).weights == fingerprint(model)
