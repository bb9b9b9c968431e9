"""Labels followed through a recording: axes have the lengths of the tensors, reasons are counted once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimfast.graph.propagation.axis_labels import FIXED, AxisLabels, fixed_axis
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.follow import propagate
from slimfast.graph.propagation.reasons import FIXED_LENGTH, Cause, Causes, Reason
from slimfast.graph.recording.forward import record
from slimfast.graph.recording.network import Network


def _propagated(model: nn.Module, *args: Tensor) -> Propagation:
    network = Network.of(model.eval())
    return propagate(network, record(network, args, {}), args, {})


class _Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(3, 8, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


FUNCTIONS = {
    "slices of fixed and free axes": lambda x: x[:, 2:6, 1:3],
    "steps": lambda x: x[..., ::2],
    "pools": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "windows": lambda x: F.unfold(x, 2).unfold(2, 2, 2),
    "pads": lambda x: F.pad(x, (1, 2, 0, 0, 1, 1)),
    "crops": lambda x: F.pad(x, (-1, 0)),
    "statistics": lambda x: torch.var_mean(x, (2, 3), keepdim=True)[0],
    "batch statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "group statistics": lambda x: F.group_norm(x, 4),
    "selections": lambda x: x[:, torch.tensor([0, 3])][:, :, 1],
    "the largest": lambda x: x.topk(2, 1)[0] + x.argmax(1, keepdim=True),
    "gates": lambda x: F.glu(x, 2),
    "parts": lambda x: torch.cat(x.split([1, 3], 2)[::-1], 2),
    "repeated": lambda x: x.repeat(1, 1, 2, 3),
    "blocks": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 4),
    "frequencies": lambda x: torch.fft.rfft2(x).real,
    "another shape": lambda x: x.reshape(2, 4, 2, 16).transpose(1, 2).flatten(2),
    "stacked": lambda x: torch.stack([x, x]).unbind(1)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_axes_are_as_long_as_the_tensors(name):
    flow = _propagated(_Calls(FUNCTIONS[name]), torch.zeros(2, 3, 4, 4))
    assert len(flow.calls) > 1
    for traced in flow.calls:
        for ref, axes in zip(traced.call.outputs, traced.outputs, strict=True):
            assert tuple(map(len, axes)) == ref.shape, traced.call.op


def test_a_fixed_axis_has_a_reason_and_no_labels():
    flow = _propagated(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2)), torch.zeros(2, 3, 6, 6))
    axes = [axis for traced in flow.calls for output in traced.outputs for axis in output]
    assert {axis.labels.shape[1] > 0 for axis in axes if axis.fixed} == {False}
    assert {axis.labels.shape[1] > 0 for axis in axes if not axis.fixed} == {True}


def test_what_runs_in_training_only_is_followed_apart():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.auxiliary = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(y) + self.auxiliary(y) if self.training else self.last(y)

    flow = _propagated(Two(), torch.zeros(1, 4))
    assert [traced.call.module for traced in flow.calls] == ["first", "last"]
    assert flow.labels.roles["auxiliary.weight", 1] == "consumer"
    own, read = (flow.labels.tensors[name].axes for name in ("first.weight", "auxiliary.weight"))
    assert flow.labels.partition.meet(own[0].labels, read[1].labels)


def test_parts_of_a_fixed_axis_keep_its_reason():
    cause = Cause(7, Reason.NO_RULE, "layer", "aten.fft")
    axis = fixed_axis(cause, 6)
    assert [len(part) for part in (axis[1:4], axis.repeated(2), axis.of_length(9))] == [3, 12, 9]
    assert {part.reason for part in (axis[1:4], axis.repeated(2), axis.of_length(9))} == {cause}
    free = AxisLabels(np.array([[1], [2]]))
    assert free.repeated(2).labels.ravel().tolist() == [1, 2, 1, 2]
    assert FIXED.reason is FIXED_LENGTH
    assert not free.fixed


def test_a_cause_is_counted_once_for_each_module_and_wording():
    causes = Causes()
    first = causes.add(Reason.MIXES, "a", "aten.relu")
    others = [causes.add(Reason.MIXES, "a", "aten.mm"), causes.add(Reason.MIXES, "b", "aten.relu")]
    assert causes.add(Reason.MIXES, "a", "aten.relu") is first
    # a sentence without the operation reads the same wherever it arose in a module
    assert causes.add(Reason.LAYER_NORM, "a", "aten.layer_norm") is causes.add(
        Reason.LAYER_NORM, "a", "aten.x"
    )
    assert [first.number, *(other.number for other in others)] == [2, 3, 4]
    assert causes[3] is others[0]
    assert str(first) == "aten.relu mixes along it at a"
    assert str(causes[1]) == "its length is fixed"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_can_be_told(reason):
    text = Cause(2, reason, "layer", "aten.mm", "7").text
    assert text
    assert not {"{", "}"} & set(text)
