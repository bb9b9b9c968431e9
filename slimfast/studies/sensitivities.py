"""What the output loses when one group alone is cut, measured beside what was predicted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import Arguments, IntArray, Progress
from slimfast.calibration import Calibration, ErrorCurve, error_curves
from slimfast.calibration.forward import Slice, count_of, running
from slimfast.calibration.masks import positions_that_count
from slimfast.calibration.spilling import MEMORY
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError
from slimfast.graph import ChannelGraph, ChannelGroup, trace_channels
from slimfast.graph.cutting.cut import Cut
from slimfast.graph.recording.inputs import arguments, cloned, tensors_in
from slimfast.graph.recording.network import Network
from slimfast.plans import GroupPlan
from slimfast.plans.planning import check_shapes
from slimfast.pruning.repair import RepairKind, check_kind, repair_thin
from slimfast.pruning.selection import Method, select_units
from slimfast.spectra import Spectrum, measure_spectra
from slimfast.studies.scoring import Evaluate, check_evaluate, score_of
from slimfast.studies.sensitivity_data import CutAlone, Sensitivities
from slimfast.wrappers import unwrapped

__all__ = ["CutAlone", "Sensitivities", "sensitivity"]

_VERB = "sensitivity"


@torch.inference_mode(False)
def sensitivity(
    model: nn.Module,
    example: Any = None,
    *,
    graph: ChannelGraph | None = None,
    shares: Sequence[float] = (0.75, 0.5, 0.25),
    evaluate: Evaluate | None = None,
    calibration: Calibration | None = None,
    spectra: Mapping[str, Spectrum] | None = None,
    curves: Mapping[str, ErrorCurve] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    select: Method | None = None,
    repair: RepairKind | None = None,
    memory: int = MEMORY,
    backend: str = "auto",
    progress: Progress | None = None,
) -> Sensitivities:
    """Cut one group of a network at a time, and measure what that does to the output.

    The network is traced once and its units are chosen once for each share; for each cut the thin network
    shares the weights that do not change. The outputs compared are those of the calibration's samples, or of
    the example.

    Args:
        model: The network; it is untouched.
        example: A tensor, a tuple or a dict of its arguments.
        graph: What :func:`slimfast.trace_channels` found in this model, to save a trace.
        shares: The shares of its units that each group is cut to.
        evaluate: From a network in eval mode to its score, called once for each cut too.
        calibration: From :func:`slimfast.calibrate`: the predictions are then those of the error curves.
        spectra: Saved ones, which save the measurement where there is no calibration.
        curves: From :func:`slimfast.calibration.error_curves`, which save that of the calibration.
        include: Only groups that one of these names or globs means.
        exclude: No group that one of these means.
        select: How units are chosen, as for :func:`slimfast.select`; by activations where there is a
            calibration.
        repair: Repairs each thin network, as :func:`slimfast.prune_channels` does: what the error curves
            predict is the error after a repair from activations, which takes a few forwards for each cut.
        memory: Bytes of activations held at once.
        backend: The kernels to use.
        progress: Called with the number of cuts done and of all.

    Returns:
        Each group at each share: predicted error, measured error and score.

    Raises:
        ValueError: For wrong arguments, and an ``evaluate`` that returns no finite number.
        SlimfastError: For a model that cannot be traced, and one without a group.

    Example:
        found = slimfast.sensitivity(model, example, shares=(0.5,), calibration=calibration)
        print(found)
    """
    check_evaluate(evaluate, _VERB)
    check_kind(repair, calibration)
    wanted = _checked(shares)
    model = unwrapped(model)
    if graph is None:
        if example is None:
            raise ArgumentTypeError(f"{_VERB}: expected an example of the model's arguments, or its graph")
        graph = trace_channels(model, example)
    check_shapes({n: tuple(a.length for a in axes) for n, axes in graph.axes.items()}, model, _VERB)
    groups = _chosen(graph, include, exclude)
    if curves is None and calibration is not None:
        curves = error_curves(model, graph, calibration, memory=memory, backend=backend)
    if spectra is None and curves is None:
        spectra = measure_spectra(model, graph, backend=backend)
    network = Network.of(model)
    outputs = _Outputs(model, _slices(graph, example, calibration, memory))
    found: dict[tuple[str, int], CutAlone] = {}
    whole = score_of(evaluate, model_in_eval(model), _VERB)
    for number, share in enumerate(wanted):
        narrow = [_narrowed(group, share) for group in groups]
        keeps = select_units(model, graph, narrow, method=select, calibration=calibration, backend=backend)
        for place, planned in enumerate(narrow):
            alone = {planned.name: keeps[planned.name]}
            thin = _thin(model, network, graph, alone, calibration, repair=repair, memory=memory)
            found[planned.name, number] = CutAlone(
                group=planned.name,
                kind=planned.kind,
                n=planned.n,
                width=planned.width,
                predicted=_predicted(planned, curves or {}, spectra),
                error=outputs.error(thin),
                score=score_of(evaluate, thin, _VERB),
            )
            if progress is not None:
                progress(number * len(groups) + place + 1, len(wanted) * len(groups))
    return Sensitivities(
        cuts=tuple(found[group.name, i] for group in groups for i in range(len(wanted))),
        shares=wanted,
        predicted_by="explained variance" if curves is None else "error curves",
        score=whole,
    )


def model_in_eval(model: nn.Module) -> nn.Module:
    """Copy a model to eval mode; parameters are shared, and the model stays in the mode it is in."""
    with running(model) as (network, _):
        return network


def _checked(shares: Sequence[float]) -> tuple[float, ...]:
    if isinstance(shares, (str, Mapping)) or not isinstance(shares, Iterable):
        raise ArgumentTypeError(f"{_VERB}: expected shares to be a sequence, got {type(shares).__name__}")
    found = tuple(shares)
    if not found:
        raise ArgumentError(f"{_VERB}: expected at least one share, got none")
    for share in found:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ArgumentError(f"{_VERB}: expected shares between 0 and 1, got {share!r}")
    return found


def _chosen(
    graph: ChannelGraph, include: Iterable[str] | None, exclude: Iterable[str] | None
) -> list[ChannelGroup]:
    names = graph.names()

    def meant(what: str, globs: Iterable[str]) -> set[str]:
        if isinstance(globs, str):
            raise ArgumentError(f"{_VERB}: expected {what} to be a list of globs, got the string {globs!r}")
        return {name for glob in globs for name in names.meant_by(glob, f"{_VERB}: {what}")}

    taken = {group.name for group in graph} if include is None else meant("include", include)
    taken -= meant("exclude", exclude or ())
    found = [group for group in graph if group.name in taken and group.n > 1]
    if not found:
        raise SlimfastError(f"{_VERB}: expected groups that can be cut, got none of {len(graph)}")
    return found


def _narrowed(group: ChannelGroup, share: float) -> GroupPlan:
    width = min(max(1, round(share * group.n)), group.n - 1)
    return GroupPlan(group.name, group.kind, group.n, width, 0.0, True, chosen="override")


def _thin(
    model: nn.Module,
    network: Network,
    graph: ChannelGraph,
    keeps: Mapping[str, IntArray],
    calibration: Calibration | None,
    *,
    repair: RepairKind | None,
    memory: int,
) -> nn.Module:
    """Cut one group out of a copy."""
    thin = Cut(graph, keeps).thin_copy(network, share=repair is None)
    if repair is not None:
        repair_thin(model, thin, graph, keeps, kind=repair, calibration=calibration, memory=memory)
    return model_in_eval(thin)


def _predicted(
    planned: GroupPlan, curves: Mapping[str, ErrorCurve], spectra: Mapping[str, Spectrum] | None
) -> float | None:
    if planned.name in curves:
        return float(curves[planned.name].residual[planned.width])
    if spectra is not None and planned.name in spectra and spectra[planned.name].n == planned.n:
        return 1.0 - spectra[planned.name].ratio(planned.width)
    return None


def _slices(graph: ChannelGraph, example: Any, calibration: Calibration | None, memory: int) -> list[Slice]:
    if calibration is not None:
        return list(calibration.slices(memory))
    args: Arguments = graph.inputs.example() if example is None else arguments(example)
    return [Slice(args, count_of(args))]


class _Outputs:
    """What a network returns for some samples, to compare others with."""

    def __init__(self, model: nn.Module, slices: Sequence[Slice]) -> None:
        self._slices = slices
        network = model_in_eval(model)
        self._whole = [_run(network, part) for part in slices]
        self._power = sum(float(_counting(z, part).square().sum()) for z, part in self._pairs())
        if not self._power > 0.0:
            raise SlimfastError(f"{_VERB}: expected outputs that are not all 0 to compare, got none")

    def _pairs(self) -> list[tuple[Tensor, Slice]]:
        return [(z, part) for zs, part in zip(self._whole, self._slices, strict=True) for z in zs]

    def error(self, thin: nn.Module) -> float:
        """Compute how far the outputs of a thin network are, as a share of the whole one's."""
        total = 0.0
        for wide, part in zip(self._whole, self._slices, strict=True):
            for z, narrow in zip(wide, _run(thin, part), strict=True):
                if z.shape == narrow.shape:
                    total += float(_counting(narrow - z, part).square().sum())
        return math.sqrt(total / self._power)


def _run(network: nn.Module, part: Slice) -> list[Tensor]:
    args, kwargs = part.args
    with torch.no_grad():
        output = network(*cloned(args), **cloned(kwargs))
    return [t.detach().double() for t in tensors_in(output) if t.is_floating_point() and t.numel()]


def _counting(z: Tensor, part: Slice) -> Tensor:
    """Leave padded positions out."""
    counting = positions_that_count(z.shape, part.mask)
    return z if counting is None else z[counting]
