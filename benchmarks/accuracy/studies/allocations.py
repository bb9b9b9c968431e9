"""Ways to spend a budget on the channel groups of one network, and the controls that a claim must beat.

Each is a function of a :class:`Study` and a share of its budget that gives a plan. What proved itself is in
the package (``slimfast.plan``); the others live here, to be measured.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.studies.other_spectra import above_noise, folded_weights, noise_like
from benchmarks.accuracy.studies.peer import kept_units, torch_pruned
from benchmarks.accuracy.studies.study import Allocation, Study
from slimfast.calibration import ErrorCurve, error_curves
from slimfast.calibration.consumers import consumers_of
from slimfast.calibration.curves import felt_by_unit
from slimfast.calibration.moments import unit_covariance
from slimfast.calibration.sensitivity import sensitivities
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.kernels import grouped_eigvalsh
from slimfast.plans import Plan, plan_widths
from slimfast.plans.controls import uniform_like
from slimfast.spectra import measure_spectra


def explained_variance(study: Study, share: float) -> Plan:
    """The paper: one tau for all groups."""
    return study.plan(study.spectra, share)


def folded(study: Study, share: float) -> Plan:
    """The paper on filters scaled by the batch norm that follows."""
    return study.plan(measure_spectra(folded_weights(study.model), study.graph), share)


def unit(study: Study, share: float) -> Plan:
    """The paper on filters of unit variance."""
    return study.plan(measure_spectra(study.model, study.graph, scaling="unit"), share)


def noise_corrected(study: Study, share: float) -> Plan:
    """The paper on the variance above what noise of the same shapes and size has."""
    corrected = {name: above_noise(s, seed=0) for name, s in study.spectra.items()}
    return study.plan(corrected, share)


def noise_null(study: Study, share: float) -> Plan:
    """Control: the widths that noise of the same shapes gets from the paper's rule."""
    return study.plan({n: noise_like(s, seed=0) for n, s in study.spectra.items()}, share)


def activation_spectra(study: Study, share: float) -> Plan:
    """The paper on what the consumers read instead of on weights."""
    found = {consumer.weight: consumer for consumer in consumers_of(study.model, study.graph)[0]}
    spectra = {}
    for group in study.graph:
        covariance = unit_covariance(study.graph, group, found, study.calibration)
        old = study.spectra[group.name]
        if covariance is None:
            continue
        (values,) = grouped_eigvalsh([covariance])
        # The plan expects min(n, d) values of a layer; what is beyond the weights' rank is left out.
        eigenvalues = np.maximum(values.numpy()[::-1], 0.0)[: len(old.eigenvalues)].copy()
        trace = float(eigenvalues.sum())
        spectra[group.name] = dataclasses.replace(
            old, eigenvalues=eigenvalues, trace=trace, error=0.0, dtype="float64"
        )
    return study.plan({**study.spectra, **spectra}, share)


def marginal_gain(study: Study, share: float) -> Plan:
    """Error curves of what the output feels of what the consumers read, by gain per cost."""
    return study.plan({}, share, curves=study.curves)


def marginal_gain_of_loss(study: Study, share: float) -> Plan:
    """The same by how far the probabilities of the classes move, instead of the outputs."""
    curves = error_curves(study.model, study.graph, study.calibration, unit="loss")
    return study.plan({}, share, curves=curves)


def marginal_gain_of_squares(study: Study, share: float) -> Plan:
    """The same where what the output feels counts squared: variances of the output instead of deviations."""
    return study.plan({}, share, curves=_squares(study))


def marginal_gain_of_squares_inside(study: Study, share: float) -> Plan:
    """The squares with the residual streams left whole."""
    return study.plan({}, share, curves=_squares(study), exclude=("residual",))


def marginal_gain_of_shares(study: Study, share: float) -> Plan:
    """The same where every consumer counts alike: shares of the variance of what it reads."""
    return study.plan({}, share, curves=_shares(study))


def marginal_gain_of_shares_inside(study: Study, share: float) -> Plan:
    """The shares with the residual streams left whole."""
    return study.plan({}, share, curves=_shares(study), exclude=("residual",))


def marginal_gain_inside(study: Study, share: float) -> Plan:
    """The same with the residual streams left whole."""
    return study.plan({}, share, curves=study.curves, exclude=("residual",))


def marginal_gain_of_weights(study: Study, share: float) -> Plan:
    """The same from the spectra of the weights, without data."""
    curves = {}
    for group in study.graph:
        ratio = study.spectra[group.name].explained_variance_ratio()
        residual = np.zeros(group.n + 1)
        residual[0], residual[1 : len(ratio) + 1] = 1.0, 1.0 - ratio
        curves[group.name] = ErrorCurve(group.name, group.n, np.minimum.accumulate(residual))
    return study.plan({}, share, curves=curves)


def uniform(study: Study, share: float) -> Plan:
    """Control: the same share of every group."""
    return uniform_like(explained_variance(study, share), study.graph, study.spectra, budget=study.budget)


def uniform_inside(study: Study, share: float) -> Plan:
    """Control: the same share of every group but the residual streams, which are left whole."""
    plan = study.plan(study.spectra, share, exclude=("residual",))
    return uniform_like(plan, study.graph, study.spectra, budget=study.budget)


