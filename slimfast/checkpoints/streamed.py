"""Networks that run while their weights stay in a checkpoint: each is read when a layer computes with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from slimfast.errors import SlimfastError
from slimfast.graph.recording.forward import PROCESS_LOCK
from slimfast.graph.recording.module_copies import copy_network
from slimfast.graph.recording.network import Network
from slimfast.storage.stored_tensors import Shelf, StoredTensor, entry_of
from slimfast.storage.weights import Weights

# Bytes of activations in memory, where nobody says otherwise.
MEMORY = 256 << 20
# Weights in memory beside those that one operation needs.
WEIGHTS = 256 << 20


def streamed_copy(model: nn.Module, weights: Weights, shelf: Shelf) -> nn.Module:
    """Copy a model in eval mode; the parameters stay in the checkpoint, in the dtypes that the model has.

    Buffers that the checkpoint holds are read, others are the model's own. Raises :class:`SlimfastError` for
    a tensor that the checkpoint has not, or has in another shape, and for values that nobody has.
    """
    network = Network.of(model)
    stored = stored_names(network, weights)
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.tensors.items():
        own = stored.get(name)
        if own is None:
            _check_own(name, tensor, weights)
            continue
        found = weights.info(own).shape
        if found != tuple(tensor.shape):
            raise SlimfastError(
                f"{weights.source}: {own}: expected shape {tuple(tensor.shape)}, got shape {found}"
            )
        if isinstance(tensor, nn.Parameter):
            tensors[name] = StoredTensor(entry_of(weights, own, tensor.dtype), shelf)
        else:
            tensors[name] = weights.load(own).to(tensor.dtype, copy=True)
    for name, tensor in network.plain_tensors():
        _check_own(name, tensor, weights)
    return copy_network(network, tensors).eval()


def stored_names(network: Network, weights: Weights) -> Mapping[str, str]:
    """Find the name under which a checkpoint has each tensor of a network: one of its names, if any."""
    return {network.tied.get(name, name): name for name in weights.infos}


def _check_own(name: str, tensor: Tensor, weights: Weights) -> None:
    """Refuse a tensor that is not stored, where the model has no values of it either."""
    if isinstance(tensor, nn.Parameter):
        raise SlimfastError(f"{weights.source}: {name}: expected a tensor of this name, got none")
    if tensor.is_meta:
        raise SlimfastError(
            f"{weights.source}: {name} is not stored and has no values in the model: its forward needs them; "
            f"build the model by slimfast.without_weights(), which leaves out its parameters alone"
        )


@contextmanager
def without_weights() -> Iterator[None]:
    """Build networks inside the block whose parameters have no values: those stay in a checkpoint.

    Buffers get theirs, unlike on the meta device: what a network computes for itself, such as the frequencies
    of rotary embeddings, no checkpoint holds, and a forward needs it.

    Returns:
        The block's context manager.

    Example:
        with slimfast.without_weights():
            model = LlamaForCausalLM(config)
        graph = slimfast.trace_channels(model, tokens)
        found = slimfast.calibrate_checkpoint("model.safetensors.index.json", model, graph, batches, "state")
    """
    register = nn.Module.register_parameter

    def without_values(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        held = module._parameters[name]
        if held is not None and not held.is_meta:
            empty = torch.empty_like(held.detach(), device="meta")
            module._parameters[name] = type(held)(empty, requires_grad=held.requires_grad)

    with PROCESS_LOCK:
        nn.Module.register_parameter = without_values  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]
