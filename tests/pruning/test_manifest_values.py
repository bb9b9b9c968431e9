"""A manifest knows which tensors are more than slices, and does not cut other weights without a word."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import slimfast
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.pruning.manifests import Manifest, manifest

X = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0, a: int = 9, b: int = 8, norm: bool = True) -> nn.Sequential:
    """A network whose units emit something behind their biases."""
    torch.manual_seed(seed)
    layers = [nn.Linear(5, a), nn.ReLU(), nn.Linear(a, b, bias=not norm)]
    layers += [nn.BatchNorm1d(b)] if norm else []
    return nn.Sequential(*layers, nn.Sigmoid(), nn.Linear(b, 3)).double().eval()


def masked(model: nn.Sequential, share: float = 0.4) -> nn.Sequential:
    """Masks of whole units of its hidden layers, which live on in their biases."""
    for layer in (model[0], model[2]):
        prune.ln_structured(layer, "weight", share, n=2, dim=0)
    with torch.no_grad():
        model[0].bias.abs_()
    return model


def cut_to_masks(model: nn.Module) -> nn.Module:
    plan = slimfast.plan_from_masks(model, X)
    return slimfast.prune_channels(model, plan, example=X)


def differing(model: nn.Module, thin: nn.Module) -> set[str]:
    """The tensors of the thin network that are not the slices of the wide one's."""
    told, wide = manifest(thin), named_tensors(model)
    return {
        name for name, tensor in named_tensors(thin).items()
        if not torch.equal(tensor, told.slice_of(name, wide[name]))
    }  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(4, 10), st.integers(4, 10), st.booleans())
def test_what_is_moved_is_what_differs_from_the_slices(seed, a, b, norm):
    model = masked(network(seed, a, b, norm))
    thin = cut_to_masks(model)
    told = manifest(thin)
    assert set(told.moved) == differing(model, thin)
    assert set(told.moved.values()) <= {("masks",)}
    assert Manifest.from_json(told.to_json()).moved == told.moved


@pytest.mark.parametrize("repair", ["weights", "activations"])
def test_what_a_repair_changes_is_told(repair):
    model = network()
    graph = slimfast.trace_channels(model, X)
    calibration = slimfast.calibrate(model, graph, [X])
    plan = slimfast.plan_widths(graph, {}, overrides={group.name: 5 for group in graph})
    thin = slimfast.prune_channels(model, plan, repair=repair, calibration=calibration)
    found = differing(model, thin)
    assert found
    assert found <= set(manifest(thin).moved)
    assert set(manifest(thin).moved.values()) == {("repair",)}
    assert not manifest(slimfast.prune_channels(model, plan)).moved


def test_a_cut_to_masks_is_not_made_of_other_weights(tmp_path):
    model = masked(network())
    thin = cut_to_masks(model)
    assert manifest(thin).moved
    save_file({n: t.detach().clone() for n, t in named_tensors(model).items()}, tmp_path / "a.safetensors")
    message = r"expected a cut of weights alone, got one of masks.*\(2\.bias\)|\(3\.running_mean\)"
    with pytest.raises(slimfast.SlimfastError, match=message) as raised:
        slimfast.prune_checkpoint(tmp_path / "a.safetensors", manifest(thin), tmp_path / "thin")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "thin").exists()
    with pytest.raises(slimfast.SlimfastError, match=message):
        slimfast.prune_state(model.state_dict(), model, thin)


def test_rounds_after_a_cut_to_masks_go_on_with_its_values():
    """The state of the network that was cut to masks is cut again; that of the wide one never is."""
    model = masked(network())
    first = cut_to_masks(model)
    graph = slimfast.trace_channels(first, X)
    plan = slimfast.plan_widths(graph, {}, overrides={group.name: group.n - 2 for group in graph})
    second = slimfast.prune_channels(first, plan)
    assert manifest(second).moved == manifest(first).moved
    state = slimfast.prune_state(first.state_dict(), first, second)
    assert all(torch.equal(state[name], tensor) for name, tensor in second.state_dict().items())
    with pytest.raises(slimfast.SlimfastError, match="got one of masks"):
        slimfast.prune_state(model.state_dict(), model, second)


