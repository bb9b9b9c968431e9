"""Copies of a network with all of its data, for forwards that write to what they have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from slimfast.graph.recording.forward import PROCESS_LOCK
from slimfast.graph.recording.module_copies import copy_network
from slimfast.graph.recording.network import Network


@contextmanager
def copied_with_data(network: Network) -> Iterator[Network]:
    """Copy a network for a recording in training mode, which may write to parameters.

    Random numbers that are drawn meanwhile are given back.
    """
    devices = sorted({t.device.index for t in network.tensors.values() if t.device.type == "cuda"})
    with PROCESS_LOCK, torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield Network.of(copy_network(network, {}))
