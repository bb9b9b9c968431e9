"""Checkpoints that do not fit in memory: pruned tensor by tensor, from shards to shards.

The model is needed for its code alone, and may be on the meta device; its weights stay on the disk.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray, Progress
from slimfast.calibration import Calibration
from slimfast.calibration.spilling import check_memory
from slimfast.checkpoints.cut_rows import CutTensor, are_long, looked_at
from slimfast.checkpoints.repairing import RepairFolder, digest_of, repair_in_folder, report_to_json
from slimfast.checkpoints.shard_folder import (
    INDEX,
    JOB,
    REPAIR,
    alone,
    clear,
    index_text,
    job_of,
    job_of_shard,
)
from slimfast.checkpoints.shard_plans import stored_fingerprint
from slimfast.checkpoints.streamed import MEMORY, WEIGHTS, streamed_copy
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.cutting.cut import thin_shape
from slimfast.graph.recording.module_copies import aliases, copy_with, named_tensors
from slimfast.plans import Plan
from slimfast.plans.fingerprint import check_weights
from slimfast.pruning.choices import Given, Repair, chosen
from slimfast.pruning.gathering import gather_slices
from slimfast.pruning.manifests import Manifest, check_values, manifest
from slimfast.pruning.mask_folding import is_of_masks
from slimfast.pruning.plan_graph import graph_of
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.repair import check_kind
from slimfast.pruning.repair.report import repaired_tensors
from slimfast.pruning.selection import Method, first_method, select_units, with_keeps
from slimfast.storage.atomic import atomic_path, output_folder
from slimfast.storage.prefetch import read_ahead
from slimfast.storage.safetensors_writer import InParts, write_tensors
from slimfast.storage.stored_tensors import Shelf
from slimfast.storage.tensor_documents import KEY
from slimfast.storage.weights import TensorInfo, Weights, open_weights

# Of the progress of a pruning, what a repair is.
_REPAIR_STAGES = 100


def prune_checkpoint(
    path: str | os.PathLike[str] | Weights,
    plan: Plan | Manifest | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    select: Method | None = None,
    repair: Repair = "auto",
    repair_damping: float = 0.0,
    calibration: Calibration | None = None,
    memory: int = MEMORY,
    strict: bool = False,
    backend: str = "auto",
    progress: Progress | None = None,
) -> Manifest:
    """Cut the tensors of a checkpoint to a plan: safetensors shards and their index in ``folder``.

    There is one shard for each of ``path``, and the index holds the manifest, so that :func:`load_checkpoint`
    gives what :func:`slimfast.prune_channels` would, bit for bit. Each file holds a checksum of itself. The
    index is written last: without it nothing in the folder counts. A run that was stopped goes on with the
    shards it has not finished.

    Args:
        path: The checkpoint.
        plan: A plan or the path of one, which needs the ``model``, or a manifest (``manifest(thin)``), which
            does not. What a repair has solved for is not in a manifest: a warning says so.
        folder: Where to write.
        model: The wide network, on the meta device or not.
        select: How units are chosen that a plan has not chosen, as for :func:`slimfast.prune_channels`.
        repair: Likewise; the report stays with what :func:`load_checkpoint`
            gives. Both networks run from their files, all samples side by side from layer to layer; what is
            repaired is in ``folder/repair`` until all is done, from which a run that was stopped goes on.
        repair_damping: The least damping from activations, likewise.
        calibration: From :func:`slimfast.calibrate_checkpoint` or :func:`slimfast.calibrate`.
        memory: Bytes of activations that a repair holds in memory; the rest goes to a temporary file.
        strict: Refuses a plan that was made from other weights of the same shapes, which is else a warning.
        backend: The kernels to use.
        progress: Called with the number of tensors done and of all, a hundred of which are a repair; what it
            raises (:class:`slimfast.Cancelled`) ends the work, which can be gone on with.

    Returns:
        What was kept.

    Raises:
        SlimfastError: For a checkpoint that is not of this plan, for a cut to masks, for a folder that cannot
            be written, and where another run writes to it.

    Example:
        slimfast.prune_checkpoint("model.safetensors.index.json", plan, "thin", model=model)
    """
    plan = plan if isinstance(plan, Manifest) else Plan.of(plan)
    if isinstance(plan, Manifest):
        if plan.dropped:
            raise ArgumentError(
                f"prune_checkpoint: expected a cut of widths alone, got a network without "
                f"{plan.dropped[0].name}; load the network and use slimfast.drop_layers"
            )
        check_values(plan.moved, "prune_checkpoint")
        plan = dataclasses.replace(plan, moved={})
    elif is_of_masks(plan):
        raise ArgumentError(
            "prune_checkpoint: expected a plan that cuts weights alone, got one of masks, whose dead units "
            "leave constants to the biases; load the network and use slimfast.prune_channels"
        )
    if isinstance(plan, Manifest) and (repair not in (None, "auto") or calibration is not None):
        raise ArgumentError(
            "prune_checkpoint: expected a plan and its model for a repair or a calibration, got a manifest"
        )
    # A manifest has the units, and no network that runs.
    select, repair, repair_damping = chosen(
        Given(select, repair, repair_damping),
        calibrated=calibration is not None,
        lossless=isinstance(plan, Manifest),
    )
    check_kind(repair, calibration, repair_damping)
    check_memory("prune", memory)
    weights = open_weights(path)
    choice = _choice(weights, plan, model, select, calibration, backend)
    described, first = choice.described, choice.first
    _check_stored(weights, described, first)
    if isinstance(plan, Plan) and model is not None:
        check_weights(plan.weights, stored_fingerprint(weights, model), strict=strict)
    target = output_folder(folder)
    how = "" if repair is None else f"{repair} {repair_damping} {memory} {backend}"
    job = job_of(weights, described, f"{how} {digest_of(calibration)}" if calibration and repair else how)
    shards = _shards_of(weights)
    done, total = 0, len(weights.infos) + (_REPAIR_STAGES if repair is not None else 0)

    def reached(parts: int, of: int) -> None:
        if progress is not None:
            progress(done + parts * _REPAIR_STAGES // max(1, of), total)

    with alone(target):
        report = clear(target, shards, job)
        repaired: RepairFolder | None = None
        if repair is not None and report is None:
            assert model is not None, "there is one with every plan"
            assert choice.graph is not None, "a plan has one"
            repaired = RepairFolder(target / "repair", job)
            found = repair_in_folder(
                model, weights, described, choice.graph, choice.keeps, repaired,
                kind=repair, calibration=calibration, damping=repair_damping, memory=memory, backend=backend,
                tick=reached,
            )  # fmt: skip
            report = report_to_json(found)
        done, size = total - len(weights.infos), 0
        for file, names in shards.items():
            # Files get their names when they are whole.
            if job_of_shard(target / file) != job:
                _write_shard(target / file, names, weights, choice, repaired, job, backend)
            infos = open_weights(target / file).infos
            size += sum(_bytes(info) for info in infos.values())
            done += len(names)
            if progress is not None:
                progress(done, total)
        if report is not None:
            moved = repaired_tensors(report["fits"], report["norms"], described.shapes_before)
            described = dataclasses.replace(described, moved=dict.fromkeys(moved, ("repair",)))
        metadata = {"total_size": size, JOB: job, KEY: described.to_json()}
        metadata = metadata if report is None else {**metadata, REPAIR: report}
        index = index_text(metadata, {name: file for file, names in shards.items() for name in names})
        with atomic_path(target / INDEX) as temporary:
            temporary.write_text(index, encoding="utf-8")
        if repaired is not None:
            repaired.remove()
    return described


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """What is to be kept, and the first name of tensors that are stored under a further one; for a plan also
    its graph and the units.
    """

    described: Manifest
    first: Mapping[str, str]
    graph: ChannelGraph | None = None
    keeps: Mapping[str, IntArray] = field(default_factory=dict)


def _choice(
    weights: Weights,
    plan: Plan | Manifest,
    model: nn.Module | None,
    select: Method | None,
    calibration: Calibration | None,
    backend: str,
) -> _Choice:
    """Decide what is to be kept."""
    if isinstance(plan, Manifest):
        return _Choice(plan, aliases(model) if model is not None else {})
    if model is None:
        raise ArgumentError("prune_checkpoint: expected the model of the plan, on the meta device or not")
    if (thin := manifest(model)).keeps or thin.dropped:
        raise SlimfastError(f"{type(model).__name__}: expected a wide model, got one that is already thin")
    first = aliases(model)
    empty = copy_with(model, {name: t.detach().to("meta") for name, t in named_tensors(model).items()})
    graph = graph_of(empty, plan)
    stored = {first.get(name, name): name for name in weights.infos}
    groups = list(plan.groups)
    if calibration is not None and first_method(select, calibration) == "activations":
        # What has no moments is read in a forward, and so needs all of the network.
        network = streamed_copy(model, weights, Shelf(WEIGHTS))
        still = [group for group in groups if group.keep is None]
        keeps = select_units(network, graph, still, method=select, calibration=calibration, backend=backend)
        groups = list(with_keeps(groups, keeps))
    method = first_method(select, None)
    for i, group in enumerate(groups):
        if group.keep is None:
            names = {name for name in graph.needed(graph[group.name]) if name in stored}
            # Maps of the files: what the choice does not look at is not read.
            held = copy_with(
                empty, {name: looked_at(weights, stored[name], method) for name in names}, share=True
            )
            keeps = select_units(held, graph, [group], method=select, backend=backend)
            (groups[i],) = with_keeps([group], keeps)
    decided = dataclasses.replace(plan, groups=tuple(groups), graph=graph)
    described = manifest(prune_channels(empty, decided, verify=False))
    kept = {group.name: np.array(group.keep, dtype=np.int64) for group in groups}
    return _Choice(described, first, graph, kept)


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
    choice: _Choice,
    repaired: RepairFolder | None,
    job: str,
    backend: str,
) -> None:
    cuts = {name: choice.described.keeps.get(choice.first.get(name, name), {}) for name in names}
    # The format wants each tensor at a multiple of its element's size.
    dtypes = {name: weights.load(name).dtype for name in names}
    in_order = sorted(names, key=lambda name: -dtypes[name].itemsize)
    shapes = {name: (thin_shape(weights.infos[name].shape, cuts[name]), dtypes[name]) for name in in_order}

    def thin(name: str) -> Tensor | InParts:
        own, dtype = choice.first.get(name, name), dtypes[name]
        if repaired is not None and own in repaired.names():
            return InParts(*shapes[name], (part.to(dtype) for part in repaired.parts(own)))
        if are_long(weights, name):
            return InParts(*shapes[name], CutTensor(weights, name, cuts[name], dtype, backend).parts())
        return gather_slices({name: weights.load(name)}, {name: cuts[name]}, backend)[name]

    tensors = ((name, thin(name)) for name in read_ahead(in_order, weights, lambda name: [name]))
    write_tensors(path, shapes, tensors, metadata={"format": "pt", JOB: job}, summed=True)


def _bytes(info: TensorInfo) -> int:
    return torch.Size(info.shape).numel() * (info.dtype.itemsize if info.dtype else 0)
