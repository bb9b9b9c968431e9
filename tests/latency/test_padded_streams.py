"""Latency tables of residual streams that are padded: what is left of them depends on which units stay."""

from __future__ import annotations

import pytest
import torch
from support.synthetic_device import Device
from torch import nn

import slimfast
from benchmarks.accuracy.networks.resnet_cifar import resnet20
from slimfast.errors import SlimfastError
from slimfast.latency import latency_table


def test_a_padded_stream_is_measured_and_planned():
    torch.manual_seed(0)
    model, example = resnet20().eval(), torch.randn(1, 3, 32, 32)
    graph = slimfast.trace_channels(model, example)
    device = Device()
    table = latency_table(graph, model, example, measure=device)
    plan = slimfast.plan(model, example, graph=graph, latency=0.5, latency_table=table)
    thin = slimfast.prune_channels(model, plan)
    assert device(thin, example) <= 0.5 * device(model, example)


def test_a_piece_that_cannot_run_is_named():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    example = torch.randn(2, 4)
    graph = slimfast.trace_channels(model, example)

    def fails(module: nn.Module, given: object) -> float:
        raise RuntimeError("out of bounds\nmore lines")

    words = r"latency: 0 \(.*\) cannot be measured alone .*out of bounds"
    with pytest.raises(SlimfastError, match=words) as caught:
        latency_table(graph, model, example, measure=fails)
    assert "\n" not in str(caught.value)
