"""The folder that shards are written to: one run at a time, and what is not ours is not written over."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from slimfast.plans.fingerprint import fingerprint_of
from slimfast.pruning.manifests import Manifest
from slimfast.storage.atomic import cannot_write, check_file, lock
from slimfast.storage.documents import parse_object
from slimfast.storage.weights import Weights

INDEX = "model.safetensors.index.json"
# Under this name the metadata of shards and of their index say which job has written them.
JOB = "slimfast.job"
# And here the index has the report of a repair.
REPAIR = "slimfast.repair"


def job_of(weights: Weights, described: Manifest, how: str = "") -> str:
    """Hash what a folder is the result of: the manifest, the files as they are now, and ``how``."""
    return hashlib.sha256((described.to_json() + as_they_are(weights) + how).encode()).hexdigest()


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
