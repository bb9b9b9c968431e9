"""Thin networks: what is kept, what is preserved, what is refused; over many structures and real weights."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pruning_cases import CASES, ConvNet, build, plan_of, random_keeps, random_plan
from torch import nn

from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import Cut, select_indices
from slimfast.graph.recording.forward import dataless_copy
from slimfast.graph.recording.module_copies import copy_with, named_tensors
from slimfast.graph.recording.network import Network
from slimfast.plans import Plan
from slimfast.plans import plan as make_plan
from slimfast.plans.costs import count_module
from slimfast.pruning.one_call import slim
from slimfast.pruning.prune import manifest, prune_channels
from slimfast.pruning.verification import verify


@functools.cache
def traced(name: str):
    model, x = build(name)
    return model, x, trace_channels(model, x)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_choice_of_units_gives_the_masked_original(name, data):
    """Every group keeps some of its units, drawn freely: down to one, up to all."""
    model, x, graph = traced(name)
    keeps = {}
    for group in graph:
        units = data.draw(st.sets(st.integers(0, group.n - 1), min_size=1), label=group.name)
        keeps[group.name] = np.array(sorted(units))
    thin = prune_channels(model, plan_of(graph, keeps), verify=False)
    found = verify(model, thin, graph, keeps, x)
    assert found.dtype == "float64"
    for tensor_name, tensor in named_tensors(thin).items():
        expected = named_tensors(model)[tensor_name]
        for dim, index in Cut(graph, keeps).tensor_cuts.get(tensor_name, {}).items():
            expected = expected[(slice(None),) * dim + (torch.tensor(index),)]
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("name", CASES)
def test_the_same_plan_gives_the_same_network_and_leaves_the_original(name):
    model, x = build(name)
    model.train()
    before = copy.deepcopy(model.state_dict())
    plan, state = random_plan(model, x), torch.random.get_rng_state()
    one, two = prune_channels(model, plan), prune_channels(model, plan, backend="reference")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.training
    assert model.training
    assert [n for n, _ in one.named_parameters()] == [n for n, _ in model.named_parameters()]
    for (key, a), (other, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(a, b)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [n.numel() for n in one.parameters()] != [n.numel() for n in model.parameters()]


def test_the_thin_network_shares_no_memory_with_the_original():
    model, x = build("transformer")
    thin = prune_channels(model, random_plan(model, x))
    own = {tensor.untyped_storage().data_ptr() for tensor in named_tensors(model).values()}
    assert not own & {tensor.untyped_storage().data_ptr() for tensor in named_tensors(thin).values()}


def test_dtypes_gradients_modes_tied_weights_and_buffers_are_preserved():
    model, x = build("transformer")
    model.half()
    model.norm1.float()
    model.down.weight.requires_grad_(False)
    model.attention.register_buffer("scratch", torch.arange(16.0), persistent=False)
    model.attention.train()
    plan = random_plan(model.float().eval(), x)
    model.half()
    model.norm1.float()
    model.attention.train()
    thin = prune_channels(model, plan, verify=False)
    assert thin.logits.weight is thin.embed.weight
    for (name, a), (_, b) in zip(thin.named_parameters(), model.named_parameters(), strict=True):
        assert (a.dtype, a.requires_grad, type(a)) == (b.dtype, b.requires_grad, type(b)), name
    assert {n: m.training for n, m in thin.named_modules()} == {
        n: m.training for n, m in model.named_modules()
    }
    assert torch.equal(thin.attention.scratch, model.attention.scratch)
    assert "attention.scratch" not in thin.state_dict()
    assert thin.down.weight.grad is None


def test_memory_format_and_hooks_come_along():
    model, x = build("conv")
    model.to(memory_format=torch.channels_last)
    seen = []
    model.norm.register_forward_hook(lambda *_: seen.append("hook"))
    thin = prune_channels(model, random_plan(model, x), verify=False)
    assert thin.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert not thin.grouped.weight.is_contiguous() or thin.grouped.weight.shape[1] == 1
    seen.clear()
    thin(x)
    assert seen == ["hook"]


def test_a_training_step_changes_the_thin_network_only():
    model, x = build("conv")
    thin = prune_channels(model, random_plan(model, x)).train()
    before = copy.deepcopy(model.state_dict())
    thin(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() >= 0) for p in thin.parameters())
    torch.optim.SGD(thin.parameters(), lr=0.1).step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_model_on_the_meta_device_is_cut_without_memory():
    model, x = build("transformer")
    plan = random_plan(model, x)
    thin = prune_channels(dataless_copy(Network.of(model)), plan, verify=False)
    real = prune_channels(model, plan, verify=False)
    assert all(tensor.is_meta for tensor in named_tensors(thin).values())
    assert {n: t.shape for n, t in named_tensors(thin).items()} == {
        n: t.shape for n, t in named_tensors(real).items()
    }


def test_keep_is_filled_in_where_the_plan_has_none():
    model, x = build("conv")
    graph = trace_channels(model, x)
    plan = plan_of(graph, {"branch": [1, 4]}, widths={"expand": 5})
    thin = prune_channels(model, plan, select="l2")
    kept = manifest(thin).keeps
    assert kept["branch.weight"][0].tolist() == [1, 4]
    produced = [named_tensors(model)[member.tensor].flatten(1) for member in graph["expand"].producers()]
    assert len(produced) > 1
    norms = torch.cat(produced, 1).norm(dim=1)
    assert kept["expand.weight"][0].tolist() == sorted(norms.argsort(descending=True)[:5].tolist())


def test_the_manifest_tells_what_was_kept_and_travels_with_the_module():
    model, x = build("conv")
    graph = trace_channels(model, x)
    keeps = random_keeps(graph, 1)
    thin = prune_channels(model, plan_of(graph, keeps))
    told = manifest(thin)
    assert manifest(model).keeps == {}
    assert told.widths == {group.name: (group.n, len(keeps[group.name])) for group in graph}
    assert told.shapes_before == {n: tuple(t.shape) for n, t in named_tensors(model).items()}
    assert told.shapes() == {n: tuple(t.shape) for n, t in named_tensors(thin).items()}
    for carried in (copy.deepcopy(thin), pickle.loads(pickle.dumps(thin))):
        assert manifest(carried).to_json() == told.to_json()
    assert "_slimfast_manifest" not in thin.state_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        told.schema = 2
    with pytest.raises(ValueError, match="read-only"):
        told.keeps["stem.weight"][0][0] = 5


@pytest.mark.parametrize("name", CASES)
def test_pruning_a_thin_network_again_composes_what_was_kept(name):
    model, x = build(name)
    once = prune_channels(model, random_plan(model, x, seed=1, share=0.8))
    twice = prune_channels(once, random_plan(once, x, seed=2, share=0.7))
    told = manifest(twice)
    assert told.shapes_before == {n: tuple(t.shape) for n, t in named_tensors(model).items()}
    wide = named_tensors(model)
    for tensor_name, tensor in named_tensors(twice).items():
        assert torch.equal(tensor, select_indices(wide[tensor_name], told.keeps.get(tensor_name, {})))
    for patch in told.patches:
        assert patch.before != patch.after
        holder = model.get_submodule(patch.module)
        value = getattr(holder, patch.attribute)
        assert (tuple(value) if isinstance(value, (list, tuple)) else value) == patch.before
    assert all(thin <= wide_units for wide_units, thin in told.widths.values())


def test_a_plan_from_json_is_traced_again():
    model, x = build("conv")
    plan = random_plan(model, x)
    again = Plan.from_json(plan.to_json())
    assert again.graph is None
    one, two = prune_channels(model, plan), prune_channels(model, again)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_plans_of_other_models_are_refused_by_name():
    model, x = build("conv")
    plan = random_plan(model, x)
    other = ConvNet()
    other.classifier = nn.Linear(72, 4)
    with pytest.raises(SlimfastError, match=r"classifier\.weight of shape \(5, 72\), got shape \(4, 72\)"):
        prune_channels(other, plan)
    other.classifier = nn.Linear(72, 5, bias=False)
    with pytest.raises(SlimfastError, match=r"classifier\.bias"):
        prune_channels(other, plan)
    groups = tuple(dataclasses.replace(g, name="other") if g.name == "branch" else g for g in plan.groups)
    with pytest.raises(SlimfastError, match=r"a group other of 6 units, got no such group"):
        prune_channels(model, dataclasses.replace(plan, groups=groups))
    groups = tuple(dataclasses.replace(g, n=7) if g.name == "branch" else g for g in plan.groups)
    with pytest.raises(SlimfastError, match=r"a group branch of 7 units, got one of 6 units"):
        prune_channels(model, dataclasses.replace(plan, groups=groups))


class Moody(nn.Module):
    """Two layers, and something between them at one width alone, which no trial of other widths shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(x.flip(1) if x.shape[1] == 5 else x)


