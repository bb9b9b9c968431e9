"""Error curves from a calibration: what the output loses when only the best k units of a group stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import FloatArray, Progress
from slimfast.calibration.consumers import Consumer, consumers_of
from slimfast.calibration.data import Calibration, check_calibration
from slimfast.calibration.directions import Unit, writes_text
from slimfast.calibration.moments import unit_covariance
from slimfast.calibration.sensitivity import sensitivities
from slimfast.calibration.spilling import MEMORY, check_memory
from slimfast.calibration.sums_file import SumsFile
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.kernels.ops import grouped_pivoted_cholesky
from slimfast.kernels.results import PivotedCholesky
from slimfast.wrappers import unwrapped


@dataclass(frozen=True, slots=True, eq=False)
class ErrorCurve:
    """The error that a group leaves in the output when 0, ..., n of its units stay.

    Attributes:
        name: The group.
        n: How many units it has.
        residual: (n + 1,) float64, never rising, 0 or above, in a unit that all curves of a network share:
            groups' errors are added up as they are.

    Example:
        curves = slimfast.error_curves(model, graph, calibration)
        curves["layer1.0.conv1"].ratio(8)   # the share of the error that eight units take away
    """

    name: str
    n: int
    residual: FloatArray

    def __post_init__(self) -> None:
        values = self.residual
        if values.shape != (self.n + 1,) or values.dtype != np.float64:
            raise SlimfastError(
                f"error curve: expected {self.n + 1} float64 values for {self.n} units, "
                f"got {values.dtype} of shape {values.shape} ({self.name})"
            )
        if not np.isfinite(values).all() or values[-1] < 0 or (np.diff(values) > 0).any():
            raise SlimfastError(f"error curve: expected finite values >= 0 that never rise ({self.name})")

    def ratio(self, width: int) -> float:
        """Return the share of the error that ``width`` units take away."""
        whole = float(self.residual[0])
        return 1.0 - float(self.residual[width]) / whole if whole > 0.0 else 1.0

    def gains(self) -> FloatArray:
        """Return what each next unit takes away, (n,), on the lower convex hull of the curve: never
        rising.
        """
        at, gains = 0, np.empty(self.n)
        while at < self.n:
            slopes = (self.residual[at] - self.residual[at + 1 :]) / np.arange(1, self.n - at + 1)
            best = int(np.flatnonzero(slopes == slopes.max())[-1]) + 1
            gains[at : at + best] = slopes[best - 1]
            at += best
        return gains


def error_curves(
    model: nn.Module,
    graph: ChannelGraph,
    calibration: Calibration,
    *,
    memory: int = MEMORY,
    unit: Unit | None = None,
    backend: str = "auto",
    progress: Progress | None = None,
) -> dict[str, ErrorCurve]:
    """Find what the output loses when each group keeps 0, ..., n of its units.

    The curve of a group is what pivoted Cholesky leaves of its units' covariance
    (:func:`slimfast.calibration.moments.unit_covariance`) after each pick, which is what least squares from
    the picked units cannot repair, as a share; times what the output feels of the group's units
    (:func:`slimfast.calibration.sensitivity.sensitivities`, a forward and a backward pass for each batch of
    the calibration), as a deviation of the output and summed over the layers that read them. So the errors of
    all groups are in one unit. Deviations are what errors that go together add up to; their squares set
    groups further apart than networks do that are repaired or trained (docs/evidence/index.md).

    Of a language model (``model.can_generate()``) the unit is the loss: nats of divergence from the dense
    network's next tokens, for each sample. What is felt of each unit counts by the share of its own variance
    that the picks leave, on texts that nothing was fitted to, and these divergences are added up as they are.

    Args:
        model: The network that was calibrated.
        graph: Its groups.
        calibration: From :func:`slimfast.calibrate`.
        memory: Bytes of activations that a forward and its backward pass may hold: so many samples run at
            once, one at least.
        unit: ``"output"`` or ``"loss"``; None is the loss for language models and the output for all others.
            In the unit of the loss what is felt is how far the probabilities of the classes move (scores in
            the last dim of (samples, classes) or (samples, positions, tokens)), and of other networks than
            language models the root of twice that divergence stands for the deviation of the output.
        backend: The kernels to use.
        progress: Called with the samples done and of all; what it raises (:class:`slimfast.Cancelled`) ends
            the work.

    Returns:
        A curve for every group that a measured layer reads, by the group's name.

    Example:
        curves = slimfast.error_curves(model, graph, calibration)
        plan = slimfast.plan_widths(graph, {}, macs=0.5, curves=curves)
    """
    return resumed_curves(
        model, graph, calibration, memory=memory, unit=unit, backend=backend, progress=progress
    )


def resumed_curves(
    model: nn.Module,
    graph: ChannelGraph,
    calibration: Calibration,
    *,
    memory: int,
    backend: str,
    progress: Progress | None,
    unit: Unit | None = None,
    resume: SumsFile | None = None,
) -> dict[str, ErrorCurve]:
    """Find error curves as :func:`error_curves` does, from where an earlier run has stopped."""
    check_memory("plan", memory)
    model = unwrapped(model)
    consumers = {consumer.weight: consumer for consumer in consumers_of(model, graph)[0]}
    check_calibration(calibration, graph.effective(named_tensors(model)), consumers.values())
    felt = sensitivities(
        model, consumers.values(), calibration, memory=memory, unit=unit, progress=progress, resume=resume
    )
    of_text, curves = writes_text(model) and unit != "output", {}
    for group in graph:
        covariance = unit_covariance(graph, group, consumers, calibration)
        if covariance is None:
            continue
        picks = grouped_pivoted_cholesky([covariance], [group.n], names=[group.name], backend=backend)[0]
        each = felt_by_unit(graph, group, consumers, felt)
        if of_text:
            residual = _divergence_left(covariance, picks, each)
            residual = _on_other_texts(residual, _fitted(graph, group, consumers, calibration))
        else:
            residual = _deviation_left(covariance, picks, each)
        # With the rank used up what is left is rounding.
        residual[-1] = 0.0
        curves[group.name] = ErrorCurve(group.name, group.n, np.minimum.accumulate(np.maximum(residual, 0.0)))
    return curves


def _deviation_left(covariance: Tensor, picks: PivotedCholesky, felt: Sequence[Tensor]) -> FloatArray:
    """Compute the deviation of the output after each pick, (n + 1,): the share of the units' variance that is
    left, of the deviations that each reader can make.
    """
    residual = np.zeros(len(covariance) + 1)
    residual[0] = float(covariance.trace())
    residual[1 : len(picks.residual) + 1] = picks.residual.cpu().numpy()
    if residual[0] > 0.0:
        residual *= sum(math.sqrt(float(each.sum())) for each in felt) / residual[0]
    return residual


def _divergence_left(covariance: Tensor, picks: PivotedCholesky, felt: Sequence[Tensor]) -> FloatArray:
    """Compute the divergence from the network after each pick, (n + 1,): half of what is felt of each unit,
    as much of it as is left of that unit's variance.
    """
    whole = covariance.diagonal()
    total = torch.zeros_like(whole).add_(sum(felt))
    slopes = torch.where(whole > 0.0, 0.5 * total / whole, 0.0)
    taken = slopes @ picks.factor.to(whole).square()
    residual = np.zeros(len(whole) + 1)
    residual[0] = float(slopes @ whole)
    residual[1 : len(taken) + 1] = residual[0] - taken.cumsum(0).numpy()
    return residual


def _on_other_texts(residual: FloatArray, fitted: float) -> FloatArray:
    """Raise errors to those expected where nothing was fitted, by generalised cross-validation (Golub, Heath
    and Wahba, *Technometrics* 21, 1979); as many as ``fitted`` variables a position come with each unit.
    """
    free = 1.0 - fitted * np.arange(len(residual))
    raised = residual / np.where(free > 0.0, free, 1.0) ** 2
    found: FloatArray = np.where(free > 0.0, np.minimum(raised, residual[0]), residual[0])
    return found


def _fitted(
    graph: ChannelGraph, group: ChannelGroup, consumers: Mapping[str, Consumer], calibration: Calibration
) -> float:
    """Compute how many variables each of a group's units gives to the least squares of a layer that reads it,
    for each position that was measured.
    """
    fitted: float = max(
        consumers[member.tensor].unit_index(member.units, group.n).shape[1]
        / calibration.readings[member.tensor].count
        for member in graph.consumers(group)
        if member.tensor in consumers and member.tensor in calibration.readings
    )
    return fitted


def felt_by_unit(
    graph: ChannelGraph, group: ChannelGroup, consumers: Mapping[str, Consumer], felt: Mapping[str, Tensor]
) -> list[Tensor]:
    """Compute the variance of the output that each of a group's units can make, (n,), through each measured
    layer that reads it.
    """
    variances = []
    for member in graph.consumers(group):
        if member.tensor in felt:
            index = torch.from_numpy(consumers[member.tensor].unit_index(member.units, group.n))
            variances.append(felt[member.tensor][index].sum(1))
    return variances
