"""The folder that shards are written to: one run at a time, and what is not ours is not written over."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from slimfast.errors import SlimfastError
from slimfast.plans.fingerprint import fingerprint_of
from slimfast.pruning.manifests import Manifest
from slimfast.storage.atomic import cannot_write, check_file, lock
from slimfast.storage.documents import Fields, parse_object
from slimfast.storage.file_sums import FILE_SUM, check_sum
from slimfast.storage.weights import Weights

INDEX = "model.safetensors.index.json"
# Under this name the metadata of shards and of their index say which job has written them.
JOB = "slimfast.job"
# And here the index has the report of a repair.
REPAIR = "slimfast.repair"
_REMEDY = "remove it and prune again"


def job_of(weights: Weights, described: Manifest, how: str = "") -> str:
    """Hash what a folder is the result of: the manifest, the files as they are now, and ``how``.

    Shards of before they had checksums are of another job.
    """
    return hashlib.sha256((FILE_SUM + described.to_json() + as_they_are(weights) + how).encode()).hexdigest()


def as_they_are(weights: Weights) -> str:
    """Describe the files of weights as they are now, so that others, and later ones, differ.

    Of weights that are in no files it is the values.
    """
    files = sorted({extent.path for extent in weights.extents.values()} or {Path(weights.source)})
    if not files[0].exists():
        return str(fingerprint_of((name, weights.load(name)) for name in weights.infos))
    states = ((file.name, file.stat()) for file in files)
    return "".join(f"{name} {status.st_size} {status.st_mtime_ns}\n" for name, status in states)


def clear(folder: Path, files: Collection[str], job: str) -> Any:
    """Make way for a job: remove the index of an earlier one, and refuse to write over what is not ours.

    Without the index no reader finds the new shards among the old. Returns the report of the repair, where
    the job had come to its end; None where there is none.
    """
    for file in files:
        if (folder / file).exists() and job_of_shard(folder / file) is None:
            raise cannot_write(folder / file, "a file of something else is there")
    index = folder / INDEX
    if index.exists():
        fields = parse_object(check_file(index).read_bytes(), str(index))
        held = fields.object("metadata") if "metadata" in fields.names() else fields
        if JOB not in held.names():
            raise cannot_write(index, "another checkpoint is there")
        if held.string(JOB) != job:
            index.unlink()
        elif held.has(REPAIR) and all(job_of_shard(folder / file) == job for file in files):
            return held.raw(REPAIR)
    return None


def job_of_shard(path: Path) -> str | None:
    """Read which job has written a shard; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(JOB)
    except (SafetensorError, OSError):
        return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this run alone, without what killed runs have left half-written in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, folder)
        for part in folder.glob(".*.part.*"):
            part.unlink()
        yield
    finally:
        os.close(descriptor)


def index_text(metadata: Mapping[str, Any], weight_map: Mapping[str, str]) -> str:
    """Write the index of thin shards as JSON, with a checksum of what it says."""
    said = {"metadata": {**metadata}, "weight_map": {**weight_map}}
    said["metadata"][FILE_SUM] = _sum_of(said)
    return json.dumps(said, indent=1)


def read_index(folder: str | os.PathLike[str]) -> Fields:
    """Read the metadata of the index in a folder; one that is not what was written is refused."""
    index = check_file(Path(folder) / INDEX)
    text = index.read_bytes()
    fields = parse_object(text, str(index)).object("metadata")
    said = json.loads(text)
    stored = said["metadata"].pop(FILE_SUM, None)
    if stored is not None and stored != _sum_of(said):
        raise SlimfastError(f"{index}: it is damaged: its content is not what was written; {_REMEDY}")
    return fields


def check_shards(folder: str | os.PathLike[str]) -> None:
    """Read all shards of a folder; one that is not byte by byte what was written, or of another run, is
    refused.

    Folders of before there were checksums have none to go by, which is a warning.
    """
    index = Path(folder) / INDEX
    metadata = read_index(folder)
    said = parse_object(index.read_bytes(), str(index)).object("weight_map")
    job = metadata.string(JOB) if metadata.has(JOB) else None
    found = {
        file: check_sum(Path(folder) / file, _REMEDY)
        for file in sorted({said.string(n) for n in said.names()})
    }
    if not metadata.has(FILE_SUM) and not any(found.values()):
        warnings.warn(
            f"{index}: its shards are of before they had checksums, so that damage to them is not found; "
            "prune again for them",
            stacklevel=3,
        )
        return
    for file, held in found.items():
        if held is None or held.get(JOB) != job:
            why = "of another run" if held else "without the checksum that it was written with"
            raise SlimfastError(
                f"{Path(folder) / file}: expected a shard of {index}, got one {why}; {_REMEDY}"
            )
    if not metadata.has(FILE_SUM):
        raise SlimfastError(
            f"{index}: it is damaged: its checksum is missing, its shards have theirs; {_REMEDY}"
        )


def _sum_of(said: Mapping[str, Any]) -> str:
    """Compute the checksum of an index, however its JSON is laid out."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
