"""A plan that cannot be made says what stays whole, why, and what may help, in one line."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net
from torch import nn

import slimfast
from slimfast.errors import SlimfastError

X = torch.randn(4, 12)


@torch.library.custom_op("lib_of_plans::gate", mutates_args=())
def gate(x: torch.Tensor) -> torch.Tensor:
    """Work element by element, as slimfast cannot know."""
    return torch.tanh(x)


@gate.register_fake
def _(x):
    return torch.empty_like(x)


def _said(model, example=X, **wanted):
    with pytest.raises(SlimfastError) as caught:
        slimfast.plan(model, example, **wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _with_an_unknown_operation():
    def forward(self, x):
        return self.c(gate(self.b(torch.relu(self.a(x)))))

    return Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 64), c=nn.Linear(64, 3)).eval()


def test_an_operation_without_a_rule_names_the_remedy():
    said = _said(_with_an_unknown_operation(), params=0.3)
    assert "parameters stay whole: lib_of_plans.gate" in said
    assert "what may help: " in said
    assert "slimfast.register_rule('lib_of_plans.gate', ...), where another operation is like it" in said


def test_a_network_without_groups_names_the_remedy_too():
    def forward(self, x):
        return self.b(gate(self.a(x)))

    said = _said(Net(forward, a=nn.Linear(12, 8), b=nn.Linear(8, 3)).eval(), params=0.5)
    assert "no channel group that can be cut: lib_of_plans.gate" in said
    assert said.endswith(
        "what may help: outputs=, where not all that is returned has to stay, "
        "slimfast.register_rule('lib_of_plans.gate', ...), where another operation is like it"
    )


def test_the_remedy_works():
    with slimfast.register_rule("lib_of_plans::gate", like="aten.tanh"):
        plan = slimfast.plan(_with_an_unknown_operation(), X, params=0.3)
    assert plan.cost_after.params <= 0.3 * plan.cost_before.params


def test_the_advice_for_a_plain_tensor_works():
    """Tables of positions that a class keeps as plain tensors hold its stream."""

    def forward(self, x):
        return self.b(torch.relu(self.a(x) + self.table))

    model = Net(forward, a=nn.Linear(12, 40), b=nn.Linear(40, 3)).eval()
    object.__setattr__(model, "table", torch.rand(1, 40))
    said = _said(model, params=0.5)
    assert "table is a plain tensor of the model: make it a buffer (register_buffer)" in said
    table = model.__dict__.pop("table")
    model.register_buffer("table", table, persistent=False)
    thin = slimfast.slim(model, X, params=0.5)
    assert thin.table.shape == (1, thin.a.out_features)
    assert thin.a.out_features < 40


def _two_calls():
    def forward(self, x, mask=None):
        h = self.a(x)
        if mask is not None:
            h = torch.where(mask[:, None], self.token, h)
        return self.b(torch.relu(h))

    return Net(forward, a=nn.Linear(12, 40), b=nn.Linear(40, 3), token=nn.Parameter(torch.randn(40))).eval()


def test_what_another_call_uses_is_explained_with_the_remedy_and_follows_it():
    """A mask token, which a pretraining uses alone, has the width of what it stands for."""
    model, other = _two_calls(), {"x": X, "mask": torch.tensor([True, False, True, False])}
    with pytest.warns(UserWarning, match=r"token is used by no forward .* as what a makes"):
        told = slimfast.plan(model, X, params=0.5).explain()
    assert (
        "the forward does not use it with this example; an example of a call that does, in also=, tells"
        in told
    )
    assert "token dim 0" in told
    thin = slimfast.slim(model, {"x": X}, params=0.5, also=[other])
    assert len(thin.token) == thin.a.out_features < 40
    assert thin(**other).shape == (4, 3)
    assert "does not use it" not in slimfast.plan(model, {"x": X}, params=0.5, also=[other]).explain()


def test_what_no_call_uses_can_be_deleted():
    """The last stage of an encoder, of which a decoder asks for the first alone (PSPNet)."""
    parts = {"a": nn.Linear(12, 40), "unused": nn.Linear(40, 200), "b": nn.Linear(40, 3)}
    model = Net(lambda self, x: self.b(torch.relu(self.a(x))), **parts).eval()
    said = _said(model, params=0.5)
    assert "the forward does not use it with this example (unused.weight" in said
    assert "(what no call uses can be deleted from the model)" in said
    del model.unused
    thin = slimfast.slim(model, X, params=0.5)
    assert sum(p.numel() for p in thin.parameters()) <= 0.5 * sum(p.numel() for p in model.parameters())


def test_multiples_and_excluded_groups_are_told():
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    said = _said(model, params=0.05, multiple_of=8, exclude=["0"])
    assert "1 group is left alone: excluded, or not measured" in said
    assert "what may help: a smaller multiple_of or min_width, fewer groups excluded" in said


def test_what_a_calibration_could_not_see_is_not_called_excluded():
    """A layer whose weight is used without a call of its module reads nothing that is measured."""
    parts = {"a": nn.Linear(12, 24), "b": nn.Linear(24, 16), "c": nn.Linear(16, 3)}
    hidden = lambda self, x: torch.relu(torch.vmap(lambda row: self.b.weight @ row)(torch.relu(self.a(x))))  # noqa: E731
    model = Net(lambda self, x: self.c(hidden(self, x)), **parts).eval()
    graph = slimfast.trace_channels(model, X)
    calibration = slimfast.calibrate(model, graph, [torch.randn(32, 12)])
    with pytest.raises(slimfast.SlimfastError) as caught:
        slimfast.plan(model, X, params=0.05, calibration=calibration)
    assert "group is left alone: not measured, for no module was called by whose weight" in str(caught.value)
    assert "excluded" not in str(caught.value)
