"""Rotated heads: the outputs stay, the first dims are the best approximation, and what is else is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from support.head_networks import Attention, Between, moved
from torch import Tensor, nn

import slimfast
from slimfast.errors import ArgumentTypeError, SlimfastError
from slimfast.pruning.rotation.solving import balanced_basis

VARIATIONS: dict[str, dict[str, Any]] = {
    "separate value dim": {},
    "no biases": {"bias": False},
    "grouped queries": {"groups": 2},
    "one key for all": {"groups": 1},
    "repeated keys": {"groups": 2, "plain": True},
    "products": {"plain": True},
    "fused": {"fused": True},
    "fused, grouped": {"fused": True, "groups": 2, "plain": True},
    "two heads": {"heads": 2, "groups": 2},
    "scaled queries": {"between": lambda q: q * 0.5, "plain": True},
}


def groups_of(model: nn.Module, example: Any) -> dict[str, int]:
    return {g.name: g.n for g in slimfast.trace_channels(model, example) if g.kind == "head_dim"}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", VARIATIONS)
def test_outputs_stay_and_a_cut_is_sorted(name: str, calibrated: bool) -> None:
    model = moved(Between(Attention(**VARIATIONS[name]))).eval()
    x, other = torch.randn(3, 7, 8), torch.randn(2, 5, 8)
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, x), [x]) if calibrated else None
    rotated = slimfast.rotate_heads(model, x, calibration=calibration)
    torch.testing.assert_close(rotated(other), model(other), rtol=2e-5, atol=2e-5)
    found = slimfast.rotation_report(rotated)
    assert found.losses.keys() == groups_of(model, x).keys()
    assert not found.left
    for losses in found.losses.values():
        assert losses[-1] == 0.0
        # a tail of sorted values: it falls, and ever more slowly
        assert (np.diff(losses) <= 0).all()
        assert (np.diff(losses, 2) >= -1e-12).all()
    changed = {n for n, p in rotated.named_parameters() if not torch.equal(p, model.state_dict()[n])}
    assert {"inner.o.weight"} < changed
    assert slimfast.manifest(rotated).moved.keys() == changed


@pytest.mark.parametrize("plain", [False, True])
def test_cross_attention_weighs_queries_and_keys_by_what_each_reads(plain: bool) -> None:
    model = moved(Between(Attention(plain=plain, key=6))).eval()
    example = {"x": torch.randn(2, 4, 8), "memory": 3 * torch.randn(2, 9, 8) + 1}
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, example), [example])
    rotated = slimfast.rotate_heads(model, example, calibration=calibration)
    torch.testing.assert_close(rotated(**example), model(**example), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dims", [1, 2, 4])
def test_first_dims_are_the_best_approximation_of_the_product(dims: int) -> None:
    """The oracle is the dense product of both layers, and its singular values."""
    model = moved(Between(Attention(heads=2, groups=2, bias=False))).double().eval()
    rotated = slimfast.rotate_heads(model, torch.randn(1, 5, 8, dtype=torch.float64))
    for head in range(2):
        rows = slice(6 * head, 6 * head + 6)
        whole = model.inner.o.weight[:, rows] @ model.inner.v.weight[rows]
        kept = slice(6 * head, 6 * head + dims)
        part = rotated.inner.o.weight[:, kept] @ rotated.inner.v.weight[kept]
        tail = torch.linalg.svdvals(whole.detach())[dims:].norm()
        torch.testing.assert_close((whole - part).norm().detach(), tail, rtol=1e-6, atol=0.0)


def test_with_data_the_first_dims_lose_least_of_what_is_computed_of_it() -> None:
    model = moved(Between(Attention(heads=2, groups=2))).double().eval()
    x = torch.randn(40, 6, 8, dtype=torch.float64) @ torch.diag(torch.logspace(-2, 1, 8).double()) + 0.5
    graph = slimfast.trace_channels(model, x)
    calibration = slimfast.calibrate(model, graph, [x], dtype=torch.float64)
    read = model.first(x).detach().reshape(-1, 16)

    def lost(thin: nn.Module, dims: int) -> float:
        part = thin.inner.o.weight[:, :dims] @ thin.inner.v(read)[:, :dims].T
        return float((made - part).detach().norm())

    with_data = slimfast.rotate_heads(model, x, calibration=calibration)
    without = slimfast.rotate_heads(model, x)
    made = (model.inner.o.weight[:, :6] @ model.inner.v(read)[:, :6].T).detach()
    for dims in (1, 2, 3):
        best = float(torch.linalg.svdvals(made)[dims:].norm())
        assert lost(with_data, dims) == pytest.approx(best, rel=1e-4)
        assert lost(without, dims) > 1.001 * best


@pytest.mark.parametrize("method", ["l1", "l2", "lookahead", "geometric_median", "pivoted_cholesky"])
def test_the_first_units_stay_whatever_the_method(method: Any) -> None:
    model = moved(Between(Attention(groups=2))).eval()
    x = torch.randn(2, 5, 8)
    rotated = slimfast.rotate_heads(model, x)
    name = "inner.v[head_dim]"
    assert name in slimfast.rotation_report(rotated).losses
    plan = slimfast.plan(rotated, x, params=0.9, include=["head_dim"])
    chosen = slimfast.select(rotated, plan, method=method)
    width = next(g.width for g in chosen.groups if g.name == name)
    assert 0 < width < 6
    assert next(g.keep for g in chosen.groups if g.name == name) == tuple(range(width))
    thin = slimfast.prune_channels(rotated, chosen)
    assert thin.inner.v.weight.shape[0] == 2 * width
    # the order is that of these weights alone
    with torch.no_grad():
        rotated.inner.v.weight.view(2, 6, 16)[:, :width] *= 1e-6
        rotated.inner.o.weight.view(16, 4, 6)[:, :, :width] *= 1e-6
    again = slimfast.select(rotated, plan, method="lookahead")
    assert next(g.keep for g in again.groups if g.name == name) != tuple(range(width))


def test_rotating_loses_less_than_choosing_among_the_dims_there_are() -> None:
    """Of values that are mixtures of few: rank 3 in 8 dims is cut to 3 without loss, which no choice can."""
    model = moved(Between(Attention(value=8, heads=2, groups=2))).double().eval()
    with torch.no_grad():
        for head in range(2):
            rows = model.inner.v.weight[8 * head : 8 * head + 8]
            rows.copy_(torch.randn(8, 3).double() @ torch.randn(3, 16).double())
        model.inner.v.bias.zero_()
    x = torch.randn(4, 6, 8).double()
    rotated = slimfast.rotate_heads(model, x)
    assert slimfast.rotation_report(rotated).losses["inner.v[head_dim]"][3] < 1e-6
    for head in range(2):
        kept = (
            rotated.inner.v.weight[8 * head : 8 * head + 3],
            rotated.inner.o.weight[:, 8 * head : 8 * head + 3],
        )
        whole = (
            model.inner.o.weight[:, 8 * head : 8 * head + 8] @ model.inner.v.weight[8 * head : 8 * head + 8]
        )
        lost = (whole - kept[1] @ kept[0]).detach().abs().max()
        assert float(lost) < 1e-3 * float(whole.detach().abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_and_modes_stay(dtype: torch.dtype) -> None:
    model = moved(Between(Attention(plain=True))).to(dtype).train()
    model.inner.v.weight.requires_grad_(False)
    x = torch.randn(2, 5, 8).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rotated = slimfast.rotate_heads(model, x)
    assert rotated.training
    assert not rotated.inner.v.weight.requires_grad
    assert rotated.inner.q.weight.requires_grad
    assert all(tensor.dtype == dtype for tensor in rotated.state_dict().values())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    # what is left is the rounding of the weights to their dtype
    assert slimfast.rotation_report(rotated).error < 64 * torch.finfo(dtype).eps


def test_heads_of_one_dim_and_zero_matrices() -> None:
    model = moved(Between(Attention(heads=3, groups=3, value=4))).eval()
    with torch.no_grad():
        model.inner.v.weight[4:8] = 0
        model.inner.v.bias[4:8] = 0
        model.inner.o.weight[:, 8:] = 0
    x = torch.randn(2, 5, 8)
    rotated = slimfast.rotate_heads(model, x)
    assert all(bool(p.isfinite().all()) for p in rotated.parameters())
    torch.testing.assert_close(rotated(x), model(x), rtol=2e-5, atol=2e-5)
    alone = moved(Between(Attention(heads=3, groups=3, value=1, key=3))).eval()
    turned = slimfast.rotate_heads(alone, x)
    torch.testing.assert_close(turned(x), alone(x), rtol=2e-5, atol=2e-5)


def test_a_calibration_of_other_weights_changes_the_order_alone() -> None:
    model, other = (moved(Between(Attention()), seed).eval() for seed in (0, 1))
    x = torch.randn(6, 5, 8)
    calibration = slimfast.calibrate(other, slimfast.trace_channels(other, x), [x])
    own = slimfast.calibrate(model, slimfast.trace_channels(model, x), [x])
    states = [slimfast.rotate_heads(model, x, calibration=each).state_dict() for each in (calibration, own)]
    # of a calibration the inputs are used
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name])
    with pytest.raises(ArgumentTypeError, match=r"calibration of slimfast\.calibrate, got list"):
        slimfast.rotate_heads(model, x, calibration=[x])  # type: ignore[arg-type]


class Leaking(Attention):
    """Its values are read once more, as they are."""

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        return super().forward(x, memory) + self.v(x).relu().mean(-1, keepdim=True)


class Normed(Attention):
    """What attention gives is normed inside each head before it is read."""

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        shape = (*x.shape[:-1], self.heads, -1)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return self.o((out / (1 + out.abs())).transpose(1, 2).reshape(*x.shape[:-1], -1))


class Added(Attention):
    """Its weight of the values is a tensor of another operation too."""

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        return super().forward(x, memory) + self.v.weight.abs().mean(0)


@pytest.mark.parametrize("inner", [Leaking(), Normed(), Added()])
def test_what_else_works_on_the_dims_leaves_them(inner: nn.Module) -> None:
    model, x = moved(Between(inner)).eval(), torch.randn(2, 5, 8)
    rotated = slimfast.rotate_heads(model, x)
    left = slimfast.rotation_report(rotated).left
    assert left.keys() <= {"inner.v[head_dim]"}
    assert all(reason.startswith("inner.") for reason in left.values())
    assert torch.equal(rotated.inner.v.weight, model.inner.v.weight)
    assert torch.equal(rotated.inner.o.weight, model.inner.o.weight)
    torch.testing.assert_close(rotated(x), model(x), rtol=2e-5, atol=2e-5)


def test_norms_of_queries_leave_queries_and_keys() -> None:
    """Of one group for all three the norm keeps all; alone the values are rotated."""
    tied = moved(Between(Attention(key=6, plain=True, between=lambda q: F.normalize(q, dim=-1)))).eval()
    x = torch.randn(2, 5, 8)
    rotated = slimfast.rotate_heads(tied, x)
    torch.testing.assert_close(rotated(x), tied(x), rtol=2e-5, atol=2e-5)
    assert torch.equal(rotated.inner.q.weight, tied.inner.q.weight)
    assert torch.equal(rotated.inner.k.weight, tied.inner.k.weight)
    assert not torch.equal(rotated.inner.v.weight, tied.inner.v.weight)


def test_layers_that_share_a_weight_are_left() -> None:
    model = moved(Between(Attention(key=6, heads=2, groups=2, plain=True)))
    model.inner.v.weight = model.inner.q.weight
    model.inner.v.bias = model.inner.q.bias
    x = torch.randn(2, 5, 8)
    with pytest.raises(SlimfastError, match="rotate_heads: expected groups of head dims that can be rotated"):
        slimfast.rotate_heads(model.eval(), x)


def test_other_networks_are_refused() -> None:
    x = torch.randn(2, 5, 8)
    with pytest.raises(SlimfastError, match="got none of 0"):
        slimfast.rotate_heads(nn.Sequential(nn.Linear(8, 9), nn.Linear(9, 3)), x)
    with pytest.raises(SlimfastError, match="meta device"):
        slimfast.rotate_heads(Between(Attention()).to("meta"), x.to("meta"))
    with pytest.raises(SlimfastError, match="a network of rotate_heads"):
        slimfast.rotation_report(nn.Linear(2, 2))


def test_a_cut_of_rotated_heads_is_saved_and_not_taken_for_one_of_other_weights(tmp_path: Any) -> None:
    model = moved(Between(Attention())).eval()
    x = torch.randn(2, 5, 8)
    rotated = slimfast.rotate_heads(model, x)
    thin = slimfast.prune_channels(rotated, slimfast.plan(rotated, x, params=0.9, include=["head_dim"]))
    slimfast.save(thin, tmp_path / "thin.safetensors")
    loaded = slimfast.load(tmp_path / "thin.safetensors", Between(Attention()))
    assert torch.equal(loaded.eval()(x), thin(x))
    with pytest.raises(SlimfastError, match="rotated heads"):
        slimfast.prune_state(model.state_dict(), model, thin)


def test_basis_is_turned_back_where_factors_have_fewer_dims() -> None:
    a, b = torch.randn(9, 2).double() @ torch.randn(2, 5).double(), torch.randn(7, 5).double()
    basis, inverse, values = balanced_basis(a.T @ a, b.T @ b)
    torch.testing.assert_close((a @ basis) @ (b @ inverse).T, a @ b.T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(values[:2], torch.linalg.svdvals(a @ b.T)[:2], rtol=1e-6, atol=0.0)
    assert float(values[2]) < 1e-3 * float(values[0])


def test_a_cut_of_sorted_dims_alone_is_no_choice_by_weights() -> None:
    """Of a language model such a choice warns."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2, use_cache=False, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model, tokens = transformers.GPT2LMHeadModel(config).eval(), torch.randint(40, (2, 8))
    calibration = slimfast.calibrate(model, slimfast.trace_channels(model, tokens), [tokens])
    rotated = slimfast.rotate_heads(model, tokens, calibration=calibration)
    again = slimfast.calibrate(rotated, slimfast.trace_channels(rotated, tokens), [tokens])
    options = {"params": 0.95, "include": ["head_dim"]}
    plan = slimfast.plan(rotated, tokens, calibration=again, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert slimfast.select(rotated, plan).groups
        slimfast.prune_channels(rotated, plan)
    plain = slimfast.plan(model, tokens, calibration=calibration, **options)
    with pytest.warns(UserWarning, match="by the weights alone"):
        slimfast.prune_channels(model, plain)
