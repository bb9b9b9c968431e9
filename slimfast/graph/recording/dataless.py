"""Tensors without data in the place of those that a network holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from slimfast.errors import SlimfastError, UnsupportedGraph
from slimfast.graph.recording.module_copies import deep_copy
from slimfast.graph.recording.network import Network

TensorMode = Literal["meta", "fake", "real"]


def dataless_copy(network: Network, tensors: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Copy the module tree with tensors without data; running or editing it leaves the network as it was.

    ``tensors``: what stands for each tensor, :func:`dataless_tensors` unless given. Tied tensors stay tied.
    """
    try:
        return deep_copy(network, dict(dataless_tensors(network) if tensors is None else tensors))
    except SlimfastError as error:
        raise UnsupportedGraph(str(error)) from error


def dataless_tensors(
    network: Network, tensor_mode: TensorMode = "meta", fake_mode: FakeTensorMode | None = None
) -> dict[int, Tensor]:
    """Make what stands in a copy for each tensor that a module holds, by the tensor's identity.

    "meta" puts them on the meta device, "fake" makes them fake tensors of ``fake_mode``; "real" shares the
    parameters and copies the buffers.
    """
    made: dict[int, Tensor] = {}
    for module in network.modules.values():
        for held in (module._parameters, module._buffers, vars(module)):
            for tensor in held.values():
                if isinstance(tensor, Tensor) and id(tensor) not in made:
                    made[id(tensor)] = dataless(tensor, tensor_mode, fake_mode)
    return made


def dataless(tensor: Tensor, tensor_mode: TensorMode, fake_mode: FakeTensorMode | None) -> Tensor:
    """Make what stands for one tensor, as :func:`dataless_tensors` says."""
    if tensor_mode == "real":
        return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
    if fake_mode is None:
        if tensor.is_contiguous():
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        else:
            empty = torch.empty_like(tensor.detach(), device="meta")
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake: Tensor = FakeTensor(fake_mode, empty, torch.device("cpu"))
    if isinstance(tensor, nn.Parameter):
        # what nn.Parameter makes of a tensor of a class of its own, without its detach, a slow call here
        fake.requires_grad_(tensor.requires_grad)
        fake._is_param = True
    return fake


@contextmanager
def quiet() -> Iterator[None]:
    """Silence fake tensors, which log every operation that fails before the error that says so is raised."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before
