"""Which units stay: each method against its definition, ties, determinism, and what bad weights get."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.pruning_cases import build, plan_of, random_plan
from torch import nn

from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.pruning import selection
from slimfast.pruning.selection import METHODS, largest, select
from slimfast.pruning.unit_scores import _geometric_median


def two_convs(n: int = 6) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, n, 3), nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 2, 1)).eval()
    return model, torch.randn(1, 3, 5, 5)


class Coupled(nn.Module):
    """Two layers whose outputs are added: their units are measured together."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.a, self.b = nn.Linear(4, 5, dtype=dtype), nn.Linear(4, 5, dtype=dtype)
        self.last = nn.Linear(5, 2, dtype=dtype)

    def forward(self, x):
        return self.last((self.a(x) + self.b(x)).relu())


def chosen(model: nn.Module, x, method: str, width: int) -> tuple[int, ...]:
    graph = trace_channels(model, x)
    (group,) = graph
    (planned,) = select(model, plan_of(graph, {}, widths={group.name: width}), method=method).groups
    assert planned.keep is not None
    return planned.keep


def top(scores: torch.Tensor, width: int) -> tuple[int, ...]:
    return tuple(sorted(scores.argsort(descending=True)[:width].tolist()))


def joint(model: Coupled) -> torch.Tensor:
    return torch.cat([model.a.weight, model.b.weight], 1).detach().double()


def test_l1_and_l2_are_norms_of_the_joint_filters():
    model, x = Coupled().eval(), torch.randn(3, 4)
    for width in range(1, 5):
        assert chosen(model, x, "l1", width) == top(joint(model).abs().sum(1), width)
        assert chosen(model, x, "l2", width) == top(joint(model).norm(dim=1), width)


def test_lookahead_is_the_norm_of_what_the_product_of_two_layers_loses():
    model, x = Coupled().eval(), torch.randn(3, 4)
    # The columns of `last` times the rows of `a` and `b`: a unit's part is a matrix of rank one.
    lost = [model.last.weight[:, [u]].double() @ joint(model)[[u]] for u in range(5)]
    scores = torch.stack([part.norm() for part in lost])
    for width in range(1, 5):
        assert chosen(model, x, "lookahead", width) == top(scores, width)
    model, x = two_convs(3)
    model[0].weight.data = torch.tensor([3.0, 2.0, 1.0])[:, None, None, None] * torch.ones(3, 3, 3, 3)
    model[3].weight.data = torch.tensor([[0.0, 4.0, 0.0], [0.5, 0.0, 3.0]])[:, :, None, None]
    assert chosen(model, x, "l2", 2) == (0, 1)
    # 3 x 0.5, 2 x 4, 1 x 3
    assert chosen(model, x, "lookahead", 2) == (1, 2)


def test_lookahead_of_units_that_no_weights_read_is_their_norm():
    class Summed(nn.Linear):
        def forward(self, x):
            return super().forward(x).sum(-1)

    torch.manual_seed(0)
    model, x = Summed(4, 5), torch.randn(2, 4)
    for width in range(1, 5):
        assert chosen(model, x, "lookahead", width) == top(model.weight.norm(dim=1), width)


def test_geometric_median_is_the_sum_of_distances_to_all_others():
    model, x = Coupled().eval(), torch.randn(3, 4)
    scores = torch.cdist(joint(model), joint(model)).sum(1)
    for width in range(1, 5):
        assert chosen(model, x, "geometric_median", width) == top(scores, width)


def test_geometric_median_of_more_units_than_are_measured_at_a_time():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 2100), nn.ReLU(), nn.Linear(2100, 1)), torch.randn(1, 4)
    weight = model[0].weight.detach().double()
    scores = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    assert chosen(model, x, "geometric_median", 1000) == top(scores, 1000)


