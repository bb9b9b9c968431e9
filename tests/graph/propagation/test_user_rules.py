"""Rules that users register for operations of their own."""

from __future__ import annotations

import pytest
import torch
from support.graph_cases import Net
from support.graph_helpers import members, reasons, summary
from torch import nn

import slimfast
from slimfast.errors import UnsupportedGraph
from slimfast.graph import trace_channels
from slimfast.graph.recording.op_registry import entry_of

_LIBRARY = torch.library.Library("slimfast_test", "DEF")
_LIBRARY.define("blank(Tensor x) -> Tensor")
_LIBRARY.define("described(Tensor x) -> Tensor")
_LIBRARY.define("weighted(Tensor x, Tensor table, Tensor? shift=None) -> Tensor")
_LIBRARY.define("pairs(Tensor x, int turns) -> (Tensor, Tensor)")
_LIBRARY.define("made_of_others(Tensor x) -> Tensor")
_LIBRARY.impl("blank", lambda x: x.clamp(min=0) * 2, "CPU")
_LIBRARY.impl("described", lambda x: x.clamp(min=0) * 2, "CPU")
_LIBRARY.impl("described", torch.empty_like, "Meta")
_LIBRARY.impl("weighted", lambda x, table, shift=None: x @ table.T + (0 if shift is None else shift), "CPU")
_LIBRARY.impl("weighted", lambda x, table, shift=None: x.new_empty(*x.shape[:-1], len(table)), "Meta")
_LIBRARY.impl("pairs", lambda x, turns: (x * turns, x.sum(-1)), "CPU")
_LIBRARY.impl("made_of_others", lambda x: x.relu().flip(-1), "CompositeImplicitAutograd")
OPS = torch.ops.slimfast_test

X = torch.randn(3, 8)