def test_a_second_cut_to_masks_moves_the_same_tensor_again():
    model = masked(network())
    first = cut_to_masks(model)
    for layer in (first[0], first[2]):
        with torch.no_grad():
            layer.weight_orig[0] = 0
    second = cut_to_masks(first)
    with torch.no_grad():
        assert torch.allclose(second(X), first(X))
    again = {name for name, changes in manifest(second).moved.items() if changes == ("masks", "masks")}
    assert again == differing_between(first, second)
    assert again
    with pytest.raises(slimfast.SlimfastError, match="got one of masks"):
        slimfast.prune_state(first.state_dict(), first, second)


def differing_between(first: nn.Module, second: nn.Module) -> set[str]:
    """The tensors that are not slices, between two networks of which the first is thin as well."""
    wide, now, before, after = named_tensors(first), named_tensors(second), manifest(first), manifest(second)
    found = set()
    for name, tensor in wide.items():
        cut: Tensor = tensor.detach()
        for dim, length in enumerate(before.shapes_before[name]):
            held = before.keeps.get(name, {}).get(dim, np.arange(length))
            left = after.keeps.get(name, {}).get(dim, np.arange(length))
            cut = cut.index_select(dim, torch.from_numpy(np.searchsorted(held, left)))
        if not torch.equal(cut, now[name]):
            found.add(name)
    return found


def test_a_repair_is_missing_with_a_warning_where_others_are_cut(tmp_path):
    model = network()
    plan = slimfast.plan(model, X, params=0.6)
    thin = slimfast.prune_channels(model, plan, repair="weights")
    save_file({n: t.detach().clone() for n, t in named_tensors(model).items()}, tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match="solved for by a repair of other weights"):
        told = slimfast.prune_checkpoint(tmp_path / "a.safetensors", manifest(thin), tmp_path / "thin")
    assert not told.moved
    loaded = slimfast.load_checkpoint(tmp_path / "thin", model)
    assert not manifest(loaded).moved
    assert not differing(model, loaded)
    with pytest.warns(UserWarning, match="solved for by a repair of other weights"):
        slimfast.prune_state(model.state_dict(), model, thin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slimfast.prune_state(model.state_dict(), model, slimfast.prune_channels(model, plan))


def test_files_keep_it_and_those_of_before_are_read(tmp_path):
    model = masked(network())
    thin = cut_to_masks(model)
    slimfast.save(thin, tmp_path / "thin.safetensors")
    loaded = slimfast.load(tmp_path / "thin.safetensors", masked(network(7)))
    assert manifest(loaded).moved == manifest(thin).moved
    with torch.no_grad():
        assert torch.equal(loaded(X), thin(X))
    document = json.loads(manifest(thin).to_json())
    with pytest.raises(slimfast.SlimfastError, match="dropped"):
        Manifest.from_json(json.dumps(document | {"schema": 2}))
    del document["dropped"]
    second = Manifest.from_json(json.dumps(document | {"schema": 2}))
    assert (second.moved, second.dropped) == (manifest(thin).moved, ())
    del document["moved"]
    old = Manifest.from_json(json.dumps(document | {"schema": 1}))
    assert (old.moved, old.dropped) == ({}, ())
    assert old.shapes() == manifest(thin).shapes()
    with pytest.raises(slimfast.SlimfastError, match="moved"):
        Manifest.from_json(json.dumps(document | {"schema": 2}))


@pytest.mark.parametrize("moved", [
    {"2.bias": "masks"}, {"2.bias": []}, {"2.bias": ["mask"]}, {"2.bias": [{}]}, {"other": ["masks"]}, [],
])  # fmt: skip
def test_what_is_no_such_list_is_refused(moved):
    document = json.loads(manifest(network(norm=False)).to_json())
    with pytest.raises(slimfast.SlimfastError, match="moved"):
        Manifest.from_json(json.dumps(document | {"moved": moved}))


def test_parts_and_wrappers_know_it():
    model = masked(network())
    thin = cut_to_masks(model)
    told = manifest(thin).moved
    around = nn.ModuleDict({"inner": thin})
    assert manifest(around).moved == {f"inner.{name}": changes for name, changes in told.items()}
    (name,) = (name for name in told if name.startswith(("2.", "3.")))
    path, _, rest = name.partition(".")
    assert manifest(thin[int(path)]).moved == {rest: told[name]}