def test_a_network_whose_operations_are_not_as_predicted_is_refused():
    model, x = Moody(), torch.randn(3, 4)
    graph = trace_channels(model, x)
    assert prune_channels(model, plan_of(graph, {"first": range(6)})).first.out_features == 6
    with pytest.raises(SlimfastError, match=r"expected aten\.linear, got aten\.flip"):
        prune_channels(model, plan_of(graph, {"first": range(5)}))


def test_a_module_that_cannot_be_copied_is_told():
    model = nn.Linear(2, 2)
    model.handle = (i for i in range(3))
    with pytest.raises(SlimfastError, match="Linear cannot be copied: cannot pickle 'generator' object"):
        copy_with(model, {})


def test_slim_reaches_the_budget_counted_on_the_thin_network():
    model, x = build("conv")
    thin = slim(model, x, params=0.5)
    plan = make_plan(model, x, params=0.5)
    assert count_module(thin, x).params == plan.cost_after.params
    assert plan.cost_after.params <= plan.cost_before.params / 2


def test_a_plan_whose_costs_are_not_its_networks_is_refused():
    model, x = build("conv")
    made = random_plan(model, x)
    wrong = replace(made, cost_after=replace(made.cost_after, params=made.cost_after.params - 1))
    with pytest.raises(SlimfastError, match=r"^prune: expected the .* parameters and .* MACs that the plan"):
        prune_channels(model, wrong)
