"""Checkpoints that do not fit in memory: planned and pruned tensor by tensor, from shards to shards.

The model is needed for its code alone, and may be on the meta device; its weights stay on the disk.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from slimfast.arrays import Progress
from slimfast.calibration import ErrorCurve
from slimfast.checkpoints.shard_folder import INDEX, JOB, alone, clear, job_of, job_of_shard
from slimfast.distributed.team import Team
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph import trace_channels
from slimfast.graph.cutting.cut import thin_shape
from slimfast.graph.recording.module_copies import aliases, copy_with, named_tensors
from slimfast.plans import Plan, plan_widths
from slimfast.plans.fingerprint import check_weights, fingerprint_of
from slimfast.plans.language_models import warn_without_data
from slimfast.plans.request import WidthOptions, check_request, takes_width_options
from slimfast.plans.solving import settled_plan
from slimfast.pruning.gathering import gather_slices
from slimfast.pruning.manifests import Manifest, manifest
from slimfast.pruning.mask_folding import is_of_masks
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.selection import DEFAULT_METHOD, Method, graph_of, select_units, with_keeps
from slimfast.spectra import Spectrum, measure_again, measure_spectra
from slimfast.spectra.eigenvalues import Scaling
from slimfast.storage.atomic import atomic_path, output_folder
from slimfast.storage.prefetch import read_ahead
from slimfast.storage.safetensors_writer import write_tensors
from slimfast.storage.tensor_documents import KEY
from slimfast.storage.weights import Source, TensorInfo, Weights, open_weights


@takes_width_options
def plan_checkpoint(
    source: Source,
    model: nn.Module,
    example: Any,
    *,
    outputs: Iterable[str | int] | str | int | None = None,
    also: Iterable[Any] = (),
    curves: Mapping[str, ErrorCurve] | None = None,
    spectra: Mapping[str, Spectrum] | None = None,
    dtype: torch.dtype | None = None,
    scaling: Scaling = "raw",
    member_scaling: bool = False,
    backend: str = "auto",
    progress: Progress | None = None,
    resume: str | os.PathLike[str] | None = None,
    team: Team | None = None,
    **options: Unpack[WidthOptions],
) -> Plan:
    """Plan a model whose weights stay in ``source`` and are read a few layers at a time.

    The plan is that of :func:`slimfast.plan`. The other keywords are those of :func:`slimfast.plan_widths`
    and :func:`slimfast.measure_spectra`.

    Args:
        source: A file or folder of weights, a mapping of tensors or a module.
        model: The network, for the tracing; it may be on the meta device.
        example: Its input, for the tracing; likewise.
        outputs: Which outputs stay as they are, as for :func:`slimfast.trace_channels`.
        also: Examples of other calls, likewise.
        curves: Error curves by which a budget is spent, without spectra.
        spectra: Saved ones, which save the measurement.

    Returns:
        One width for each channel group.

    Raises:
        ValueError: For wrong arguments.
        SlimfastError: For weights that are not the model's, and for a budget that cannot be reached.

    Example:
        with torch.device("meta"):
            model = build()
        plan = slimfast.plan_checkpoint("model.safetensors.index.json", model, tokens, params=0.6)
    """
    request = check_request(options)
    graph = trace_channels(model, example, outputs=outputs, also=also)
    if curves is not None:
        # Widths by gain need no spectra; those that are given are shown.
        gained = plan_widths(graph, spectra or {}, curves=curves, **options)
        return dataclasses.replace(gained, weights=_fingerprint(open_weights(source), model))
    warn_without_data(model, "plan: widths are chosen")
    if spectra is None:
        spectra = measure_spectra(
            source,
            graph,
            dtype=dtype,
            scaling=scaling,
            member_scaling=member_scaling,
            backend=backend,
            progress=progress,
            resume=resume,
            team=team,
        )

    def again(measured: Mapping[str, Spectrum], names: Sequence[str]) -> dict[str, Spectrum]:
        return measure_again(source, measured, names, graph, backend=backend, resume=resume, team=team)

    settled = settled_plan(graph, spectra, request, again)
    return dataclasses.replace(settled, weights=_fingerprint(open_weights(source), model))


def prune_checkpoint(
    path: str | os.PathLike[str] | Weights,
    plan: Plan | Manifest | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    select: Method = DEFAULT_METHOD,
    strict: bool = False,
    backend: str = "auto",
    progress: Progress | None = None,
) -> Manifest:
    """Cut the tensors of a checkpoint to a plan: safetensors shards and their index in ``folder``.

    There is one shard for each of ``path``, and the index holds the manifest, so that :func:`load_checkpoint`
    gives what :func:`slimfast.prune_channels` would, bit for bit. The index is written last: without it
    nothing in the folder counts. A run that was stopped goes on with the shards it has not finished.

    Args:
        path: The checkpoint.
        plan: A plan or the path of one, which needs the ``model``, or a manifest (``manifest(thin)``), which
            does not.
        folder: Where to write.
        model: The wide network, on the meta device or not.
        select: How units are chosen that a plan has not chosen.
        strict: Refuses a plan that was made from other weights of the same shapes, which is else a warning.
        backend: The kernels to use.
        progress: Called with the number of tensors done and of all.

    Returns:
        What was kept.

    Raises:
        SlimfastError: For a checkpoint that is not of this plan, for a folder that cannot be written, and
            where another run writes to it.

    Example:
        slimfast.prune_checkpoint("model.safetensors.index.json", plan, "thin", model=model)
    """
    plan = plan if isinstance(plan, Manifest) else Plan.of(plan)
    if isinstance(plan, Plan) and is_of_masks(plan):
        raise ArgumentError(
            "prune_checkpoint: expected a plan that cuts weights alone, got one of masks, whose dead units "
            "leave constants to the biases; load the network and use slimfast.prune_channels"
        )
    weights = open_weights(path)
    described, first = _manifest(weights, plan, model, select, backend)
    _check_stored(weights, described, first)
    if isinstance(plan, Plan) and model is not None:
        check_weights(plan.weights, _fingerprint(weights, model), strict=strict)
    target = output_folder(folder)
    job = job_of(weights, described)
    shards = _shards_of(weights)
    with alone(target):
        clear(target, shards, job)
        done, total = 0, 0
        for file, names in shards.items():
            # Files get their names when they are whole.
            if job_of_shard(target / file) != job:
                _write_shard(target / file, names, weights, described, first, job, backend)
            infos = open_weights(target / file).infos
            total += sum(_bytes(info) for info in infos.values())
            done += len(names)
            if progress is not None:
                progress(done, len(weights.infos))
        index = {
            "metadata": {"total_size": total, JOB: job, KEY: described.to_json()},
            "weight_map": {name: file for file, names in shards.items() for name in names},
        }
        with atomic_path(target / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1), encoding="utf-8")
    return described


def _manifest(
    weights: Weights, plan: Plan | Manifest, model: nn.Module | None, select: Method, backend: str
) -> tuple[Manifest, Mapping[str, str]]:
    """Decide what is to be kept, and find the first name of tensors that are stored under a further one."""
    if isinstance(plan, Manifest):
        return plan, aliases(model) if model is not None else {}
    if model is None:
        raise ArgumentError("prune_checkpoint: expected the model of the plan, on the meta device or not")
    if manifest(model).keeps:
        raise SlimfastError(f"{type(model).__name__}: expected a wide model, got one that is already thin")
    first = aliases(model)
    empty = copy_with(model, {name: t.detach().to("meta") for name, t in named_tensors(model).items()})
    graph = graph_of(empty, plan)
    stored = {first.get(name, name): name for name in weights.infos}
    groups = list(plan.groups)
    for i, group in enumerate(groups):
        if group.keep is None:
            names = {name for name in graph.needed(graph[group.name]) if name in stored}
            # Maps of the files: what the choice does not look at is not read.
            held = copy_with(empty, {name: weights.load(stored[name]) for name in names}, share=True)
            keeps = select_units(held, graph, [group], method=select, backend=backend)
            (groups[i],) = with_keeps([group], keeps)
    chosen = dataclasses.replace(plan, groups=tuple(groups), graph=graph)
    return manifest(prune_channels(empty, chosen, verify=False)), first


def _fingerprint(weights: Weights, model: nn.Module) -> str | None:
    """Compute the fingerprint of the model's parameters as they are stored; None where some are not."""
    first = aliases(model)
    stored = {first.get(name, name): name for name in weights.infos}
    names = [name for name, _ in model.named_parameters()]
    if not stored.keys() >= set(names):
        return None
    return fingerprint_of((name, weights.load(stored[name])) for name in names)


