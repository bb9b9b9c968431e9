"""Run a network in another precision than its own, with the random numbers of another run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from slimfast.arrays import Arguments
from slimfast.graph.recording.forward import PROCESS_LOCK
from slimfast.graph.recording.inputs import cloned, map_leaves, map_tensors
from slimfast.graph.recording.module_copies import copy_network, named_tensors
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.shared_functions import a_copy_runs
from slimfast.pruning.random_draws import Draws, is_random
from slimfast.pruning.value_choices import Choices

_DOUBLE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
# What an operation without a kernel for float64 is run in.
_COARSER = (torch.float32, torch.bfloat16)


class Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A precision: every operation runs in float64, whatever the code casts to, or for float32 as it is.

    ``operations`` counts them. ``coarse``: those that have no kernel in that precision, with the one they
    were run in. ``choices``: what is chosen by values. ``refused``: why a finer precision was not taken.
    """

    def __init__(self, dtype: torch.dtype, draws: Draws, choices: Choices, *, refused: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.refused = dtype, refused
        self.draws, self.choices = draws, choices
        self.operations = 0
        self.coarse: dict[str, torch.dtype] = {}

    def promote(self, value: Any) -> Any:
        """Bring a floating tensor to the precision of this run."""
        if not isinstance(value, Tensor):
            return value
        if self.dtype == torch.float64:
            return value.to(_DOUBLE.get(value.dtype, value.dtype))
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

    @property
    def coarsest(self) -> torch.dtype:
        """The coarsest precision that anything was computed in."""
        return max([self.dtype, *self.coarse.values()], key=lambda dtype: torch.finfo(dtype).eps)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that no compiler runs here: the wrapper that keeps it out imports all of the compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        kwargs = dict(kwargs or {})
        name = func._schema.name.replace("::", ".")
        if self.dtype == torch.float64:
            if kwargs.get("dtype") in _DOUBLE:
                kwargs["dtype"] = _DOUBLE[kwargs["dtype"]]
            if not func._schema.is_mutable:
                args, kwargs = map_leaves(tuple(args), self.promote), map_leaves(kwargs, self.promote)
        if is_random(func, args, kwargs):
            output = self.draws.run(func, args, kwargs)
        else:
            output = self.choices.run(func, name, args, kwargs, self._computed)
        return map_leaves(output, self.promote) if self.dtype == torch.float64 else output

    def _computed(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation, in a coarser precision where it has no kernel for this one."""
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            if self.dtype != torch.float64 or func._schema.is_mutable:
                raise
        failures = []
        for dtype in _COARSER:
            try:
                output = _coarser(func, args, kwargs, dtype)
            except (RuntimeError, NotImplementedError) as error:
                failures.append(error)
            else:
                self.coarse[name] = dtype
                return output
        # The finest one's is about the sizes, where that of float64 may speak of the dtype alone.
        raise failures[0]


def _coarser(func: Any, args: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> Any:
    """Run an operation in a coarser precision."""

    def lower(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float64 else value

    asked = {"dtype": dtype} if kwargs.get("dtype") == torch.float64 else {}
    return func(*map_leaves(tuple(args), lower), **{**map_leaves(kwargs, lower), **asked})


def run_copy(
    module: nn.Module,
    inputs: Arguments,
    precision: Precision,
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
