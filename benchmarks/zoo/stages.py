"""What is done to each network, stage by stage; every function runs in a process of its own.

A stage is told before it starts and again when it has ended, so that what kills the process is blamed on the
right one.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import slimfast
from benchmarks.zoo.networks import build, classifier, two_samples
from slimfast.checkpoints.exporting import export
from slimfast.graph import ChannelGraph
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.propagation.reasons import Reason
from slimfast.graph.recording.inputs import arguments, tensors_in
from slimfast.pruning.closeness import difference, rounding
from slimfast.pruning.verification import verify

PARAMS = 0.5
# Where what stays whole is more than that, the next of these.
SHARES = (PARAMS, 0.75, 0.95)
# The peer's share of every layer's channels.
RATIO = 0.5

# The least share of the parameters for which it is told why it stays whole.
_WORTH_TELLING = 0.01
_AT_THE_ENDS = (Reason.NETWORK_INPUT.value, Reason.NETWORK_OUTPUT.value)

Tell = Callable[[str, dict[str, Any] | None], None]


class Stopped(Exception):
    """A stage failed and the following ones need it."""


class Stages:
    """Runs the stages of one process and tells how each went."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    @contextmanager
    def stage(self, name: str, *, needed: bool = False) -> Iterator[dict[str, Any]]:
        """Time the block; what it puts into the dict is told. A failure ends the process where ``needed``."""
        self._tell(name, None)
        facts: dict[str, Any] = {}
        start = time.perf_counter()
        try:
            yield facts
        except Exception as error:
            self._tell(name, {"failed": reason(error)})
            if needed:
                raise Stopped from error
            return
        self._tell(name, {"seconds": round(time.perf_counter() - start, 4), **facts})


