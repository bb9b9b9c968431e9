"""The folder that shards are written to: one run at a time, and what is not ours is not written over."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from slimfast.pruning.manifests import Manifest
from slimfast.storage.atomic import cannot_write, check_file, lock
from slimfast.storage.documents import parse_object
from slimfast.storage.weights import Weights

INDEX = "model.safetensors.index.json"
# Under this name the metadata of shards and of their index say which job has written them.
JOB = "slimfast.job"


def job_of(weights: Weights, described: Manifest) -> str:
    """Hash what a folder is the result of: the manifest, and the files as they are now."""
    files = sorted({extent.path for extent in weights.extents.values()} or {Path(weights.source)})
    digest = hashlib.sha256(described.to_json().encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def clear(folder: Path, files: Iterable[str], job: str) -> None:
    """Make way for a job: remove the index of an earlier one, and refuse to write over what is not ours.

    Without the index no reader finds the new shards among the old.
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
        for part in folder.glob(".model*.part.*"):
            part.unlink()
        yield
    finally:
        os.close(descriptor)
