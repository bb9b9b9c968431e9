"""Repair from activations: each layer solved as the thin network runs, from what it gets to what it got."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, IntArray
from slimfast.calibration.consumers import Consumer, consumers_of, kept_variables
from slimfast.calibration.forward import first_sample, joined, run, running, watched
from slimfast.calibration.moments import Calibration
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.pruning.repair.least_squares import solve, worst
from slimfast.pruning.repair.report import Fit, RepairReport

# Positions of each layer's input that the least squares see: at least so many, and so many per variable.
POSITIONS = 8192
POSITIONS_PER_VARIABLE = 4
# Bytes of the wide network's activations held at once; more layers are repaired in several passes.
HELD_BYTES = 1 << 30
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def repair_from_activations(
    model: nn.Module,
    thin: nn.Module,
    graph: ChannelGraph,
    keeps: Mapping[str, IntArray],
    calibration: Calibration,
    *,
    damping: float = 0.0,
) -> RepairReport:
    """Repair ``thin``, ``model`` cut to ``keeps``, in place from what both see of the calibration's inputs.

    The thin network runs once on all samples together. Each layer that reads a channel group is solved when
    it is reached, from what it gets behind the layers repaired before it, towards what the wide network's
    layer got: the error that has built up is met again at each layer, residual streams included (sequential
    as in He, Zhang and Sun, ICCV 2017, "Channel Pruning"). Batch norms take the mean and variance of what
    reaches them. The damping pulls towards the plain cut and is chosen, from ``damping`` upwards, by the
    error in the layer's output on a quarter of the positions.
    """
    consumers, left = consumers_of(model, graph)
    args = joined(calibration.batches)
    kept = Cut(graph, keeps).kept_indices
    calls, with_norm = _survey(model, consumers, first_sample(calibration.batches))
    for consumer in consumers:
        if calls.get(consumer.weight, 0) != 1:
            times = calls.get(consumer.weight, 0)
            left[consumer.weight] = f"{consumer.module} is called {times} times as a module, not once"
    usable = [consumer for consumer in consumers if consumer.weight not in left]
    tensors = named_tensors(model)
    fits: dict[str, Fit] = {}
    norms: set[str] = set()
    for part in _passes(usable):
        wide = _wide_columns(model, part, args)
        with running(thin) as (network, _):
            solvers = {
                consumer.weight: _Solver(
                    consumer,
                    network.get_submodule(consumer.module),
                    wide.pop(consumer.weight),
                    tensors[consumer.weight],
                    tensors.get(f"{consumer.module}.bias"),
                    kept_variables(consumer, kept(consumer.axis), kept(consumer.outputs)),
                    kept(consumer.outputs),
                    centred=consumer.weight in with_norm,
                    damping=damping,
                    fits=fits,
                )
                for consumer in part
            }
            with watched(network, part, solvers), _measuring_norms(network, thin, norms):
                run(network, args, "repair")
    return RepairReport("activations", fits, tuple(sorted(norms)), left)


class _Solver:
    """Solves one layer of the thin network when it is about to read, and writes its weights."""

    def __init__(
        self,
        consumer: Consumer,
        module: nn.Module,
        wide: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        alive: tuple[IntArray, IntArray],
        outputs: IntArray,
        *,
        centred: bool,
        damping: float,
        fits: dict[str, Fit],
    ) -> None:
        self._consumer = consumer
        self._module: Any = module
        self._wide = wide
        self._weight = consumer.matrix(weight.detach().double())
        self._bias = None if bias is None else bias.detach().double()
        self._blocks, self._variables = (torch.from_numpy(a).to(weight.device) for a in alive)
        self._outputs = torch.from_numpy(outputs).to(weight.device)
        self._centred = centred or bias is not None
        self._damping = damping
        self._fits = fits

    def __call__(self, columns: Tensor) -> None:
        """Solve from columns (L', positions) of the thin layer, with the wide one's held at the same."""
        blocks = len(self._blocks)
        a = _picked(columns, self._wide.shape[1]).double().reshape(blocks, -1, self._wide.shape[1])
        b = self._wide.double().reshape(self._consumer.blocks, -1, self._wide.shape[1])[self._blocks]
        weight = self._weight[self._blocks]
        new, shift, fits = [], [], []
        for i in range(blocks):
            repaired, mean, fit = solve(
                a[i], b[i], self._variables, weight[i], centred=self._centred, damping=self._damping
            )
            new.append(repaired)
            shift.append(mean)
            fits.append(fit)
        per_block = self._weight.shape[1]
        alive = (
            (self._outputs.reshape(blocks, -1) % per_block) if len(self._weight) > 1 else self._outputs[None]
        )
        matrix = torch.stack([w[rows] for w, rows in zip(new, alive, strict=True)])
        self._module.weight.copy_(self._consumer.weight_of(matrix, self._module.weight))
        if self._bias is not None:
            moved = torch.cat([m[rows] for m, rows in zip(shift, alive, strict=True)])
            self._module.bias.copy_(self._bias[self._outputs] + moved)
        self._fits[self._consumer.weight] = worst(fits)


def _passes(consumers: Sequence[Consumer]) -> list[list[Consumer]]:
    """Part the consumers, in order, where the wide network's activations would exceed ``HELD_BYTES``."""
    parts: list[list[Consumer]] = []
    used = 0
    for consumer in consumers:
        need = 4 * consumer.length * _positions(consumer)
        if not parts or used + need > HELD_BYTES:
            parts.append([])
            used = 0
        parts[-1].append(consumer)
        used += need
    return parts


def _positions(consumer: Consumer) -> int:
    return max(POSITIONS, POSITIONS_PER_VARIABLE * consumer.length)


def _picked(columns: Tensor, count: int) -> Tensor:
    """Pick ``count`` of the columns, the same ones in a matrix of as many columns, in order."""
    total = columns.shape[1]
    if total <= count:
        return columns
    generator = torch.Generator().manual_seed(total)
    index = torch.randperm(total, generator=generator, device="cpu")[:count].sort().values
    return columns.index_select(1, index.to(columns.device))


def _wide_columns(model: nn.Module, part: Sequence[Consumer], args: Arguments) -> dict[str, Tensor]:
    """Record what the wide network's layers read, at the positions the least squares see."""
    wide: dict[str, Tensor] = {}

    def keep(consumer: Consumer, columns: Tensor) -> None:
        wide[consumer.weight] = _picked(columns, _positions(consumer)).clone()

    with running(model) as (network, _):
        see = {consumer.weight: functools.partial(keep, consumer) for consumer in part}
        with watched(network, part, see):
            run(network, args, "repair")
    return wide


def _survey(
    model: nn.Module, consumers: Sequence[Consumer], args: Arguments
) -> tuple[dict[str, int], set[str]]:
    """Count each consumer's calls in a forward, and find whose output goes right into a batch norm."""
    calls: dict[str, int] = {}
    followed: set[str] = set()
    made: dict[int, tuple[str, Tensor]] = {}

    def made_by(weight: str, module: nn.Module, inputs: Any, output: Any) -> None:
        calls[weight] = calls.get(weight, 0) + 1
        made.clear()
        if isinstance(output, Tensor):
            made[id(output)] = (weight, output)

    def taken(module: nn.Module, inputs: Any) -> None:
        if inputs and id(inputs[0]) in made:
            followed.add(made[id(inputs[0])][0])

    with running(model) as (network, _), ExitStack() as hooks:
        for consumer in consumers:
            module = network.get_submodule(consumer.module)
            hooks.callback(module.register_forward_hook(functools.partial(made_by, consumer.weight)).remove)
        for norm in _norms(network).values():
            hooks.callback(norm.register_forward_pre_hook(taken).remove)
        run(network, args, "repair")
    return calls, followed


def _norms(network: nn.Module) -> dict[str, Any]:
    """Find the batch norms that keep running statistics, by path."""
    return {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, _BATCH_NORM) and module.running_mean is not None
    }


@contextmanager
def _measuring_norms(network: nn.Module, thin: nn.Module, seen: set[str]) -> Iterator[None]:
    """Let the batch norms of ``network`` take the mean and variance of their input before they use it.

    Those of ``thin`` get the same with them, and ``seen`` their names.
    """
    own = _norms(thin)

    def measure(path: str, module: Any, inputs: Any) -> None:
        x = inputs[0]
        if x.numel() > x.shape[1]:
            variance, mean = torch.var_mean(x.float(), dim=[d for d in range(x.dim()) if d != 1])
            for norm in (module, own[path]):
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
            seen.add(path)

    with ExitStack() as hooks:
        for path, norm in _norms(network).items():
            hooks.callback(norm.register_forward_pre_hook(functools.partial(measure, path)).remove)
        yield