def test_norms_of_weights_too_large_to_be_converted_at_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(60, 700, 3), nn.ReLU(), nn.Conv2d(700, 64, 3))
    x = torch.randn(1, 60, 5, 5)
    before = [parameter.clone() for parameter in model.parameters()]
    made, read = (model[i].weight.detach().double().movedim(i // 2, 0).flatten(1) for i in (0, 2))
    assert chosen(model, x, "l1", 300) == top(made.abs().sum(1), 300)
    assert chosen(model, x, "l2", 300) == top(made.norm(dim=1), 300)
    assert chosen(model, x, "lookahead", 300) == top(made.norm(dim=1) * read.norm(dim=1), 300)
    assert all(map(torch.equal, model.parameters(), before))


def test_bn_scale_is_the_absolute_scale_of_the_norm_that_follows():
    model, x = two_convs()
    model[1].weight.data = torch.tensor([0.1, -5.0, 3.0, -0.2, 4.0, 0.0])
    assert chosen(model, x, "bn_scale", 3) == (1, 2, 4)


def test_bn_scale_names_the_groups_without_a_batch_norm():
    with pytest.raises(ValueError, match=r"bn_scale needs a batch norm.*none in a\[residual\]"):
        chosen(Coupled().eval(), torch.randn(3, 4), "bn_scale", 2)


def greedy(rows: list[torch.Tensor], width: int) -> tuple[int, ...]:
    """The unit with the largest variance left once all picked so far are projected out, again and again."""
    left = torch.cat([x - x.mean(1, keepdim=True) for x in rows], 1)
    picks: list[int] = []
    for _ in range(width):
        pick = int(left.square().sum(1).argmax())
        picks.append(pick)
        direction = left[pick] / left[pick].norm()
        left = left - (left @ direction)[:, None] * direction
    return tuple(sorted(picks))


def test_pivoted_cholesky_is_greedy_pca_over_units():
    model, x = Coupled().eval(), torch.randn(3, 4)
    rows = [model.a.weight.detach().double(), model.b.weight.detach().double()]
    for width in range(1, 5):
        assert chosen(model, x, "pivoted_cholesky", width) == greedy(rows, width)


def test_pivoted_cholesky_beyond_the_rank_takes_the_largest_of_the_rest():
    model, x = two_convs(6)
    base = torch.randn(1, 3, 3, 3)
    model[0].weight.data = base * torch.tensor([1.0, 5.0, -2.0, 4.0, 0.5, 3.0])[:, None, None, None]
    assert chosen(model, x, "pivoted_cholesky", 3) == (1, 3, 5)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "activations"])
def test_ties_go_to_the_smaller_index(method):
    model, x = two_convs(6)
    weight = torch.randn(3, 3, 3, 3)
    # Each filter is there twice; the pairs must not be told apart by rounding.
    model[0].weight.data = weight.repeat(2, 1, 1, 1)
    model[0].bias.data.zero_()
    model[1].weight.data = torch.tensor([1.0, 2.0, 3.0] * 2)
    model[3].weight.data = torch.randn(2, 3, 1, 1).repeat(1, 2, 1, 1)
    for width, first in ((1, 1), (3, 2), (5, 3)):
        keep = chosen(model, x, method, width)
        if method == "pivoted_cholesky":
            # A filter that is there twice explains its double: each once, then doubles by size, then index.
            assert len({k % 3 for k in keep}) == min(width, 3)
            assert width > 3 or max(keep) < 3
        else:
            assert all(k in keep for k in {k % 3 for k in keep})
            assert len({k % 3 for k in keep}) == first


def test_the_distances_of_equal_filters_are_not_told_apart_by_rounding(monkeypatch):
    torch.manual_seed(0)
    half, n = torch.randn(131, 1000, dtype=torch.float64), 131
    # Matrix products round the two copies of a filter differently, in blocks even more so.
    monkeypatch.setattr("slimfast.pruning.unit_scores._BLOCK", 7 * 2 * n)
    scores = _geometric_median([torch.cat([half, half.flip(0)])], 2 * n)
    assert np.array_equal(scores[:n], scores[n:][::-1])
    exact = torch.cdist(half, half, compute_mode="donot_use_mm_for_euclid_dist").sum(1).numpy()
    assert np.allclose(scores[:n], 2 * exact, rtol=1e-10)


