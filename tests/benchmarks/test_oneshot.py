"""The one-shot benchmark: every allocation within its budget, the controls what they say, runs resumed."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.accuracy.data.cifar10_data import Images
from benchmarks.accuracy.networks.resnet_cifar import ResNet
from benchmarks.accuracy.networks.vgg_cifar import VGG
from benchmarks.accuracy.studies import allocations, contenders, oneshot, oneshot_tables, other_spectra, peer
from benchmarks.accuracy.studies.allocations import ALLOCATIONS, CONTROLS
from benchmarks.accuracy.studies.study import Study
from benchmarks.accuracy.studies.trainings import training_folder
from slimfast.errors import SlimfastError
from slimfast.plans.costs import count_module
from slimfast.pruning.prune import prune_channels
from slimfast.spectra import Spectrum


def network() -> ResNet:
    torch.manual_seed(0)
    model = ResNet(blocks=1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.2, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.of(network(), torch.zeros(1, 3, 32, 32), [torch.randn(4, 3, 32, 32)], 4)


@pytest.mark.parametrize("name", [*ALLOCATIONS, *CONTROLS])
def test_every_allocation_meets_the_budget(study: Study, name: str) -> None:
    plan = {**ALLOCATIONS, **CONTROLS}[name](study, 0.5)
    share = plan.cost_after.macs / plan.cost_before.macs
    assert 0.4 < share <= 0.5
    assert all(1 <= group.width <= group.n for group in plan.groups)


def test_group_magnitude_removes_the_smallest_first(study: Study) -> None:
    model = network()
    with torch.no_grad():
        block = model.get_submodule("layer3.0")
        block.conv1.weight[7], block.bn1.weight[7], block.bn1.bias[7] = 0.0, 0.0, 0.0
        block.conv2.weight[:, 7] = 0.0
    changed = dataclasses.replace(study, model=model)
    plan = allocations.group_magnitude(changed, 0.999)
    cut = {g.name: set(range(g.n)) - set(g.keep or ()) for g in plan.groups if g.width < g.n}
    assert cut == {"layer3.0.conv1": {7}}


def test_whole_residual_streams_stay_whole(study: Study) -> None:
    for allocate in (allocations.marginal_gain_inside, allocations.uniform_inside):
        groups = allocate(study, 0.5).groups
        assert {g.kind for g in groups if g.width < g.n} == {"channel"}
        assert any(g.kind == "residual" for g in groups)


def test_random_widths_differ_by_seed(study: Study) -> None:
    one, two = (allocations.random(study, 0.5, seed=seed).widths() for seed in (0, 1))
    assert one != two
    assert one == allocations.random(study, 0.5, seed=0).widths()


def test_the_noise_null_has_the_layers_shape_and_variance(study: Study) -> None:
    for old in study.spectra.values():
        null = other_spectra.noise_like(old, seed=0)
        assert (null.n, null.d) == (old.n, old.d)
        assert null.trace == pytest.approx(old.trace)
        assert float(null.eigenvalues.sum()) == pytest.approx(old.trace)


def test_what_is_above_the_noise() -> None:
    flat = Spectrum("a", 4, 9, np.array([9.0, 1.0, 1.0, 1.0]), 12.0, 0.0, "float64")
    rest = other_spectra.above_noise(flat, seed=0)
    noise = other_spectra.noise_like(flat, seed=0).eigenvalues
    expected = np.maximum(flat.eigenvalues - noise * min(1.0, 1.0 / noise[2]), 0.0)
    assert rest.eigenvalues == pytest.approx(np.sort(expected)[::-1])
    assert rest.eigenvalues[0] / rest.trace > flat.eigenvalues[0] / flat.trace


def test_filters_are_folded_by_the_norm_that_follows() -> None:
    model = network()
    folded = other_spectra.folded_weights(model)
    norm = model.get_submodule("layer1.0.bn2")
    expected = model.get_submodule("layer1.0.conv2").weight * (
        norm.weight / (norm.running_var + norm.eps).sqrt()
    ).view(-1, 1, 1, 1)
    assert torch.allclose(folded["layer1.0.conv2.weight"], expected)
    assert torch.equal(folded["linear.weight"], model.linear.weight)


def test_filters_of_a_plain_network_are_folded_too() -> None:
    torch.manual_seed(0)
    plain = VGG(((4, 4), (4,), (4,), (4,), (4,))).eval()
    norm = plain.get_submodule("features.4")
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    folded = other_spectra.folded_weights(plain)
    expected = plain.get_submodule("features.3").weight * (
        norm.weight / (norm.running_var + norm.eps).sqrt()
    ).view(-1, 1, 1, 1)
    assert torch.allclose(folded["features.3.weight"], expected)


def test_a_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Images(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8))
    monkeypatch.setattr(oneshot, "load_split", lambda split, folder: images)
    monkeypatch.setattr(oneshot, "load_network", lambda name, data: network())
    rows = [("uniform", "l1", None), ("marginal gain, activations", "activations", "activations")]
    monkeypatch.setattr(oneshot, "wanted", lambda full: iter(rows[:1]))
    path = tmp_path / "r.json"
    oneshot.main(network="resnet8", macs=[0.5], calibration=8, output=path, full=False, telling=False)
    monkeypatch.setattr(oneshot, "wanted", lambda full: iter(rows))
    measured: list[Any] = []
    real = oneshot.measure
    monkeypatch.setattr(oneshot, "measure", lambda *a: measured.append(a[2]) or real(*a))
    oneshot.main(network="resnet8", macs=[0.5], calibration=8, output=path, full=False, telling=False)
    assert measured == ["marginal gain, activations"]
    result = json.loads(path.read_text())
    assert [row["control"] for row in result["rows"]] == [True, False]
    assert all(row["macs"] <= 0.5 * result["dense"]["macs"] for row in result["rows"])
    with pytest.raises(SlimfastError, match="has results of other settings"):
        oneshot.main(network="resnet8", macs=[0.5], calibration=4, output=path, full=False, telling=False)
    lines = oneshot_tables.table(result).splitlines()
    assert lines[0] == "| MACs | widths | units | repair | test accuracy | parameters | MACs reached |"
    assert sum("uniform (control) | l1 | none" in line for line in lines) == 1


def test_the_short_form_has_every_allocation_with_and_without_repair() -> None:
    rows = list(oneshot.wanted(full=False))
    assert {name for name, _, repair in rows if repair is None} == {*ALLOCATIONS, *CONTROLS}
    assert {name for name, _, repair in rows if repair == "activations"} == {*ALLOCATIONS, *CONTROLS}
    assert len(set(rows)) == len(rows)
    assert set(rows) < set(oneshot.wanted(full=True))


def test_the_telling_rows_are_the_controls_repaired_and_some_of_all() -> None:
    assert len(set(oneshot.TELLING)) == len(oneshot.TELLING)
    assert {name for name, _, repair in oneshot.TELLING if repair == "activations"} > set(CONTROLS)
    assert set(oneshot.TELLING) < set(oneshot.wanted(full=True))


def test_every_contender_of_the_recovery_starts_at_the_same_cost(study: Study) -> None:
    macs = {
        name: count_module(contenders.thin_network(c, study, 0.4, 0), torch.zeros(1, 3, 32, 32)).macs
        for name, c in (contenders.TELLING | contenders.OTHERS | contenders.STARTS).items()
    }
    whole = count_module(study.model, torch.zeros(1, 3, 32, 32)).macs
    assert all(0.3 * whole < found <= 0.4 * whole for found in macs.values())
    assert macs["uniform, from scratch"] == macs["uniform, L1"]


def test_a_training_goes_on_only_from_the_network_it_began_with(study: Study, tmp_path: Path) -> None:
    name, contender = "uniform, L1", contenders.TELLING["uniform, L1"]
    network = contenders.thin_network(contender, study, 0.5, 0)
    folder = training_folder(tmp_path, name, 0, network)
    assert folder.parent == tmp_path
    assert folder.name.startswith("uniform-L1-0-")
    assert folder == training_folder(tmp_path, name, 0, contenders.thin_network(contender, study, 0.5, 0))
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1.0
    assert folder != training_folder(tmp_path, name, 0, network)


def test_from_scratch_nothing_of_the_weights_is_left(study: Study) -> None:
    contender = contenders.OTHERS["uniform, from scratch"]
    cut = contenders.thin_network(contenders.TELLING["uniform, L1"], study, 0.5, 0)
    fresh = contenders.thin_network(contender, study, 0.5, 0)
    again = contenders.thin_network(contender, study, 0.5, 0)
    for (name, a), b, c in zip(cut.named_parameters(), fresh.parameters(), again.parameters(), strict=True):
        assert a.shape == b.shape
        assert not torch.equal(a, b) or "bias" in name
        assert torch.equal(b, c)


def test_the_units_that_torch_pruning_kept_are_told_from_its_network(study: Study) -> None:
    pytest.importorskip("torch_pruning")
    theirs = contenders.thin_network(contenders.TELLING["torch-pruning"], study, 0.4, 0)
    plan = allocations.torch_pruning(study, 0.4)
    assert any(group.width < group.n for group in plan.groups)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = prune_channels(study.model, plan, verify=False)
    torch.testing.assert_close(ours(images), theirs(images))
    assert allocations.torch_pruning_widths(study, 0.4).groups[0].keep is None


def test_units_that_no_vector_tells_apart_are_refused(study: Study) -> None:
    pytest.importorskip("torch_pruning")
    model = copy.deepcopy(study.model)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.reset_parameters()
    thin = peer.torch_pruned(model, torch.zeros(1, 3, 32, 32), 0.4)
    with pytest.raises(SlimfastError, match="expected each unit left to be one of the wide network's"):
        peer.kept_units(study.graph, model, thin)


def test_units_by_magnitude_are_those_of_the_largest_norm_over_all_slices(study: Study) -> None:
    plan = allocations.by_magnitude(allocations.marginal_gain)(study, 0.4)
    assert [g.width for g in plan.groups] == [g.width for g in allocations.marginal_gain(study, 0.4).groups]
    inside = next(g for g in plan.groups if g.name.startswith("layer1.0.conv1"))
    tensors = dict(study.model.named_parameters())
    total = sum(
        tensors[name].detach().double().movedim(dim, 0).flatten(1).square().sum(1)
        for name, dim in (("layer1.0.conv1.weight", 0), ("layer1.0.conv2.weight", 1))
    )
    total += tensors["layer1.0.bn1.weight"].detach() ** 2 + tensors["layer1.0.bn1.bias"].detach() ** 2
    assert inside.keep == tuple(sorted(total.topk(inside.width).indices.tolist()))