def _check_stored(weights: Weights, described: Manifest, first: Mapping[str, str]) -> None:
    for name, info in weights.infos.items():
        expected = described.shapes_before.get(first.get(name, name))
        if info.shape != expected:
            wanted = "no such tensor" if expected is None else f"shape {expected}"
            raise SlimfastError(f"{weights.source}: {name}: expected {wanted}, got shape {info.shape}")
    missing = set(described.keeps) - {first.get(name, name) for name in weights.infos}
    if missing:
        raise SlimfastError(f"{weights.source}: {min(missing)}: expected a tensor to cut, got none")


def _shards_of(weights: Weights) -> dict[str, list[str]]:
    """List the names of the tensors of each file to write, which are those of the files that are read."""
    files: dict[Path | None, list[str]] = {}
    for name in weights.infos:
        extent = weights.extents.get(name)
        files.setdefault(extent.path if extent else None, []).append(name)
    return {
        f"model-{i:05d}-of-{len(files):05d}.safetensors": names for i, names in enumerate(files.values(), 1)
    }


def _write_shard(
    path: Path,
    names: list[str],
    weights: Weights,
    described: Manifest,
    first: Mapping[str, str],
    job: str,
    backend: str,
) -> None:
    cuts = {name: described.keeps.get(first.get(name, name), {}) for name in names}
    # The format wants each tensor at a multiple of its element's size.
    dtypes = {name: weights.load(name).dtype for name in names}
    in_order = sorted(names, key=lambda name: -dtypes[name].itemsize)
    shapes = {name: (thin_shape(weights.infos[name].shape, cuts[name]), dtypes[name]) for name in in_order}
    thin = (
        (name, gather_slices({name: weights.load(name)}, {name: cuts[name]}, backend)[name])
        for name in read_ahead(in_order, weights, lambda name: [name])
    )
    write_tensors(path, shapes, thin, metadata={"format": "pt", JOB: job})


def _bytes(info: TensorInfo) -> int:
    return torch.Size(info.shape).numel() * (info.dtype.itemsize if info.dtype else 0)
