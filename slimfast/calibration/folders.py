"""Calibrations in folders: a file for what each layer reads, written when that is known, and the index last.

A run that was stopped goes on from the files that are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from slimfast.arrays import Arguments
from slimfast.calibration.data import Calibration, Reading
from slimfast.calibration.files import load_file, read_samples, write_samples
from slimfast.errors import SlimfastError
from slimfast.kernels.results import Moments
from slimfast.storage.atomic import atomic_path, cannot_read, cannot_write, check_file
from slimfast.storage.documents import Fields, parse_object, read_text
from slimfast.storage.tensor_documents import open_tensor_document, write_tensor_document

KIND, READING, SAMPLES = (f"slimfast.calibration.{name}" for name in ("folder", "reading", "samples"))
SCHEMA = 1
INDEX = "calibration.json"
_SAMPLES = "samples.safetensors"
_MOST_BYTES = float(1 << 60)


class StoredReadings(Mapping[str, Reading]):
    """What layers read, each in a file of its own, which is looked at when it is asked for.

    The tensors are maps of the files, and leave the memory with the reading.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self._checked: set[Path] = set()

    def __getitem__(self, weight: str) -> Reading:
        """Read one; :class:`SlimfastError` for a file that is not what was written."""
        fields, own = self._open(self._files[weight])
        owner, count = fields.string("moments"), fields.integer("count", 1)
        if owner == weight:
            shared = own
        elif owner in self._files:
            _, shared = self._open(self._files[owner])
        else:
            raise cannot_read(self._files[weight], f"no moments of {owner}, which it shares")
        try:
            mean, covariance, norms = shared["mean"], shared["covariance"], own["norms"]
        except KeyError as error:
            raise cannot_read(self._files[weight], f"no tensor {error}") from None
        length = len(mean)
        if covariance.shape != (length, length) or norms.shape != (length,):
            raise cannot_read(self._files[weight], "its tensors do not fit each other")
        return Reading(weight, mean, covariance, norms, count)

    def __contains__(self, weight: object) -> bool:
        return weight in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _open(self, path: Path) -> tuple[Fields, dict[str, Tensor]]:
        with open_tensor_document(path, "what a layer reads") as file:
            if path not in self._checked:
                file.check()
                self._checked.add(path)
            return parse_object(file.document, str(path)), {name: file.tensor(name) for name in file.shapes}


class CalibrationFolder:
    """A folder that a calibration is written to, a layer at a time.

    ``files`` has the layers that are done, of this run or an earlier one, by weight; ``begun``: the samples
    are there; ``bytes_held`` as of a :class:`Calibration`; ``repeated``: layers that a forward calls again.
    """

    def __init__(self, folder: Path, job: str, weights: Sequence[str]) -> None:
        """Go on with the ``job`` in a folder, or begin it; the layers are those of these ``weights``.

        Raises :class:`SlimfastError` where the folder is another job's.
        """
        self.folder, self._job = folder, job
        self._places = {weight: folder / f"reading-{i:05d}.safetensors" for i, weight in enumerate(weights)}
        known = _job_of(folder / _SAMPLES, SAMPLES) if (folder / _SAMPLES).exists() else None
        there = [path for path in (*self._places.values(), folder / INDEX) if path.exists()]
        if known not in (None, job) or (known is None and there):
            raise cannot_write(
                folder,
                "a calibration of another model, of other samples or with other options is there: name "
                "another folder, or remove it",
            )
        self.begun, self.bytes_held = known == job, 0.0
        self.repeated: tuple[str, ...] = ()
        if self.begun:
            with open_tensor_document(folder / _SAMPLES, SAMPLES) as file:
                fields = parse_object(file.document, str(folder / _SAMPLES))
            self.bytes_held = fields.number("bytes_held", 0.0, _MOST_BYTES)
            self.repeated = tuple(fields.object("repeated").names())
        self.files = {
            weight: path
            for weight, path in self._places.items()
            if path.exists() and _job_of(path, READING) == job
        }

    def begin(
        self, batches: Sequence[Arguments], masks: Sequence[Tensor | None], samples: int, held: float,
        made: float, repeated: Sequence[str],
    ) -> None:  # fmt: skip
        """Write the samples down, before anything is measured on them."""
        inputs, tensors = write_samples(batches, masks)
        document = {"kind": SAMPLES, "schema": SCHEMA, "job": self._job, "samples": samples}
        document |= {
            "bytes_held": held,
            "bytes_made": made,
            "inputs": inputs,
            "repeated": dict.fromkeys(repeated, True),
        }
        write_tensor_document(self.folder / _SAMPLES, json.dumps(document, allow_nan=False), tensors)
        self.begun, self.bytes_held, self.repeated = True, held, tuple(repeated)

    def add(self, weight: str, norms: Tensor, moments: Moments | None, owner: str, count: int) -> None:
        """Write down what a layer reads; its moments are used up, and None where they are those of another,
        the ``owner``.
        """
        tensors = {"norms": norms.contiguous()}
        if moments is not None:
            covariance = moments.squares.div_(max(moments.count - 1, 1)).cpu()
            tensors |= {"mean": moments.mean.cpu(), "covariance": covariance.contiguous()}
        document = {"kind": READING, "schema": SCHEMA, "job": self._job, "weight": weight}
        document |= {"moments": owner, "count": count}
        path = self._places[weight]
        write_tensor_document(path, json.dumps(document, allow_nan=False), tensors)
        self.files[weight] = path

    def reading(self, weight: str) -> Reading:
        """Read what was written down of a layer."""
        return StoredReadings(self.files)[weight]

    def drop(self, weight: str) -> None:
        """Take back what was written down of a layer."""
        self.files.pop(weight).unlink()

    def finish(self, left: Mapping[str, str]) -> Calibration:
        """Write the index, and give the calibration."""
        files = {weight: self.files[weight].name for weight in self._places if weight in self.files}
        document = {"kind": KIND, "schema": SCHEMA, "job": self._job, "readings": files, "left": dict(left)}
        with atomic_path(self.folder / INDEX) as temporary:
            temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
        return load_calibration(self.folder)