def random(study: Study, share: float, *, seed: int = 0) -> Plan:
    """Control: shares drawn uniformly between 0.1 and 1 for each group, scaled together to the budget."""
    shares = np.random.default_rng(seed).uniform(0.1, 1.0, size=len(study.graph))
    names = [group.name for group in study.graph]
    sizes = np.array([group.n for group in study.graph])
    within = study.within(share)

    def widths(factor: float) -> Any:
        return np.clip((shares * factor * sizes).astype(np.int64), 1, sizes)

    low, high = 0.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if within(widths(middle)) else (low, middle)
    return by_hand(study, dict(zip(names, widths(low).tolist(), strict=True)))


def group_magnitude(study: Study, share: float) -> Plan:
    """Control: the rule of torch-pruning's global group magnitude (DepGraph, Fang et al., CVPR 2023), with
    the units it keeps: those of small magnitude, of all slices of a unit in shares of the group's mean, go
    first from the whole network. The exact budget is met by our own count.
    """
    found = _magnitudes(study)
    scores = [
        (score / values.mean(), g, unit)
        for g, values in enumerate(found[group.name] for group in study.graph)
        for unit, score in enumerate(values)
    ]
    within = study.within(share)
    keep = [set(range(group.n)) for group in study.graph]
    for _, g, index in sorted(scores):
        if within(np.array([len(k) for k in keep])):
            break
        if len(keep[g]) > 1:
            keep[g].discard(index)
    return kept(study, {g.name: sorted(k) for g, k in zip(study.graph, keep, strict=True)})


def by_magnitude(allocation: Allocation) -> Allocation:
    """The widths of an allocation, each group's units those of largest magnitude over all their slices."""

    def allocate(study: Study, share: float) -> Plan:
        plan = allocation(study, share)
        order = {name: np.argsort(-values, kind="stable") for name, values in _magnitudes(study).items()}
        return _with_units(plan, {g.name: sorted(order[g.name][: g.width].tolist()) for g in plan.groups})

    return allocate


def torch_pruning(study: Study, share: float) -> Plan:
    """Control: the widths of torch-pruning and the units it keeps."""
    example = torch.zeros(1, 3, 32, 32)
    return kept(study, kept_units(study.graph, study.model, torch_pruned(study.model, example, share)))


def torch_pruning_widths(study: Study, share: float) -> Plan:
    """Control: the widths of torch-pruning; another rule says which units are kept."""
    return by_hand(study, {group.name: group.width for group in torch_pruning(study, share).groups})


def _magnitudes(study: Study) -> dict[str, np.ndarray]:
    """Per group, the squared norms of all slices of each unit, summed over the members; float64 (n,)."""
    tensors = named_tensors(study.model)
    found = {}
    for group in study.graph:
        total = np.zeros(group.n)
        members = [m for m in group.members if m.tensor in study.graph.parameters]
        for member in members:
            w = tensors[member.tensor].detach().double().movedim(member.dim, 0)
            has = member.units >= 0
            np.add.at(total, member.units[has], w.reshape(len(w), -1).square().sum(1).numpy()[has])
        found[group.name] = total
    return found


def _shares(study: Study) -> dict[str, ErrorCurve]:
    """The error curves in shares of the variance of what each consumer reads, summed over the consumers."""
    curves = {}
    for group in study.graph:
        if group.name in study.curves:
            curve = study.curves[group.name]
            consumers = [m for m in group.members if m.role == "consumer"]
            count = sum(m.tensor in study.calibration.readings for m in consumers)
            scale = count / max(float(curve.residual[0]), 1e-300)
            curves[group.name] = dataclasses.replace(curve, residual=curve.residual * scale)
    return curves


def _squares(study: Study) -> dict[str, ErrorCurve]:
    """The error curves times the variance of the output that a group's units can make, instead of the
    deviation.
    """
    found = {consumer.weight: consumer for consumer in consumers_of(study.model, study.graph)[0]}
    felt = sensitivities(study.model, found.values(), study.calibration)
    curves = {}
    for group in study.graph:
        if group.name in study.curves:
            curve = study.curves[group.name]
            each = felt_by_unit(study.graph, group, found, felt)
            scale = sum(float(units.sum()) for units in each) / max(float(curve.residual[0]), 1e-300)
            curves[group.name] = dataclasses.replace(curve, residual=curve.residual * scale)
    return curves


def kept(study: Study, keep: Mapping[str, Sequence[int]]) -> Plan:
    """The plan that keeps these units of each group."""
    return _with_units(by_hand(study, {name: len(units) for name, units in keep.items()}), keep)


def _with_units(plan: Plan, keep: Mapping[str, Sequence[int]]) -> Plan:
    groups = tuple(dataclasses.replace(group, keep=tuple(keep[group.name])) for group in plan.groups)
    return dataclasses.replace(plan, groups=groups)


def by_hand(study: Study, widths: Mapping[str, int]) -> Plan:
    overrides = {glob.escape(name): width for name, width in widths.items()}
    return plan_widths(study.graph, study.spectra, overrides=overrides)


ALLOCATIONS: dict[str, Allocation] = {
    "marginal gain, activations": marginal_gain,
    "marginal gain, loss": marginal_gain_of_loss,
    "marginal gain, squares": marginal_gain_of_squares,
    "marginal gain, shares of activations": marginal_gain_of_shares,
    "explained variance (paper)": explained_variance,
    "folded batch norm": folded,
    "unit scaling": unit,
    "noise corrected": noise_corrected,
    "activation spectra": activation_spectra,
    "marginal gain, weights": marginal_gain_of_weights,
}
CONTROLS: dict[str, Allocation] = {
    "uniform": uniform,
    "random widths": random,
    "random widths, seed 1": partial(random, seed=1),
    "random widths, seed 2": partial(random, seed=2),
    "noise null": noise_null,
    "group magnitude, global": group_magnitude,
}
