"""Proving that a thin network computes what the original does with the removed units masked to zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimfast.arrays import Arguments, IntArray
from slimfast.errors import SlimfastError, one_line
from slimfast.graph.channel_graph import Axis, ChannelGraph
from slimfast.graph.cutting.cut import Cut, select_indices
from slimfast.graph.recording.forward import PROCESS_LOCK, tensors_in
from slimfast.graph.recording.inputs import arguments, cloned, map_leaves, map_tensors
from slimfast.graph.recording.module_copies import copy_network, named_tensors
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.shared_functions import a_copy_runs
from slimfast.pruning.closeness import difference, rounding
from slimfast.pruning.training_forward import compare_training
from slimfast.wrappers import unwrapped

# Networks of more parameters than this are compared in float32, for float64 copies of them would not fit.
_FLOAT64_ELEMENTS = 1 << 28

# Of no weight beside any other, and its square is a number in float32 yet.
_NEARLY_ZERO = 1e-18
_DOUBLE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared and how close it came; the weights of all groups were compared too, bit for bit.

    ``max_error``: the largest difference in an output as a share of that output's largest absolute value;
    ``tolerance``: what rounding in ``dtype`` explains. ``compared``: the groups whose cut was run.
    ``inexact``: groups left whole in that run because removing their units is not masking them, with the
    reason. ``training``: why the shapes of the training forward were not compared; None where they were.

    Example:
        print(slimfast.verify(model, thin, graph, keeps).max_error)
    """

    max_error: float
    tolerance: float
    dtype: str
    compared: tuple[str, ...]
    inexact: Mapping[str, str]
    training: str | None = None


def verify(
    model: nn.Module, thin: nn.Module, graph: ChannelGraph, keeps: Mapping[str, IntArray], example: Any = None
) -> Verification:
    """Compare ``thin`` with ``model`` whose removed units are masked, on ``example`` or on inputs made up.

    Every thin tensor must be the kept slice of the original, bit for bit. Then both run in eval mode, in
    float64 where the model allows it, and their outputs must agree to rounding. In the masked original the
    removed units' slices of every parameter are zero, in the weights that make them and in those that read
    them (next to zero where that is no number). In training mode both must return the same shapes, as
    recordings on tensors without data have them. Modules and random number generators stay as they are.

    Args:
        model: The original.
        thin: What was pruned from it.
        graph: Its groups, from :func:`slimfast.trace_channels`.
        keeps: The sorted units that each group keeps, by its name; a group that is not named keeps all.
        example: A tensor, a tuple or a dict of the model's arguments.

    Returns:
        What was compared and how close it came.

    Raises:
        SlimfastError: Naming the first tensor that is not the slice, the first module whose output disagrees,
            or what the thin network does in training that the original does not.

    Example:
        found = slimfast.verify(model, thin, graph, {"layer1.0.conv1": np.arange(32)})
    """
    return verify_cut(Network.of(unwrapped(model)), unwrapped(thin), Cut(graph, keeps), example)


def verify_cut(network: Network, thin: nn.Module, cut: Cut, example: Any = None) -> Verification:
    """Compare ``thin`` with a network after a cut, as :func:`verify` does."""
    _check_tensors(network, thin, cut)
    inexact = {group.name: group.inexact for group in cut.narrowed_groups if group.inexact is not None}
    exact = cut.without(inexact)
    whole_thin = Network.of(thin)
    if inexact:
        thin = exact.thin_copy(network, share=True)
    inputs = cut.graph.inputs.example() if example is None else arguments(example)
    pair = _Pair(network, _masked(network, exact), thin, exact, inputs)
    dtype, wide_output, operations = pair.run_masked()
    if not _is_finite(wide_output):
        # A weight divided by its norm is 0 / 0 where it is masked.
        nearly = replace(pair, masked=_masked(network, exact, fill=_NEARLY_ZERO))
        again = nearly.run_masked()
        if _is_finite(again[1]):
            pair, (dtype, wide_output, operations) = nearly, again
    thin_output = pair.run_thin(dtype)
    tolerance = rounding(network.model, dtype, operations)
    max_error = difference(wide_output, thin_output)
    if not max_error <= tolerance:
        raise SlimfastError(
            f"verify: {pair.blame(dtype, tolerance)} (output off by {max_error:.2g} of its size)"
        )
    names = tuple(group.name for group in exact.narrowed_groups)
    untried = compare_training(network, whole_thin, inputs)
    return Verification(max_error, tolerance, str(dtype).removeprefix("torch."), names, inexact, untried)


def _check_tensors(network: Network, thin: nn.Module, cut: Cut) -> None:
    """Check that every tensor of ``thin`` is the kept slice of the network's, bit for bit."""
    thin_tensors = named_tensors(thin)
    for name, wide in network.tensors.items():
        expected = select_indices(wide.detach(), cut.tensor_cuts.get(name, {}))
        got = thin_tensors.get(name)
        if got is None or got.shape != expected.shape or got.dtype != expected.dtype:
            shown = "no such tensor" if got is None else f"{got.dtype} of shape {tuple(got.shape)}"
            raise SlimfastError(
                f"verify: {name}: expected {expected.dtype} of shape {tuple(expected.shape)}, got {shown}"
            )
        if not wide.is_meta and not torch.equal(_bits(expected), _bits(got.detach())):
            raise SlimfastError(f"verify: {name}: expected the kept slice of the original, got other values")