def reason(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    told = f": {lines[0][:300]}" if lines else ""
    return f"{type(error).__name__}{told}"


def slim(name: str, folder: str, tell: Tell) -> None:
    """Trace, measure, plan, prune; then run, verify, save and train the thin network."""
    stages = Stages(tell)
    with stages.stage("build", needed=True) as facts:
        model, example = build(name)
        facts["params"] = parameters(model)
        _warm_up()
    with stages.stage("trace", needed=True) as facts:
        graph = slimfast.trace_channels(model, example)
        facts["groups"] = len(graph)
    with stages.stage("spectra", needed=True):
        spectra = slimfast.measure_spectra(model, graph)
    with stages.stage("plan", needed=True) as facts:
        plan, facts["asked"] = nearest_plan(graph, spectra)
    with stages.stage("prune", needed=True):
        plan = slimfast.select(model, plan, method="l1")
        thin = slimfast.prune_channels(model, plan, verify=False)
    with stages.stage("count") as facts:
        facts["prunable"] = round(prunable(graph), 4)
        facts["reached"] = round(parameters(thin) / parameters(model), 4)
        facts["whole"] = whole(graph)
    with stages.stage("verify") as facts:
        keeps = {group.name: np.array(group.keep) for group in plan.groups}
        found = verify(model, thin, graph, keeps, example)
        facts |= {"compared": len(found.compared), "inexact": len(found.inexact), "notes": [*found.notes]}
        facts |= {"other": [list(shape) for shape in found.other], "training": found.training}
    args, kwargs = arguments(example)
    with stages.stage("run", needed=True):
        run(thin, args, kwargs)
    with stages.stage("save"):
        slimfast.save(thin, Path(folder, "thin.safetensors"))
        outputs = dict(enumerate(run(thin, args, kwargs)))
        save_file(
            {str(i): t.contiguous().clone() for i, t in outputs.items()}, Path(folder, "outputs.safetensors")
        )
    with stages.stage("train"):
        _train(thin, two_samples(example))


def nearest_plan(graph: ChannelGraph, spectra: dict[str, slimfast.Spectrum]) -> tuple[slimfast.Plan, float]:
    """The plan for the smallest of :data:`SHARES` that can be reached, and that share."""
    for share in SHARES[:-1]:
        try:
            return slimfast.plan_widths(graph, spectra, params=share), share
        except slimfast.SlimfastError as error:
            if "cannot be reached" not in str(error):
                raise
    return slimfast.plan_widths(graph, spectra, params=SHARES[-1]), SHARES[-1]


def run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The outputs of a network; what it draws at random is the same each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return list(tensors_in(model(*args, **kwargs)))


def reload(name: str, folder: str, tell: Tell) -> None:
    """Cut a freshly built network to the file and compare its outputs."""
    stages = Stages(tell)
    with stages.stage("reload", needed=True):
        model, example = build(name)
        # Whatever the file leaves out would show.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        thin = slimfast.load(Path(folder, "thin.safetensors"), model)
        args, kwargs = arguments(example)
        found = run(thin, args, kwargs)
        expected = [
            tensor
            for _, tensor in sorted(
                load_file(Path(folder, "outputs.safetensors")).items(), key=lambda item: int(item[0])
            )
        ]
        error, limit = difference(expected, found), rounding(thin, torch.float32, 1000)
        if not error <= limit:
            raise ValueError(f"the reloaded network's output is off by {error:.2g} of its size")


def onnx(name: str, folder: str, tell: Tell) -> None:
    """Slim the network once more and export it; the file's outputs are compared in ONNX Runtime."""
    stages = Stages(tell)
    with stages.stage("onnx"):
        model, example = build(name)
        graph = slimfast.trace_channels(model, example)
        plan = slimfast.plan_widths(graph, slimfast.measure_spectra(model, graph), params=PARAMS)
        thin = slimfast.prune_channels(model, slimfast.select(model, plan, method="l1"), verify=False)
        export(thin, Path(folder, "thin.onnx"), example)


def peer(name: str, tell: Tell) -> None:
    """The same network cut by torch-pruning as it comes: half of all channels, the classifier left alone."""
    import torch_pruning

    stages = Stages(tell)
    with stages.stage("build", needed=True):
        model, example = build(name)
        _warm_up_peer(torch_pruning)
    wide = parameters(model)
    with stages.stage("prune", needed=True) as facts:
        _peer_prune(torch_pruning, model, example, classifier(model))
        facts["reached"] = round(parameters(model) / wide, 4)
    args, kwargs = arguments(example)
    with stages.stage("run"), torch.no_grad():
        model(*args, **kwargs)


def parameters(model: nn.Module) -> int:
    """The number of elements of a network's parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def prunable(graph: ChannelGraph) -> float:
    """The share of the parameters that goes when every group is cut to a single unit."""
    least = Cut(graph, {group.name: np.zeros(1, dtype=np.int64) for group in graph})
    before = after = 0
    for name, axes in graph.axes.items():
        if name in graph.parameters and name not in graph.tied:
            before += math.prod(axis.length for axis in axes)
            after += math.prod(map(least.kept_length, axes))
    return 1 - after / before


def whole(graph: ChannelGraph) -> dict[str, float]:
    """The share of the parameters in tensors that no cut changes, by the reason, the largest first.

    The reason is that of the tensor's first dim that is left alone for another one than that it is an input
    or an output of the network, which any first and last layer has; that of a bias is its weight's. Those of
    less than 1 % are left out.
    """
    reasons: dict[str, str] = {}
    for frozen in sorted(graph.frozen, key=lambda frozen: frozen.reason in _AT_THE_ENDS):
        reasons.setdefault(frozen.tensor, frozen.reason)
        reasons.setdefault(frozen.tensor.rpartition(".")[0], frozen.reason)
    total, shares = 0, dict[str, int]()
    for name in graph.parameters - graph.tied.keys():
        size = math.prod(axis.length for axis in graph.axes[name])
        total += size
        reason = reasons.get(name, reasons.get(name.rpartition(".")[0]))
        if reason is not None and not any(axis.places for axis in graph.axes[name]):
            shares[reason] = shares.get(reason, 0) + size
    return {
        reason: round(size / total, 4)
        for reason, size in sorted(shares.items(), key=lambda item: (-item[1], item[0]))
        if size / total >= _WORTH_TELLING
    }


def _train(model: nn.Module, example: Any) -> None:
    """One step of SGD that pulls the outputs towards 1; every gradient must be finite, and some not zero."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    args, kwargs = arguments(example)
    outputs = [t for t in tensors_in(model(*args, **kwargs)) if t.is_floating_point() and t.requires_grad]
    # Not towards 0, which is where a last layer that starts as zeros has them.
    torch.stack([(t.float() - 1).square().mean() for t in outputs]).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not all(bool(g.isfinite().all()) for g in gradients):
        raise ValueError(f"expected finite gradients, got {len(gradients)} of which some are not")
    if not any(bool(g.any()) for g in gradients):
        raise ValueError("expected gradients, got zeros")
    optimizer.step()


def _small() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)), torch.randn(
        1, 3, 8, 8
    )


def _warm_up() -> None:
    """What PyTorch does once in a process is not any network's time."""
    model, example = _small()
    slimfast.slim(model, example, params=PARAMS, verify=False)


def _warm_up_peer(torch_pruning: Any) -> None:
    model, example = _small()
    _peer_prune(torch_pruning, model, example, [model[3]])


def _peer_prune(torch_pruning: Any, model: nn.Module, example: Any, ignored: list[nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=RATIO,
            ignored_layers=ignored,
        )
        pruner.step()
