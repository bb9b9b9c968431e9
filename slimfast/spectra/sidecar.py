"""Sidecars: the layers a measurement has finished, appended to a file one by one, so that a run that was
stopped goes on from there.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from slimfast.errors import SlimfastError
from slimfast.spectra.records import decode, encode
from slimfast.spectra.spectrum import Spectrum
from slimfast.storage.atomic import cannot_write, lock

_log = logging.getLogger(__name__)
_HEADER = b"slimfast sidecar 1\n"


@dataclass(frozen=True, slots=True)
class Key:
    """What a recorded spectrum was measured from.

    ``question`` stands for the layer's name and structure, the options and the arithmetic; ``content`` for
    the elements of its tensors. Only a record of both is the answer.
    """

    question: str
    content: str


@dataclass(slots=True)
class Sidecar:
    """An open sidecar, locked for this process. ``found`` holds the records it had, by question."""

    path: Path
    stream: io.FileIO
    found: dict[str, tuple[str, Spectrum]] = field(default_factory=dict)

    def content(self, question: str) -> str | None:
        """Return the content of which there is a record for that question."""
        return self.found[question][0] if question in self.found else None

    def spectrum(self, key: Key) -> Spectrum | None:
        """Return the recorded spectrum, if it is of this very content."""
        content, spectrum = self.found.get(key.question, ("", None))
        return spectrum if content == key.content else None

    def append(self, measured: Sequence[tuple[Key, Spectrum]]) -> None:
        """Write records and wait until they are on the disk; :class:`SlimfastError` where that fails."""
        content = b"".join(
            encode(spectrum, {"question": key.question, "content": key.content}) for key, spectrum in measured
        )
        end = self.stream.seek(0, os.SEEK_END)
        try:
            _write(self.stream, content)
        except OSError as error:
            # What was written of it is no record to a reader, but would stand before those of the next run.
            with suppress(OSError):
                self.stream.truncate(end)
            raise cannot_write(self.path, error) from error
        self.found |= {key.question: (key.content, spectrum) for key, spectrum in measured}


@contextmanager
def open_sidecar(path: str | os.PathLike[str]) -> Iterator[Sidecar]:
    """Open the sidecar at ``path``, made where there is none; what a killed run left of a record is cut off.

    Raises :class:`SlimfastError` for a file that is no sidecar, that cannot be written, or that another run
    has open.
    """
    shown = Path(path)
    with _opened(shown) as stream:
        lock(stream.fileno(), shown)
        content = stream.readall()
        # A run killed in its first moment leaves a part of the header.
        if not content.startswith(_HEADER) and not _HEADER.startswith(content):
            raise SlimfastError(f"{shown}: expected a sidecar of slimfast, got another file; it is unchanged")
        sidecar, end = Sidecar(shown, stream), 0
        for spectrum, labels, at in decode(content[len(_HEADER) :], str(shown)):
            sidecar.found[labels.get("question", "")] = (labels.get("content", ""), spectrum)
            end = at
        torn = len(content) - len(_HEADER) - end
        try:
            if torn < 0:
                stream.truncate(0)
                stream.seek(0)
                _write(stream, _HEADER)
            elif torn:
                _log.warning("%s: dropped %d bytes that are no whole record", shown, torn)
                stream.truncate(len(_HEADER) + end)
        except OSError as error:
            raise cannot_write(shown, error) from error
        yield sidecar


def hashed(items: Iterable[object]) -> str:
    """Hash the JSON of ``items`` with SHA-256: one string for whatever identifies something."""
    return hashlib.sha256(json.dumps(list(items), sort_keys=True).encode()).hexdigest()


def _opened(path: Path) -> io.FileIO:
    try:
        # Not "a+b": truncating a torn record must not depend on where the file is appended to.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise cannot_write(path, "it is not a regular file")
    return io.FileIO(descriptor, "r+")


def _write(stream: io.FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[stream.write(left) :]
    os.fsync(stream.fileno())
