"""Shrinking to the existing masks: what can go goes, the rest stays with a reason, and nothing changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import slimfast
from slimfast.errors import SlimfastError

X = torch.randn(4, 3, 9, 9)


def shrunk(model: nn.Module, x: torch.Tensor, **options) -> tuple[nn.Module, slimfast.Plan]:
    """The thin network, which computes what the masked one does, on other inputs and at other sizes too."""
    plan = slimfast.plan_from_masks(model, x, **options)
    thin = slimfast.prune_channels(model, plan, example=x).eval()
    others = [x, torch.randn_like(x)] + ([torch.randn(2, *x.shape[1:-2], 12, 10)] if x.dim() == 4 else [])
    with torch.no_grad():
        for other in others:
            expected = model(other)
            assert torch.allclose(thin(other), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    return thin, plan


class Masked(nn.Module):
    """A parametrization that multiplies by a mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        return scale * self.mask


def mask_rows(layer: nn.Module, rows: list[int]) -> None:
    mask = torch.ones_like(layer.weight)
    mask[rows] = 0
    prune.custom_from_mask(layer, "weight", mask)


def test_masked_units_go_and_their_bias_is_taken_over():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.Sigmoid(), nn.Linear(8, 3)).eval()
    mask_rows(model[0], [0, 1, 5, 7])
    mask_rows(model[2], [3, 4])
    thin, plan = shrunk(model, torch.randn(5, 6))
    assert [g.keep for g in plan.groups] == [(2, 3, 4, 6, 8, 9, 10, 11), (0, 1, 2, 5, 6, 7)]
    assert [g.chosen for g in plan.groups] == ["mask", "mask"]
    # a sigmoid makes at least a constant of what is masked: without it the outputs would differ
    assert not torch.equal(thin[4].bias, model[4].bias)
    assert torch.equal(thin[4].weight, model[4].weight[:, [0, 1, 2, 5, 6, 7]])


def test_shifts_of_dead_scales_are_taken_over_by_the_norm_behind():
    torch.manual_seed(0)
    second = nn.Conv2d(10, 8, 1, bias=False)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), second, nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[1].weight[[1, 3]] = 0
        model[1].bias[:] = torch.randn(10)
        # the first is still there behind the ReLU, and the second is not
        model[1].bias[[1, 3]] = torch.tensor([0.5, -0.5])
        model[4].running_mean[:] = torch.randn(8)
    thin, plan = shrunk(model, X)
    assert plan.groups[0].keep == (0, 2, 4, 5, 6, 7, 8, 9)
    assert not torch.equal(thin[4].running_mean, model[4].running_mean)


@pytest.mark.parametrize("how", ["mask", "parametrization", "zeros"])
def test_a_scale_that_is_made_of_a_mask_kills_its_channels(how):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 4, 1), nn.BatchNorm2d(4)
    ).eval()
    mask = torch.ones(10)
    mask[[2, 6, 7]] = 0
    with torch.no_grad():
        model[1].bias[:] = torch.randn(10)
    if how == "mask":
        prune.custom_from_mask(model[1], "weight", mask)
    elif how == "parametrization":
        parametrize.register_parametrization(model[1], "weight", Masked(mask))
    else:
        with torch.no_grad():
            model[1].weight *= mask
    _, plan = shrunk(model, X)
    assert plan.groups[0].keep == (0, 1, 3, 4, 5, 8, 9)


def test_a_constant_that_a_padded_convolution_reads_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    mask_rows(model[0], [0, 1, 2])
    with torch.no_grad():
        model[0].bias[:3] = torch.tensor([0.5, -0.5, 0.0])
    _, plan = shrunk(model, X)
    # the ReLU makes 0 of the second, and the third is 0
    assert plan.groups[0].keep == (0, 3, 4, 5, 6, 7)
    assert "1 dead units stay: 2 cannot take over the constant that they emit" in plan.explain()
    with torch.no_grad():
        model[0].bias[:3] = 0.5
    with pytest.raises(SlimfastError, match=r"got none: 0.*3 dead units stay: 2 cannot take over"):
        slimfast.plan_from_masks(model, X)


def test_a_reflecting_convolution_takes_a_constant_over():
    torch.manual_seed(0)
    last = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), last).eval()
    mask_rows(model[0], [2, 6])
    with torch.no_grad():
        model[0].bias[:] = 0.5
    assert shrunk(model, X)[1].groups[0].keep == (0, 1, 3, 4, 5, 7)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.inner, self.outer = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.last((x + self.outer(self.inner(x).relu())).relu())


