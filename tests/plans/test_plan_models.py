"""Plans as text, and of real modules: measured as far as it takes, and models that do not match."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.paths import DATA
from torch import nn

from benchmarks.accuracy.networks.resnet_cifar import resnet56
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import Axis, ChannelGraph, Frozen
from slimfast.plans import Plan, check_plan, plan, plan_widths, planning
from slimfast.plans.costs import count
from slimfast.spectra import Spectrum, measure_spectra
from slimfast.storage.weights import read_tensors

RESNET56 = DATA / "weights" / "resnet56-4bfd9763.th"


# Text


def test_the_table_has_every_group_and_the_totals(graph: ChannelGraph, spectra: dict[str, Spectrum]) -> None:
    found = plan_widths(graph, spectra, macs=0.8, overrides={"2": 3}, exclude=["0"])
    lines = str(found).splitlines()
    assert lines[0].split() == ["group", "width", "explains", "params", "left", "MACs", "left", "by"]
    assert lines[2].split()[:5] == ["0", "12", "->", "12", "whole"]
    assert lines[2].split()[-1] == "alone"
    assert lines[4].split()[:4] == ["2", "8", "->", "3"]
    assert lines[4].split()[-1] == "hand"
    # group 1: 10 x 12 + 10 and 8 x 10 weights before, with k units k x 12 + k and 3 x k after
    k = found.widths()["1"]
    assert lines[3].split()[4:7] == [f"{spectra['1'].ratio(k):.4f}", "210", f"{16 * k / 210:.0%}"]
    after = found.cost_after
    assert f"macs: asked for 0.8, reached {after.macs:,} of {found.cost_before.macs:,}" in str(found)
    starts = {line.index("->") for line in lines[2:5]}
    assert len(starts) == 1


def test_explain_says_what_is_coupled_and_what_is_left_alone(
    graph: ChannelGraph, spectra: dict[str, Spectrum]
) -> None:
    frozen = (
        Frozen("3.weight", 0, "aten.sort takes it apart", "3"),
        Frozen("1.weight", 0, "aten.sort takes it apart", "3"),
        Frozen("0.weight", 1, "network input", ""),
    )
    # A depthwise filter that no group can change, and no reason of its own.
    axes = {**graph.axes, "depthwise.weight": (Axis(9), Axis(1), Axis(3), Axis(3))}
    parameters = graph.parameters | {"depthwise.weight"}
    changed = dataclasses.replace(graph, frozen=frozen, axes=axes, parameters=parameters)
    found = plan_widths(changed, spectra, overrides={"1": 4, "2": 8})
    text = found.explain()
    assert "1 (channel): 10 -> 4 units" in text
    for member in ("producer 1.weight dim 0", "follower 1.bias dim 0", "consumer 2.weight dim 1"):
        assert member in text
    assert "2 (channel): 8 -> 8 units, left whole: by hand, removed together in" in text
    assert text.endswith(
        "left alone, each layer with the reason:\n"
        "  aten.sort takes it apart (3)\n"
        "    3.weight dim 0\n"
        "    1.weight dim 0 (the units of no group)\n"
        "  it is what the network is given\n"
        "    0.weight dim 1\n"
        "  goes along with what is left alone (depthwise filters, tables), or takes no part in this forward\n"
        "    depthwise.weight"
    )
    again = Plan.from_json(found.to_json())
    with pytest.raises(ValueError, match="expected the graph of the model"):
        again.explain()
    assert again.explain(found.graph) == text


# Real modules


class Net(nn.Module):
    """A small residual network."""

    def __init__(self, width: int = 16, inner: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.Conv2d(width, inner, 3, padding=1)
        self.b = nn.Conv2d(inner, width, 3, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = x + self.b(self.a(x).relu())
        return self.head(x.mean((2, 3)))


EXAMPLE = torch.zeros(1, 3, 8, 8)


def net(seed: int = 0, **sizes: int) -> Net:
    torch.manual_seed(seed)
    return Net(**sizes)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77])
def test_a_plan_in_one_call_is_the_one_of_float64_lapack(share: float) -> None:
    model = net()
    found = plan(model, EXAMPLE, macs=share)
    assert found.graph is not None
    exact = measure_spectra(model, found.graph, dtype=torch.float64, backend="reference")
    expected = plan_widths(found.graph, exact, macs=share)
    assert found.widths() == expected.widths()
    assert found.explained_variance == pytest.approx(expected.explained_variance, rel=1e-13)
    assert all(g.certified for g in found.groups)
    # The group at which the budget ends defines tau, so that float32 never settles it.
    assert "float64" in {g.dtype for g in found.groups}


def test_a_plan_at_one_tau_measures_again_only_what_is_open() -> None:
    model = net()
    easy = plan(model, EXAMPLE, explained_variance=0.5)
    assert {g.dtype for g in easy.groups} == {"float32"}
    exact = measure_spectra(model, easy.graph, dtype=torch.float64)
    name = easy.groups[0].name
    tau = float(exact[name].explained_variance_ratio()[5]) + 1e-10
    hard = plan(model, EXAMPLE, explained_variance=tau)
    assert [g.dtype for g in hard.groups if g.name == name] == ["float64"]
    assert hard.widths()[name] == 7
    assert all(g.certified for g in hard.groups)
    again = [g.name for g in hard.groups if g.dtype == "float64"]
    assert f"measured in float64: {len(again)} of {len(hard.groups)} groups, {again[0]}" in str(hard)
    assert "measured in float64" not in str(easy)


def test_saved_spectra_save_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    first = plan(model, EXAMPLE, macs=0.5)
    spectra = measure_spectra(model, first.graph)
    monkeypatch.setattr(planning, "measure_spectra", None)
    with pytest.raises(TypeError):
        plan(model, EXAMPLE, macs=0.5)
    assert plan(model, EXAMPLE, macs=0.5, spectra=spectra) == first


def test_check_plan_names_the_first_tensor_that_differs() -> None:
    found = plan(net(), EXAMPLE, macs=0.5)
    check_plan(found, net(seed=1))
    with pytest.raises(
        SlimfastError, match=r"a.weight of shape \(12, 16, 3, 3\), got shape \(11, 16, 3, 3\)"
    ):
        check_plan(found, net(inner=11))
    other = net()
    del other.head
    with pytest.raises(SlimfastError, match=r"head.weight of shape \(5, 16\), got one without it"):
        check_plan(found, other)
    other = net()
    other.extra = nn.Linear(2, 3)
    with pytest.raises(SlimfastError, match=r"without extra.weight, got one that has it, of shape \(3, 2\)"):
        check_plan(found, other)
    with pytest.raises(SlimfastError) as error:
        check_plan(found, nn.Linear(3, 4))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not RESNET56.exists(), reason=f"no weights at {RESNET56} (set SLIMFAST_DATA)")
def test_resnet56_reaches_half_its_macs_within_one_unit_of_any_group() -> None:
    model = resnet56()
    model.load_state_dict(read_tensors(RESNET56))
    found = plan(model, torch.zeros(1, 3, 32, 32), macs=0.5)
    assert found.graph is not None
    half = found.cost_before.macs / 2
    assert found.cost_after.macs <= half
    # One group's next unit ends the common tau; the others have that tau and what was left of the budget.
    spectra = measure_spectra(model, found.graph, dtype=torch.float64, backend="reference")
    widths = found.widths()
    (ending,) = [n for n, k in widths.items() if abs(spectra[n].ratio(k) - found.explained_variance) < 1e-12]
    at_tau = {n: s.width(explained_variance=found.explained_variance) for n, s in spectra.items()}
    assert widths[ending] == at_tau[ending]
    assert all(widths[n] >= width for n, width in at_tau.items())
    for name, width in widths.items():
        assert width == spectra[name].n or count(found.graph, {**widths, name: width + 1}).macs > half