def _bits(tensor: Tensor) -> Tensor:
    """View a tensor's memory, so that NaN equals itself and -0 differs from 0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _is_finite(output: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_in(output))


def _masked(network: Network, cut: Cut, *, fill: float = 0.0) -> nn.Module:
    """Copy a network with the removed slices of its parameters set to ``fill``, sharing the other tensors."""
    tensors: dict[str, Tensor] = {}
    for name, dims in cut.tensor_cuts.items():
        if name in cut.graph.parameters:
            masked = network.tensors[name].detach().clone()
            for dim, index in dims.items():
                gone = torch.ones(masked.shape[dim], dtype=torch.bool, device="cpu")
                gone[torch.from_numpy(index)] = False
                masked.index_fill_(dim, gone.nonzero()[:, 0].to(masked.device), fill)
            tensors[name] = masked
    return copy_network(network, tensors, share=True)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The masked original and the thin network, and what both are called with."""

    network: Network
    masked: nn.Module
    thin: nn.Module
    cut: Cut
    inputs: Arguments

    def run_masked(self) -> tuple[torch.dtype, Any, int]:
        """Run the masked network: the dtype that works (float64 first), the output, and the operations."""
        elements = sum(tensor.numel() for tensor in self.network.tensors.values())
        failure = None
        for dtype in (torch.float64, torch.float32) if elements <= _FLOAT64_ELEMENTS else (torch.float32,):
            counter = _Precision(dtype)
            try:
                return dtype, _run(self.masked, self.inputs, counter), counter.operations
            except Exception as error:
                failure = error
        assert failure is not None, "at least one dtype was tried"
        raise SlimfastError(f"verify: the original's forward fails: {one_line(failure)}") from failure

    def run_thin(self, dtype: torch.dtype) -> Any:
        try:
            return _run(self.thin, self.inputs, _Precision(dtype))
        except Exception as error:
            raise SlimfastError(f"verify: the thin network's forward fails: {one_line(error)}") from error

    def blame(self, dtype: torch.dtype, tolerance: float) -> str:
        """Name the module whose output is the first to disagree, from both networks run again."""
        kept = self.cut.kept_indices
        wide: dict[tuple[str, int], Tensor] = {}

        def keep(call: tuple[str, int], output: Tensor) -> None:
            axes = self._axes(call[0], tuple(output.shape))
            if axes is not None:
                wide[call] = select_indices(
                    output, {d: kept(axis) for d, axis in enumerate(axes) if axis.places}
                )

        def compare(call: tuple[str, int], output: Tensor) -> None:
            if call in wide and not found and not difference(wide[call], output) <= tolerance:
                found.append(call[0])

        found: list[str] = []
        for module, watch in ((self.masked, keep), (self.thin, compare)):
            _run(module, self.inputs, _Precision(dtype), watch)
        where = found[0] if found else "the network itself"
        return f"the thin network is not the masked original: the first output to disagree is {where}'s"

    def _axes(self, module: str, shape: tuple[int, ...]) -> tuple[Axis, ...] | None:
        """Find the axes of a module's output: those of the last operation inside it that has this shape."""
        for operation in reversed(self.cut.graph.operations):
            if operation.module == module or operation.module.startswith(f"{module}."):
                for axes in operation.outputs:
                    if tuple(axis.length for axis in axes) == shape:
                        return axes
        return None


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A precision: every operation runs in float64, whatever the code casts to, or for float32 as it is."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.operations = 0

    def promote(self, value: Any) -> Any:
        """Bring a floating tensor to the precision of this run."""
        if not isinstance(value, Tensor):
            return value
        if self.dtype == torch.float64:
            return value.to(_DOUBLE.get(value.dtype, value.dtype))
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        kwargs = dict(kwargs or {})
        if self.dtype == torch.float64:
            if kwargs.get("dtype") in _DOUBLE:
                kwargs["dtype"] = _DOUBLE[kwargs["dtype"]]
            if not func._schema.is_mutable:
                args, kwargs = map_leaves(tuple(args), self.promote), map_leaves(kwargs, self.promote)
            return map_leaves(func(*args, **kwargs), self.promote)
        return func(*args, **kwargs)


def _run(
    module: nn.Module,
    inputs: Arguments,
    precision: _Precision,
    watch: Callable[[tuple[str, int], Tensor], None] | None = None,
) -> Any:
    """Run a copy of ``module`` in eval mode and that precision."""
    network = Network.of(module)
    promoted = {name: precision.promote(tensor.detach()) for name, tensor in network.tensors.items()}
    copied = copy_network(network, promoted).eval()
    # Buffers that a forward writes to must not be the original's.
    for part in copied.modules():
        part._buffers.update({n: b.clone() for n, b in part._buffers.items() if b is not None})
    devices = {tensor.device for tensor in named_tensors(copied).values()}
    device = devices.pop() if len(devices) == 1 else None

    def move(leaf: Tensor) -> Any:
        return precision.promote(leaf.to(device) if device is not None else leaf)

    args, kwargs = map_tensors(cloned(inputs[0]), move), map_tensors(cloned(inputs[1]), move)
    cuda = sorted({d.index for d in devices | {device} if d is not None and d.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(PROCESS_LOCK)
        stack.enter_context(torch.random.fork_rng(cuda))
        torch.manual_seed(0)
        stack.enter_context(torch.no_grad())
        stack.enter_context(a_copy_runs(network))
        if watch is not None:
            stack.enter_context(_watched(copied, watch))
        stack.enter_context(precision)
        return copied(*args, **kwargs)


@contextmanager
def _watched(module: nn.Module, watch: Callable[[tuple[str, int], Tensor], None]) -> Iterator[None]:
    """Call ``watch((path, earlier calls), output)`` after each submodule that returns one tensor."""
    calls: dict[str, int] = {}

    def hook_of(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls[path] = calls.get(path, -1) + 1
            if isinstance(output, Tensor):
                watch((path, calls[path]), output)

        return hook

    handles = [part.register_forward_hook(hook_of(path)) for path, part in module.named_modules() if path]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