def _between(middle):
    torch.manual_seed(0)
    return Net(lambda self, x: self.b(middle(self.a(x))), a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()


@pytest.mark.parametrize("name", ["blank", "described"])
def test_an_operation_without_a_rule_freezes_and_one_like_another_does_not(name):
    model = _between(getattr(OPS, name))
    assert reasons(trace_channels(model, X))["a.weight", 0] == {f"slimfast_test.{name}"}
    with slimfast.register_rule(f"slimfast_test::{name}", like="aten.relu"):
        thin = slimfast.slim(model, X, params=0.6)
        assert thin.a.out_features == thin.b.in_features < 32
    assert reasons(trace_channels(model, X))["a.weight", 0] == {f"slimfast_test.{name}"}


def test_arguments_correspond_in_their_order_and_weights_have_their_roles():
    torch.manual_seed(0)

    def forward(self, x):
        return self.b(OPS.weighted(self.a(x), self.table, self.shift).relu())

    model = Net(forward, a=nn.Linear(8, 32), table=nn.Parameter(torch.randn(24, 32)),
                shift=nn.Parameter(torch.randn(24)), b=nn.Linear(24, 4)).eval()  # fmt: skip
    with slimfast.register_rule("slimfast_test.weighted", like="aten::linear"):
        graph = trace_channels(model, X)
        assert summary(graph) == {"a": ("channel", 32), "table": ("channel", 24)}
        assert set(members(graph["table"])) == {("table", 0), ("shift", 0), ("b.weight", 1)}
        thin = slimfast.slim(model, X, params=0.5)
        assert thin.table.shape == (thin.b.in_features, thin.a.out_features)


def _pairs(flow, call):
    """The first result has the axes of the operand, the second those but the last, which is summed over."""
    axes = flow.axes(call.arguments["x"])
    return [list(axes), list(axes[:-1])]


def test_a_rule_of_ones_own():
    torch.manual_seed(0)

    def forward(self, x):
        first, second = OPS.pairs(self.a(x), 3)
        return self.b(first) + second[:, None]

    model = Net(forward, a=nn.Linear(8, 32), b=nn.Linear(32, 4)).eval()
    assert not len(trace_channels(model, X))
    with slimfast.register_rule("slimfast_test::pairs", _pairs):
        assert summary(trace_channels(model, X)) == {"a": ("channel", 32)}
        assert slimfast.slim(model, X, params=0.6).a.out_features < 32


def test_a_composite_operation_keeps_its_rule():
    # decomposed, it flips the axis, which ties unit u to unit 31 - u of the next layer
    model = _between(OPS.made_of_others)
    assert members(trace_channels(model, X)["a"])["b.weight", 1] == list(range(31, -1, -1))
    frozen = lambda flow, call: [[flow.freeze(axis) for axis in flow.axes(call.arguments["x"])]]  # noqa: E731
    with slimfast.register_rule("slimfast_test::made_of_others", frozen):
        assert reasons(trace_channels(model, X))["a.weight", 0] == {
            "slimfast_test.made_of_others mixes along it"
        }
    assert members(trace_channels(model, X)["a"])["b.weight", 1] == list(range(31, -1, -1))


def test_a_wrong_rule_is_found_before_anything_is_cut():
    # the operation adds its operand to a table of all units: it cannot be cut with them
    def forward(self, x):
        return self.b(OPS.weighted(self.a(x), self.table))

    torch.manual_seed(0)
    model = Net(
        forward, a=nn.Linear(8, 32), table=nn.Parameter(torch.randn(32, 32)), b=nn.Linear(32, 4)
    ).eval()
    with (
        slimfast.register_rule(
            "slimfast_test::weighted", lambda flow, call: [flow.axes(call.arguments["x"])]
        ),
        pytest.raises((slimfast.SlimfastError, UnsupportedGraph)),
    ):
        slimfast.slim(model, X, params=0.9)


def test_a_second_rule_replaces_the_first_when_it_is_asked_to():
    first = slimfast.register_rule("slimfast_test::blank", like="aten.relu")
    with pytest.raises(ValueError, match=r"slimfast_test\.blank has a rule; replace=True replaces it"):
        slimfast.register_rule("slimfast_test::blank", like="aten.sigmoid")
    stays = lambda flow, call: [[flow.freeze(axis) for axis in flow.axes(call.arguments["x"])]]  # noqa: E731
    second = slimfast.register_rule("slimfast_test::blank", stays, replace=True)
    model = _between(OPS.blank)
    assert not len(trace_channels(model, X))
    second.remove()
    assert summary(trace_channels(model, X)) == {"a": ("channel", 32)}
    second.remove()
    assert summary(trace_channels(model, X)) == {"a": ("channel", 32)}
    first.remove()
    assert not len(trace_channels(model, X))


@pytest.mark.parametrize("name", ["aten::relu", "aten.linear", "aten::abs"])
def test_a_rule_of_pytorch_s_operations_is_not_replaced_by_accident(name):
    own = name.replace("::", ".")
    before = entry_of(own)
    with pytest.raises(ValueError, match="has a rule"):
        slimfast.register_rule(name, _pairs)
    slimfast.register_rule(name, _pairs, replace=True).remove()
    assert entry_of(own) is before


WRONG = [
    ({"operation": "slimfast_test::blank"}, "expected a rule or like=, got neither"),
    ({"operation": "slimfast_test::blank", "rule": _pairs, "like": "aten.relu"}, "got both"),
    ({"operation": "slimfast_test::absent", "like": "aten.relu"}, "is loaded, as 'mylib::gate', got 'slimf"),
    ({"operation": "relu", "like": "aten.relu"}, "got 'relu'"),
    ({"operation": "slimfast_test::", "like": "aten.relu"}, "got 'slimfast_test::'"),
    ({"operation": "slimfast_test::blank", "like": "aten.absent"}, "got 'aten.absent'"),
    ({"operation": "slimfast_test::blank", "like": "aten.fft_fft2"}, "that has a rule, got 'aten.fft_fft2'"),
    (
        {"operation": "slimfast_test::blank", "like": "aten.linear"},
        "take at least the 2 arguments of aten.linear",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_cannot_be_registered_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^register_rule: .*{message}"):
        slimfast.register_rule(**arguments)
    assert entry_of("slimfast_test.blank").rule is None


def test_a_rule_must_be_a_function():
    with pytest.raises(TypeError, match="expected a function, got str"):
        slimfast.register_rule("slimfast_test::blank", "aten.relu")