def test_units_that_are_dead_in_some_members_only_stay_and_are_told():
    torch.manual_seed(0)
    model = Residual().eval()
    mask_rows(model.stem, [0, 1, 2])
    mask_rows(model.outer, [1, 2, 5])
    _, plan = shrunk(model, X)
    stream = next(g for g in plan.groups if g.kind == "residual")
    assert stream.keep == (0, 3, 4, 5, 6, 7)
    assert "2 units are dead in stem.weight_orig" not in plan.explain()
    assert "2 units are dead in stem.weight, outer.weight and stay: they live in" in plan.explain()


def test_units_that_nobody_reads_go():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).eval()
    mask = torch.ones(4, 12)
    mask[:, [2, 9]] = 0
    prune.custom_from_mask(model[2], "weight", mask)
    assert shrunk(model, torch.randn(5, 6))[1].groups[0].keep == (0, 1, 3, 4, 5, 6, 7, 8, 10, 11)


def test_a_depthwise_filter_of_zeros_kills_its_channel():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[4].weight[[0, 4]] = 0
        model[4].bias[:] = 0.3
        model[3].weight[6] = 0
    assert shrunk(model, X)[1].groups[0].keep == (1, 2, 3, 5, 7)


def test_a_layer_norm_counts_dead_units_which_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 3)).eval()
    mask_rows(model[0], [0, 1])
    with pytest.raises(SlimfastError, match="2 dead units stay: a layer norm takes its mean"):
        slimfast.plan_from_masks(model, torch.randn(2, 6))


def test_one_unit_stays_of_a_layer_that_is_dead():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
    mask_rows(model[0], list(range(10)))
    _, plan = shrunk(model, torch.randn(2, 6))
    assert plan.groups[0].keep == (0,)
    assert "all of its units are dead; one stays" in plan.explain()


def test_a_network_without_dead_units_is_told_so():
    with pytest.raises(SlimfastError, match="expected units that can go, got none"):
        slimfast.plan_from_masks(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.randn(1, 4))


def test_a_plan_of_masks_is_refused_when_the_masks_have_changed(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
    mask_rows(model[0], [0, 1])
    slimfast.plan_from_masks(model, torch.randn(2, 6)).save(tmp_path / "plan.json")
    plan = slimfast.Plan.load(tmp_path / "plan.json")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slimfast.prune_channels(model, plan)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        model[0].weight_mask[1] = 1
    with pytest.raises(SlimfastError, match=r"2 dead units to remove, got 1 that are not \(0\.weight_orig\)"):
        slimfast.prune_channels(model, plan)


ACTIVATIONS = st.sampled_from([nn.ReLU, nn.Sigmoid, nn.GELU, nn.Identity, nn.SiLU])


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    padding=st.lists(st.sampled_from([0, 1]), min_size=3, max_size=3),
    norms=st.lists(st.booleans(), min_size=3, max_size=3),
    acts=st.lists(ACTIVATIONS, min_size=3, max_size=3),
    weight_norm=st.booleans(),
)
def test_random_networks_with_dead_units_compute_the_same(seed, padding, norms, acts, weight_norm):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    widths = [3, *torch.randint(4, 10, (3,), generator=generator).tolist()]
    layers: list[nn.Module] = []
    for i in range(3):
        conv = nn.Conv2d(widths[i], widths[i + 1], 3, padding=padding[i], bias=not norms[i])
        dead = (torch.rand(widths[i + 1], generator=generator) < 0.4).nonzero()[:, 0]
        if i == 2:
            # one that can go in any case: the last layer takes its constant over
            dead = torch.tensor([1])
        if weight_norm and i == 0:
            parametrizations.weight_norm(conv)
            with torch.no_grad():
                conv.parametrizations.weight.original0[dead] = 0
        else:
            mask_rows(conv, dead.tolist())
        layers.append(conv)
        if norms[i]:
            norm = nn.BatchNorm2d(widths[i + 1])
            with torch.no_grad():
                norm.bias.copy_(torch.randn(widths[i + 1], generator=generator))
                norm.running_mean.copy_(torch.randn(widths[i + 1], generator=generator))
                norm.weight[:1] = 0
            layers.append(norm)
        layers.append(acts[i]())
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[3], 4)).eval()
    shrunk(model, X)


def test_a_plan_of_masks_does_not_cut_a_checkpoint_whose_biases_nobody_would_change(tmp_path):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[0].weight[:2] = 0
    plan = slimfast.plan_from_masks(model, torch.randn(2, 4))
    slimfast.save(model, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"got one of masks.*use slimfast\.prune_channels"):
        slimfast.prune_checkpoint(tmp_path / "wide.safetensors", plan, tmp_path / "thin", model=model)
    assert not (tmp_path / "thin").exists()