def load_calibration(path: str | os.PathLike[str], *, device: str = "cpu") -> Calibration:
    """Load the calibration in a file of :func:`save_calibration`, or in a folder of
    :func:`slimfast.calibrate_checkpoint`.

    Of a folder what layers read stays in its files until it is asked for.

    Args:
        path: The file or the folder.
        device: Where its inputs are to be.

    Returns:
        The calibration that was saved.

    Raises:
        SlimfastError: For another file, and a folder in which no calibration came to its end.

    Example:
        calibration = slimfast.load_calibration("calibration.safetensors", device="cuda")
    """
    return _load_folder(path, device) if os.path.isdir(path) else load_file(path, device)


def _load_folder(folder: str | os.PathLike[str], device: str) -> Calibration:
    """Open the calibration in a folder; what layers read stays in its files."""
    index = check_file(Path(folder) / INDEX)
    fields = parse_object(read_text(index), str(index))
    fields.schema(KIND, SCHEMA)
    job, files, left = fields.string("job"), fields.object("readings"), fields.object("left")
    paths = {weight: index.parent / Path(files.string(weight)).name for weight in files.names()}
    reasons = {name: left.string(name) for name in left.names()}
    fields.done()
    path = index.parent / _SAMPLES
    with open_tensor_document(path, "the samples of a calibration") as file:
        of_samples = parse_object(file.document, str(path))
        tensors = {name: file.tensor(name) for name in file.shapes}
        file.check()
    of_samples.schema(SAMPLES, SCHEMA)
    if of_samples.string("job") != job:
        raise SlimfastError(f"{index}: the samples beside it are of another calibration; calibrate again")
    batches, masks = read_samples(of_samples.raw("inputs"), tensors, str(path), device)
    found = Calibration(
        readings=StoredReadings(paths),
        left=reasons,
        batches=batches,
        samples=of_samples.integer("samples", 1),
        masks=masks,
        bytes_held=of_samples.number("bytes_held", 0.0, _MOST_BYTES),
        bytes_made=of_samples.number("bytes_made", 0.0, _MOST_BYTES),
    )
    of_samples.raw("repeated")
    of_samples.done()
    return found


def _job_of(path: Path, kind: str) -> str | None:
    """Read which job has written a file; None for a file of another kind."""
    try:
        with open_tensor_document(path, kind) as file:
            fields = parse_object(file.document, str(path))
        fields.schema(kind, SCHEMA)
        return fields.string("job")
    except SlimfastError:
        return ""
