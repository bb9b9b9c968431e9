"""Latency tables of residual streams that are padded: what is left of them depends on which units stay."""

from __future__ import annotations

import torch
from support.synthetic_device import Device

import slimfast
from benchmarks.accuracy.networks.resnet_cifar import resnet20
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
