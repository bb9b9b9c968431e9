"""The verbs of plans: widths from spectra under a budget, and whether a plan fits a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from slimfast.arrays import Progress
from slimfast.calibration.curves import ErrorCurve, error_curves
from slimfast.calibration.data import Calibration
from slimfast.calibration.spilling import MEMORY
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, did_you_mean
from slimfast.graph import ChannelGraph, trace_channels
from slimfast.plans.fingerprint import fingerprint
from slimfast.plans.language_models import warn_without_data
from slimfast.plans.measured import with_tables, within_measured
from slimfast.plans.plan_data import ALLOCATIONS, Allocation, Plan
from slimfast.plans.request import Request, WidthOptions, check_request, takes_width_options
from slimfast.plans.solving import settled_plan, solved_plan
from slimfast.spectra import measure_again, measure_spectra
from slimfast.spectra.eigenvalues import Scaling
from slimfast.spectra.spectrum import Spectrum
from slimfast.wrappers import unwrapped

_log = logging.getLogger(__name__)


@takes_width_options
def plan_widths(
    graph: ChannelGraph,
    spectra: Mapping[str, Spectrum],
    *,
    curves: Mapping[str, ErrorCurve] | None = None,
    **options: Unpack[WidthOptions],
) -> Plan:
    """Choose one width for each channel group of a traced network, from its spectra; takes milliseconds.

    A budget is met by the largest share of their variance that all groups can keep; groups that would take
    their next unit at the same share take it one by one in the order of the graph. What the next unit is too
    dear for goes to the other groups in equal shares, as does a budget above what keeping everything needs:
    no group's next unit would fit. Left alone are also groups without weights of their own and those of only
    one position per unit, whose variance says nothing.

    Args:
        graph: The groups, from :func:`slimfast.trace_channels`.
        spectra: Their spectra, from :func:`slimfast.measure_spectra`.
        explained_variance: The share of its variance that every group keeps, instead of a budget.
        params: Budget of parameters: a share of the original in (0, 1], or above 1 an absolute number; as a
            text "50%", "2e9" or "1.5G".
            Or a mapping from globs of layers and tensors to such amounts, each of what its glob means:
            ``{"model.layers.*": 0.7}``.
        macs: Budget of multiply-adds, likewise; both may be given.
        latency: Budget of the time of one forward: a share of what the whole network takes, or seconds as a
            text ("12ms", "0.5s"). It may stand beside the others.
        latency_table: What the time is predicted by (:func:`slimfast.latency_table`), or the path of one.
            :func:`slimfast.plan` measures one where none is given, then measures the thin network and solves
            again until that is inside the budget.
        peak_memory: Budget of the bytes that one forward of the example holds at once, weights, inputs and
            live activations: a share of what the whole network does, or bytes as a text ("512MiB", "1.5GB").
            It may stand beside the others.
        memory_table: What the memory follows from (:func:`slimfast.memory_table`); :func:`slimfast.plan`
            makes one where none is given, and measures the thin network.
        within: The budget counts these layers and tensors alone, a glob or several; groups that have no say
            in them are left alone.
        multiple_of: Rounds widths up to multiples, or to the whole group, which a group of fewer units is;
            for heads and blocks of channels, which are cut whole, it is the number of channels that is a
            multiple. A mapping has a multiple for each glob, of groups, kinds, layers or tensors as in
            ``exclude``; the first that means a group counts, and groups of none have any width.
        min_width: No group gets fewer units (or all it has): a number of them, as a float a share of the
            group's, or a mapping from globs to such floors, as for ``multiple_of``. So no layer loses more
            than three quarters by ``min_width=0.25``.
        overrides: Widths by hand: names or globs of groups, of kinds, and of the layers or tensors that
            compute a group's units, to a number of units, or as a float to a share of them; the first that
            means a group counts, and it counts as it is.
        include: Leave alone groups that none of these names or globs means.
        exclude: Leave alone groups that one of these means.
        curves: Spend a budget by marginal gain instead (:func:`slimfast.error_curves`): the units that lower
            the output's summed error most for their cost come first, and groups without a curve are left
            alone. Spectra are then only shown.

    Returns:
        The plan.

    Raises:
        ValueError: For wrong arguments.
        SlimfastError: For spectra that are missing or not of this network, and for a budget that cannot be
            reached, with the nearest that can.

    Example:
        plan = slimfast.plan_widths(graph, spectra, macs=0.5, multiple_of=8, exclude=["layer4.*"])
    """
    request = check_request(options)
    if curves is not None and request.explained_variance is not None:
        raise ArgumentError(
            "plan: expected a budget of params or macs for error curves, got explained_variance"
        )
    return solved_plan(graph, spectra, request, curves)


@takes_width_options
def plan(
    model: nn.Module,
    example: Any = None,
    *,
    graph: ChannelGraph | None = None,
    outputs: Iterable[str | int] | str | int | None = None,
    also: Iterable[Any] = (),
    allocation: Allocation | None = None,
    calibration: Calibration | None = None,
    spectra: Mapping[str, Spectrum] | None = None,
    curves: Mapping[str, ErrorCurve] | None = None,
    dtype: torch.dtype | None = None,
    scaling: Scaling = "raw",
    member_scaling: bool = False,
    memory: int = MEMORY,
    backend: str = "auto",
    progress: Progress | None = None,
    **options: Unpack[WidthOptions],
) -> Plan:
    """Plan a model in one call: trace it with ``example``, measure its spectra, solve its widths.

    Groups whose width float32 does not settle at the tau that is found are measured again in float64, and the
    widths solved again until all are settled, so that the plan is the one that float64 LAPACK gives. The
    other keywords are those of :func:`plan_widths` and :func:`measure_spectra`.

    Args:
        model: The network.
        example: A tensor, a tuple or a dict of its arguments.
        graph: What :func:`slimfast.trace_channels` found in this model, instead of the example, to save a
            trace.
        outputs: Which outputs stay as they are, as for :func:`slimfast.trace_channels`.
        also: Examples of other calls, likewise.
        allocation: How a budget is spent: by one ``explained_variance`` for all groups, or by
            ``marginal_gain``, from the error curves of a ``calibration`` and without spectra. By default it
            is the latter where there is a calibration.
        calibration: From :func:`slimfast.calibrate`.
        spectra: Saved ones, which save the first measurement.
        curves: The error curves of the ``calibration``, where they are at hand
            (:func:`slimfast.error_curves`).
        memory: Bytes of activations held at once for error curves (:func:`slimfast.error_curves`).
        progress: Called with the number of groups settled and of all; with a ``calibration``, of samples.

    Returns:
        The plan.

    Raises:
        ValueError: For wrong arguments.
        SlimfastError: For a model that cannot be traced or measured, and a budget that cannot be reached.

    Example:
        plan = slimfast.plan(model, torch.randn(1, 3, 224, 224), macs=0.5)
        thin = slimfast.prune_channels(model, plan)
    """
    request = check_request(options)
    model = unwrapped(model)
    by_gain = calibration_for_gain(allocation, calibration, request)
    if curves is not None and by_gain is None:
        raise ArgumentError("plan: expected error curves with their calibration and a budget, got them alone")
    graph = _traced(model, example, graph, outputs, also)
    _log.info("traced %s: %d groups, %d frozen", type(model).__name__, len(graph.groups), len(graph.frozen))
    if example is None:
        args, kwargs = graph.inputs.example()
        example = args or kwargs
    request = with_tables(request, graph, model, example, progress)
    if by_gain is not None:
        known = curves
        if known is None:
            known = error_curves(model, graph, by_gain, memory=memory, backend=backend, progress=progress)

        def by_curves(wanted: Request) -> Plan:
            return solved_plan(graph, {}, wanted, known)

        gained = within_measured(by_curves, request, graph, model, example)
        return replace(gained, weights=fingerprint(model))
    warn_without_data(model, "plan: widths are chosen")
    if spectra is None:
        spectra = measure_spectra(
            model,
            graph,
            dtype=dtype,
            scaling=scaling,
            member_scaling=member_scaling,
            backend=backend,
            progress=progress,
        )

    def again(measured: Mapping[str, Spectrum], names: Sequence[str]) -> dict[str, Spectrum]:
        if progress is not None:
            progress(len(measured) - len(names), len(measured))
        return measure_again(model, measured, names, graph, backend=backend)

    def by_spectra(wanted: Request) -> Plan:
        return settled_plan(graph, spectra, wanted, again)

    found = within_measured(by_spectra, request, graph, model, example)
    return replace(found, weights=fingerprint(model))


def _traced(
    model: nn.Module,
    example: Any,
    graph: ChannelGraph | None,
    outputs: Iterable[str | int] | str | int | None,
    also: Iterable[Any],
) -> ChannelGraph:
    """Trace the model, or take the graph that was given, if it is the model's."""
    others = list(also)
    if graph is None:
        if example is None:
            raise ArgumentTypeError("plan: expected an example of the model's arguments, or its graph")
        return trace_channels(model, example, outputs=outputs, also=others)
    if outputs is not None or others:
        raise ArgumentError("plan: expected a graph, or outputs and also for a trace, got both")
    held = {name: tuple(axis.length for axis in axes) for name, axes in graph.axes.items()}
    check_shapes(held, model, "graph")
    return graph


