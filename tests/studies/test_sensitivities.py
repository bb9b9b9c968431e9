"""Groups cut alone: measured errors are those of networks cut by hand, beside what was predicted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import slimfast
from slimfast import SlimfastError
from slimfast.studies.scoring import rank_agreement

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    ).eval()


def test_an_error_is_that_of_the_network_cut_by_hand() -> None:
    model = network()
    found = slimfast.sensitivity(model, X, shares=(0.5, 0.25), select="l1")
    assert [(c.group, c.width) for c in found.cuts] == [("0", 6), ("0", 3), ("2", 4), ("2", 2)]
    graph = slimfast.trace_channels(model, X)
    spectra = slimfast.measure_spectra(model, graph)
    y = model(X).detach()
    for cut in found.cuts:
        plan = slimfast.plan_widths(graph, {}, overrides={cut.group: cut.width})
        thin = slimfast.prune_channels(model, plan, select="l1")
        error = float((thin(X).detach() - y).norm() / y.norm())
        assert cut.error == pytest.approx(error, rel=1e-5)
        assert cut.error > 0.01
        assert cut.predicted == pytest.approx(1 - spectra[cut.group].ratio(cut.width))


def test_a_repair_is_what_error_curves_predict() -> None:
    model = network()
    graph = slimfast.trace_channels(model, X)
    calibration = slimfast.calibrate(model, graph, [torch.randn(40, 3, 8, 8)])
    plain = slimfast.sensitivity(model, graph=graph, calibration=calibration, shares=(0.5,))
    repaired = slimfast.sensitivity(
        model, graph=graph, calibration=calibration, shares=(0.5,), repair="activations"
    )
    curves = slimfast.error_curves(model, graph, calibration)
    for cut, better in zip(plain.cuts, repaired.cuts, strict=True):
        assert better.error < cut.error
        assert cut.predicted == curves[cut.group].residual[cut.width]
    assert plain.predicted_by == "error curves"


def test_scores_are_of_one_group_cut_and_the_model_stays() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[tuple[int, ...]] = []

    def evaluate(thin: nn.Module) -> torch.Tensor:
        assert not thin.training
        seen.append(tuple(len(thin[i].weight) for i in (0, 2, 5)))
        return torch.tensor(float(len(seen)))

    found = slimfast.sensitivity(model, X, shares=(0.5,), evaluate=evaluate)
    assert seen == [(12, 8, 5), (6, 8, 5), (12, 4, 5)]
    assert found.score == 1.0
    assert [cut.score for cut in found.cuts] == [2.0, 3.0]
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_text_and_json_hold_what_was_found() -> None:
    found = slimfast.sensitivity(network(), X, include=["2"], evaluate=lambda thin: 0.5)
    document = json.loads(found.to_json())
    assert document["kind"] == "slimfast.sensitivities"
    assert [cut["width"] for cut in document["cuts"]] == [6, 4, 2]
    assert document["cuts"][1]["error"] == found.cuts[1].error
    text = str(found)
    assert all(f"8 -> {width}" in text for width in (6, 4, 2))
    assert "score of the whole network: 0.5000" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_graph_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    graph = slimfast.trace_channels(model, X)
    monkeypatch.setattr("slimfast.studies.sensitivities.trace_channels", None)
    assert slimfast.sensitivity(model, X, graph=graph).cuts


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"shares": ()}, ValueError, "expected at least one share, got none"),
        ({"shares": (1.0,)}, ValueError, "expected shares between 0 and 1, got 1.0"),
        ({"shares": ("half",)}, ValueError, "expected shares between 0 and 1, got 'half'"),
        ({"shares": 0.5}, TypeError, "expected shares to be a sequence, got float"),
        ({"include": ["00"]}, ValueError, "sensitivity: include: no group matches '00'"),
        ({"include": "0"}, ValueError, "expected include to be a list of globs, got the string '0'"),
        ({"exclude": ["*"]}, SlimfastError, "expected groups that can be cut, got none of 2"),
        ({"evaluate": lambda thin: "good"}, TypeError, "expected evaluate to return a number, got str"),
        ({"evaluate": lambda thin: None}, TypeError, "expected evaluate to return a number, got NoneType"),
        ({"evaluate": lambda thin: torch.zeros(2)}, TypeError, "to return a number, got Tensor"),
        ({"evaluate": lambda thin: float("nan")}, ValueError, "to return a finite number, got nan"),
        ({"evaluate": 3}, TypeError, "expected evaluate to be a function from a network to its score"),
        ({"repair": "activations"}, ValueError, "expected a calibration for kind 'activations'"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, error, said: str) -> None:
    with pytest.raises(error, match=said):
        slimfast.sensitivity(network(), X, **options)


def test_without_an_example_or_a_graph() -> None:
    with pytest.raises(TypeError, match="expected an example of the model's arguments, or its graph"):
        slimfast.sensitivity(network())


def test_ranks_that_agree() -> None:
    assert rank_agreement([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert rank_agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # Ties share their mean rank: 1.5, 1.5, 3, 4 beside 1, 2, 3, 4.
    assert rank_agreement([5, 5, 9, 10], [1, 2, 3, 4]) == pytest.approx(np.sqrt(0.9))
    assert rank_agreement([5, 5], [1, 2]) is None
    assert rank_agreement([5], [1]) is None
