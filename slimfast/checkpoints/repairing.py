"""Repair of thin networks that do not fit in memory: what is solved goes to files, a layer at a time."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimfast.arrays import IntArray, Progress
from slimfast.calibration import Calibration
from slimfast.calibration.files import hash_samples
from slimfast.checkpoints.cut_rows import CutTensor, are_long
from slimfast.checkpoints.streamed import WEIGHTS, stored_names, streamed_copy
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.graph.recording.network import Network
from slimfast.pruning.manifests import Manifest
from slimfast.pruning.repair import Finished, Fit, RepairKind, RepairReport, repair_thin
from slimfast.storage.atomic import atomic_path
from slimfast.storage.documents import Fields, parse_object, read_text
from slimfast.storage.safetensors_writer import bytes_of
from slimfast.storage.stored_tensors import Entry, Shelf, StoredTensor
from slimfast.storage.tensor_documents import open_tensor_document, write_tensor_document
from slimfast.storage.weights import Weights

KIND, TENSOR = "slimfast.repair", "slimfast.repair.tensor"
SCHEMA = 1
_INDEX = "repair.json"
# Bytes of a file's rows, of tensors that are written some rows after the others.
_FILE = 32 << 20
_PATTERN = "tensor-*.safetensors"


class RepairFolder:
    """What a repair has done so far: fits, and the tensors that are other than they were cut.

    ``report`` is there when all of it is done. A folder of another job is made empty.
    """

    def __init__(self, folder: Path, job: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self._job = folder, job
        self.fits: dict[str, Fit] = {}
        self.report: RepairReport | None = None
        # The files of each tensor, one but for those that are written some rows after the others.
        self._files: dict[str, list[str]] = {}
        self._kept: dict[str, list[str]] = {}
        if not self._read():
            self.remove()
            folder.mkdir(exist_ok=True)
        self._files |= self._kept

    def names(self) -> list[str]:
        """Name the tensors that were repaired."""
        return list(self._files)

    def read(self, name: str) -> Tensor | None:
        """Read a tensor as it was repaired; None where it was not."""
        if name not in self._files:
            return None
        found = list(self.parts(name))
        return found[0] if len(found) == 1 else torch.cat(found)

    def parts(self, name: str) -> Iterator[Tensor]:
        """Read a repaired tensor, some rows after the others where it was written so."""
        for file in self._files[name]:
            yield self._values(file)

    def read_rows(self, name: str, first: int, last: int) -> Tensor | None:
        """Read some rows of a tensor as it was repaired; None where it was not."""
        if name not in self._files:
            return None
        found, start = [], 0
        for file in self._files[name]:
            with open_tensor_document(self.folder / file, "a repaired tensor") as document:
                stop = start + document.shapes["values"][0]
            if start < last and first < stop:
                found.append(self._values(file)[max(first - start, 0) : last - start])
            start = stop
        return torch.cat(found)

    def write(self, name: str, values: Tensor) -> None:
        """Write a repaired tensor; it counts for later runs from the next :meth:`note` on."""
        self._files[name] = [self._write(name, "", values)]

    def write_rows(self, name: str, pieces: Iterable[Tensor]) -> None:
        """Write a repaired tensor, some rows after the others, each in a file; likewise."""
        files, waiting = list[str](), list[Tensor]()
        for piece in pieces:
            waiting.append(piece)
            if sum(part.nbytes for part in waiting) >= _FILE:
                files.append(self._write(name, f"-{len(files)}", torch.cat(waiting)))
                waiting = []
        if waiting:
            files.append(self._write(name, f"-{len(files)}", torch.cat(waiting)))
        self._files[name] = files

    def _write(self, name: str, part: str, values: Tensor) -> str:
        file = f"tensor-{hashlib.sha256(name.encode()).hexdigest()[:24]}{part}.safetensors"
        document = {"kind": TENSOR, "schema": SCHEMA, "name": name}
        write_tensor_document(self.folder / file, json.dumps(document), {"values": values.contiguous()})
        return file

    def _values(self, file: str) -> Tensor:
        with open_tensor_document(self.folder / file, "a repaired tensor") as document:
            found = document.tensor("values").clone()
            document.check()
        return found

    def note(self, weight: str, fit: Fit) -> None:
        """Write down that a layer is repaired, with what was written since the one before."""
        self.fits[weight] = fit
        self._write_index()

    def finish(self, report: RepairReport) -> None:
        """Write down that all is done."""
        self.report = report
        self._write_index()

    def remove(self) -> None:
        """Remove the folder, as far as it is ours."""
        for path in (*self.folder.glob(_PATTERN), self.folder / _INDEX, *self.folder.glob(".*.part.*")):
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _write_index(self) -> None:
        self._kept = dict(self._files)
        document: dict[str, Any] = {"kind": KIND, "schema": SCHEMA, "job": self._job}
        document["tensors"] = {
            name: files[0] if len(files) == 1 else files for name, files in self._kept.items()
        }
        document["fits"] = fits_to_json(self.fits)
        document["report"] = None if self.report is None else report_to_json(self.report)
        with atomic_path(self.folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")

    def _read(self) -> bool:
        """Read what an earlier run has done; say whether it is of this job."""
        path = self.folder / _INDEX
        if not path.exists():
            return False
        fields = parse_object(read_text(path), str(path))
        fields.schema(KIND, SCHEMA)
        if fields.string("job") != self._job:
            return False
        self.fits = fits_from_json(fields.object("fits"))
        files = fields.object("tensors")
        self._kept = {name: _names_of_files(files, name) for name in files.names()}
        if not fields.is_null("report"):
            self.report = report_from_json(fields.object("report"))
        fields.done()
        return True


def _names_of_files(files: Fields, name: str) -> list[str]:
    """Read the name of a tensor's file, or the names of several; never a path to another folder."""
    said = files.raw(name)
    several = [said] if isinstance(said, str) else said
    if not isinstance(several, list) or not several or not all(isinstance(file, str) for file in several):
        raise SlimfastError(f"{files.where}: {name}: expected the names of files")
    return [Path(file).name for file in several]