def test_largest_breaks_ties_by_index_and_sorts():
    assert largest(np.array([1.0, 3.0, 3.0, 0.0, 3.0]), 2).tolist() == [1, 2]
    assert largest(np.array([1.0, 3.0, 3.0, 0.0, 3.0]), 4).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("method", ["l1", "l2", "lookahead", "geometric_median", "pivoted_cholesky"])
@pytest.mark.parametrize("name", ["conv", "transformer"])
def test_every_group_of_a_network_gets_its_width(name, method):
    model, x = build(name)
    plan = random_plan(model, x)
    found = select(model, plan, method=method)
    again = select(model, plan, method=method)
    assert found == again
    for group, before in zip(found.groups, plan.groups, strict=True):
        assert group.keep is not None
        assert len(group.keep) == before.width == len(set(group.keep))
        assert list(group.keep) == sorted(group.keep)
        assert set(group.keep) <= set(range(group.n))


def test_half_precision_weights_are_ranked_in_float64():
    model, x = Coupled(torch.float16).eval(), torch.randn(3, 4, dtype=torch.float16)
    assert chosen(model, x, "l2", 3) == top(joint(model).norm(dim=1), 3)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "activations"])
def test_weights_that_are_not_finite_are_named(method):
    model, x = two_convs()
    tensor = model[1] if method == "bn_scale" else model[0]
    tensor.weight.data.view(-1)[1] = float("nan")
    name = "1.weight" if method == "bn_scale" else "0.weight"
    with pytest.raises(SlimfastError, match=rf"(?s)select: .*{name}"):
        chosen(model, x, method, 2)


def test_meta_weights_and_unknown_methods_are_refused():
    model, x = two_convs()
    with pytest.raises(ValueError, match=r"expected one of l1, l2.*got 'l3'"):
        chosen(model, x, "l3", 2)
    with pytest.raises(SlimfastError, match=r"0\.weight is a meta tensor"):
        chosen(model.to("meta"), x.to("meta"), "l1", 2)


def test_a_plan_of_another_model_is_refused_by_name():
    model, x = two_convs(6)
    other, _ = two_convs(5)
    plan = plan_of(trace_channels(model, x), {})
    with pytest.raises(SlimfastError, match=r"0\.weight of shape \(6, 3, 3, 3\), got shape \(5, 3, 3, 3\)"):
        select(other, plan)


@pytest.mark.parametrize(("most", "calls"), [(1, 3), (8 * (6**2 + 4**2), 2), (1 << 20, 1)])
def test_a_call_holds_the_covariances_that_fit_and_the_choice_is_the_same(monkeypatch, most, calls):
    torch.manual_seed(7)
    layers = [
        nn.Linear(3, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
        nn.ReLU(),
        nn.Linear(4, 7),
        nn.ReLU(),
        nn.Linear(7, 2),
    ]
    model = nn.Sequential(*layers).eval()
    graph = trace_channels(model, torch.randn(1, 3))
    plan = plan_of(graph, {}, widths={group.name: group.n // 2 for group in graph})
    expected = select(model, plan, method="pivoted_cholesky")
    counted: list[int] = []
    factor = selection.grouped_pivoted_cholesky

    def grouped(matrices, ranks, **options):
        counted.append(len(matrices))
        return factor(matrices, ranks, **options)

    monkeypatch.setattr(selection, "grouped_pivoted_cholesky", grouped)
    monkeypatch.setattr(selection, "call_bytes", lambda device, elsewhere: most)
    assert select(model, plan, method="pivoted_cholesky") == expected
    assert len(counted) == calls
    assert sum(counted) == 3


def test_a_fault_inside_is_not_blamed_on_the_weights(monkeypatch):
    def fail(*args, **options):
        raise ValueError("a fault")

    model, x = build("conv")
    monkeypatch.setattr(selection, "grouped_covariance", fail)
    with pytest.raises(ValueError, match=r"^a fault$"):
        select(model, random_plan(model, x), method="pivoted_cholesky")
