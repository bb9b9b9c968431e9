"""A caller says which outputs stay as they are, and which other calls there are."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net, conv
from torch import nn

import slimfast
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.plans.plan_data import Plan

X = torch.randn(1, 3, 8, 8)


def backbone(answer):
    """Two layers and a head, of which ``answer`` returns what it likes."""

    def forward(m, x):
        a = m.a(x).relu()
        b = m.b(a).relu()
        return answer(m.head(b), a, b)

    return Net(forward, a=conv(3, 16, 3), b=conv(16, 16, 3), head=conv(16, 4)).eval()


AS_TUPLE = backbone(lambda y, a, b: (y, [a, b]))
AS_DICT = backbone(lambda y, a, b: {"logits": y, "hidden_states": (a, b)})
ALONE = backbone(lambda y, a, b: y)


@pytest.mark.parametrize(
    ("model", "outputs", "groups"),
    [
        (AS_TUPLE, None, []),
        (AS_TUPLE, [0], ["a", "b"]),
        (AS_TUPLE, 0, ["a", "b"]),
        (AS_TUPLE, ["0", "1.1"], ["a"]),
        (AS_TUPLE, [0, 1], []),
        (AS_DICT, None, []),
        (AS_DICT, "logits", ["a", "b"]),
        (AS_DICT, ["logits", "hidden_states.0"], ["b"]),
        (AS_DICT, ["logits", "hidden_states"], []),
        (AS_DICT, ["logits", "hidden*"], []),
        (AS_DICT, [0], ["a", "b"]),
        (ALONE, [0], ["a", "b"]),
    ],
)
def test_what_is_no_interface_is_cut(model, outputs, groups):
    assert [group.name for group in trace_channels(model, X, outputs=outputs)] == groups


@pytest.mark.parametrize("outputs", ["boxes", ["logits", "hidden_states.2"], 5])
def test_an_output_that_is_not_there_is_refused_with_those_that_are(outputs):
    with pytest.raises(ValueError, match=r"the forward returns logits, hidden_states\.0, hidden_states\.1"):
        trace_channels(AS_DICT, X, outputs=outputs)


@pytest.mark.parametrize(("outputs", "kind"), [([1.5], TypeError), ([], ValueError), ([True], TypeError)])
def test_what_names_no_output_is_refused(outputs, kind):
    with pytest.raises(kind, match="outputs: expected"):
        trace_channels(AS_DICT, X, outputs=outputs)


def test_the_interface_stays_and_is_all_that_is_compared(tmp_path):
    plan = slimfast.plan(AS_DICT, X, params=0.5, outputs=["logits"])
    thin = slimfast.prune_channels(AS_DICT, plan, example=X)
    assert "of the outputs logits stay" in plan.explain()
    got = thin(X)
    assert got["logits"].shape == AS_DICT(X)["logits"].shape
    assert got["hidden_states"][0].shape[1] < 16
    assert any("logits alone were compared" in note for note in slimfast.verification_report(thin).notes)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.outputs == ("logits",)
    assert slimfast.prune_channels(AS_DICT, again)(X)["logits"].shape == got["logits"].shape


def test_an_interface_that_changes_is_found():
    plan = slimfast.plan(AS_DICT, X, params=0.5, outputs=["logits"])
    thin = slimfast.prune_channels(AS_DICT, plan, verify=False)
    graph = plan.graph
    keeps = {name: slimfast.manifest(thin).keeps[f"{name}.weight"][0] for name in ("a", "b")}
    slimfast.verify(AS_DICT, thin, graph, keeps, X)
    thin.head.padding = (1, 1)
    with pytest.raises(SlimfastError, match="not the masked original"):
        slimfast.verify(AS_DICT, thin, graph, keeps, X)


def masking():
    """A token that takes the place of what a mask hides, as in masked image modelling."""

    def forward(m, x, mask=None):
        h = m.a(x)
        if mask is not None:
            h = torch.where(mask[..., None], m.mask_token, h)
            h = h + m.more(h)
        return m.b(h.relu())

    return Net(
        forward,
        a=nn.Linear(6, 16),
        more=nn.Linear(16, 16),
        b=nn.Linear(16, 3),
        mask_token=nn.Parameter(torch.randn(16)),
    ).eval()


def test_what_another_call_uses_is_coupled_and_compared(tmp_path):
    model, x = masking(), torch.randn(2, 5, 6)
    call = {"x": x, "mask": torch.rand(2, 5) > 0.5}
    alone = trace_channels(model, x)
    assert {"mask_token", "more.weight"} <= {f.tensor for f in alone.frozen if "does not use it" in f.reason}
    plan = slimfast.plan(model, x, params=0.5, also=[call])
    thin = slimfast.prune_channels(model, plan)
    assert thin.mask_token.shape[0] == thin.a.out_features == thin.more.in_features < 16
    thin(**call)
    assert "traced with 1 other calls too" in plan.explain()
    plan.save(tmp_path / "plan.json")
    again = slimfast.prune_channels(model, tmp_path / "plan.json")
    assert again.mask_token.shape == thin.mask_token.shape
    keeps = {
        group.name: slimfast.manifest(thin).keeps["a.weight"][0] for group in plan.graph if group.n == 16
    }
    thin.mask_token.requires_grad_(False)
    thin._forward = lambda m, x, mask=None: m.b(m.a(x).relu())
    with pytest.raises(SlimfastError, match="not the masked original"):
        slimfast.verify(model, thin, plan.graph, keeps, x)


def test_a_plan_takes_a_graph_and_traces_nothing(monkeypatch):
    graph = trace_channels(ALONE, X)
    expected = slimfast.plan(ALONE, X, params=0.5)
    monkeypatch.setattr("slimfast.plans.planning.trace_channels", None)
    assert slimfast.plan(ALONE, graph=graph, params=0.5).to_json() == expected.to_json()
    with pytest.raises(SlimfastError, match="graph: expected a model"):
        slimfast.plan(masking(), graph=graph, params=0.5)
    with pytest.raises(TypeError, match="plan: expected an example"):
        slimfast.plan(ALONE, params=0.5)
    with pytest.raises(ValueError, match="got both"):
        slimfast.plan(ALONE, graph=graph, outputs=[0], params=0.5)


def test_a_training_forward_that_cannot_be_looked_at_is_told():
    class Refuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x, targets=None):
            if self.training and targets is None:
                raise ValueError("no targets")
            return self.b(self.a(x).relu())

    with pytest.warns(UserWarning, match="also="):
        plan = slimfast.plan(Refuses().eval(), torch.randn(2, 6), params=0.6)
    assert "the training forward was not looked at: " in plan.explain()