def repair_in_folder(
    model: nn.Module,
    weights: Weights,
    described: Manifest,
    graph: ChannelGraph,
    keeps: Mapping[str, IntArray],
    state: RepairFolder,
    *,
    kind: RepairKind,
    calibration: Calibration | None,
    damping: float,
    memory: int,
    backend: str,
    tick: Progress,
) -> RepairReport:
    """Repair what a checkpoint is cut to, as :func:`slimfast.prune_channels` does, into a folder."""
    if state.report is not None:
        return state.report
    shelf = Shelf(WEIGHTS)
    wide = streamed_copy(model, weights, shelf)
    thin = _streamed_thin(model, weights, described, shelf, state, backend)
    report = repair_thin(
        wide,
        thin,
        graph,
        keeps,
        kind=kind,
        calibration=calibration,
        damping=damping,
        memory=memory,
        backend=backend,
        tick=tick,
        finished=Finished(dict(state.fits), state.note),
        folder=state.folder,
    )
    for path in report.norms:
        for name in ("running_mean", "running_var"):
            state.write(f"{path}.{name}", thin.get_buffer(f"{path}.{name}"))
    state.finish(report)
    return report


def _streamed_thin(
    model: nn.Module, weights: Weights, described: Manifest, shelf: Shelf, state: RepairFolder, backend: str
) -> nn.Module:
    """Make the thin network whose parameters are cut from files when they are asked for, and repaired ones
    read from the folder.
    """
    network = Network.of(model)
    stored = stored_names(network, weights)
    tensors: dict[str, Tensor] = {}
    for name in described.shapes():
        wide = network.tensors[name]
        if isinstance(wide, nn.Parameter):
            cut = CutTensor(weights, stored[name], described.keeps.get(name, {}), wide.dtype, backend)
            tensors[name] = StoredTensor(_entry(state, name, cut, weights, stored[name], wide.dtype), shelf)
        else:
            own = weights.load(stored[name]).to(wide.dtype) if name in stored else wide
            tensors[name] = described.slice_of(name, own)
    return described.thin_copy(model, tensors, what=weights.source)


def _entry(
    state: RepairFolder, name: str, cut: CutTensor, weights: Weights, stored: str, dtype: torch.dtype
) -> Entry:
    """Make the entry of a tensor that is cut when it is asked for, or read as it was repaired."""

    def read() -> Tensor:
        repaired = state.read(name)
        return cut.read() if repaired is None else repaired

    def rows(first: int, last: int) -> Tensor:
        repaired = state.read_rows(name, first, last)
        return cut.rows(first, last) if repaired is None else repaired

    return Entry(
        name, cut.shape, dtype, read, functools.partial(state.write, name),
        rows if are_long(weights, stored) else None, functools.partial(state.write_rows, name),
    )  # fmt: skip


def digest_of(calibration: Calibration) -> str:
    """Hash what a repair takes from a calibration."""
    digest = hashlib.sha256(f"{calibration.samples} {calibration.bytes_held}".encode())
    digest.update(hash_samples(calibration.batches, calibration.masks).encode())
    for weight, reading in calibration.readings.items():
        digest.update(f"{weight} {reading.count}\n".encode())
        for tensor in (reading.mean, reading.norms):
            for part in bytes_of(tensor):
                digest.update(part)
    return digest.hexdigest()


def report_to_json(report: RepairReport) -> dict[str, Any]:
    """Write a report as JSON."""
    found = {"kind": report.kind, "norms": list(report.norms), "left": dict(report.left)}
    return {**found, "fits": fits_to_json(report.fits)}


def report_from_json(fields: Fields) -> RepairReport:
    """Read what :func:`report_to_json` has written."""
    kind: Any = fields.string("kind", ("weights", "activations", "moments"))
    left, norms = fields.object("left"), fields.raw("norms")
    if not isinstance(norms, list) or not all(isinstance(norm, str) for norm in norms):
        raise SlimfastError(f"{fields.where}: norms: expected a list of names")
    reasons = {name: left.string(name) for name in left.names()}
    found = RepairReport(kind, fits_from_json(fields.object("fits")), tuple(norms), reasons)
    fields.done()
    return found


def fits_to_json(fits: Mapping[str, Fit]) -> dict[str, list[float | None]]:
    """Write fits as JSON, which has no infinite damping."""
    return {
        weight: [None if math.isinf(fit.damping) else fit.damping, fit.before, fit.after]
        for weight, fit in fits.items()
    }


def fits_from_json(fields: Fields) -> dict[str, Fit]:
    """Read what :func:`fits_to_json` has written."""
    fits = {}
    for weight in fields.names():
        values = fields.raw(weight)
        known = isinstance(values, list) and len(values) == 3
        if not known or not all(isinstance(value, (float, int, type(None))) for value in values):
            raise SlimfastError(f"{fields.where}: {weight}: expected three numbers")
        fits[weight] = Fit(math.inf if values[0] is None else float(values[0]), *values[1:])
    return fits