def calibration_for_gain(
    allocation: Allocation | None, calibration: Calibration | None, request: Request
) -> Calibration | None:
    """Choose the calibration to spend the budget by; None where one explained variance does."""
    if allocation not in (None, *ALLOCATIONS):
        raise ArgumentError(
            f"plan: expected allocation {' or '.join(ALLOCATIONS)}, got {allocation!r}"
            f"{did_you_mean(allocation, ALLOCATIONS)}"
        )
    if allocation == "marginal_gain" and calibration is None:
        raise ArgumentError("plan: expected a calibration (slimfast.calibrate) for marginal_gain, got none")
    if request.explained_variance is not None:
        if allocation == "marginal_gain":
            raise ArgumentError(
                "plan: expected a budget of params or macs for marginal_gain, got explained_variance"
            )
        return None
    return None if allocation == "explained_variance" else calibration


def check_plan(plan: Plan, model: nn.Module) -> None:
    """Raise :class:`SlimfastError` naming the first tensor in which ``model`` is not the plan's."""
    check_shapes(plan.shapes, model, "plan")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], model: nn.Module, what: str) -> None:
    """Raise :class:`SlimfastError` naming the first tensor of ``model`` that has not the shape it should."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, shape in shapes.items():
        if name not in found:
            raise SlimfastError(f"{what}: expected a model with {name} of shape {shape}, got one without it")
        if found[name] != shape:
            raise SlimfastError(
                f"{what}: expected a model with {name} of shape {shape}, got shape {found[name]}"
            )
    for name, shape in found.items():
        if name not in shapes:
            raise SlimfastError(
                f"{what}: expected a model without {name}, got one that has it, of shape {shape}"
            )
