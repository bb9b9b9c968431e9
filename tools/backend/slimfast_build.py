"""The build backend: scikit-build-core's, but that editable installs bring slimfast and nothing beside it.

scikit-build-core finds the package by an import hook, and puts the folder that it lies in on the path of
every program as well: whatever else is there, ``benchmarks`` and ``tests``, would be importable anywhere.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

from scikit_build_core import build as _build
from scikit_build_core.build import *  # noqa: F403


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel of an editable install, as PEP 660 has it, and return its name."""
    name: str = _build.build_editable(wheel_directory, config_settings, metadata_directory)
    take_folders_off(Path(wheel_directory) / name)
    return name


def take_folders_off(wheel: Path) -> None:
    """Rewrite a wheel whose ``.pth`` files name folders, so that only their imports stay."""
    with zipfile.ZipFile(wheel) as file:
        entries = {info: file.read(info) for info in file.infolist()}
    for info, content in entries.items():
        if info.filename.endswith(".pth"):
            lines = content.decode().splitlines(keepends=True)
            entries[info] = "".join(line for line in lines if line.startswith("import ")).encode()
    contents = {info.filename: content for info, content in entries.items()}
    for info, content in entries.items():
        if info.filename.endswith(".dist-info/RECORD"):
            entries[info] = _recorded(content, contents)
    written = wheel.with_suffix(".part")
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as file:
        for info, content in entries.items():
            file.writestr(info, content)
    os.replace(written, wheel)


def _recorded(record: bytes, contents: dict[str, bytes]) -> bytes:
    """Write the list of a wheel's files anew, with the hashes and sizes that they have now."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for path, digest, size in csv.reader(io.StringIO(record.decode())):
        if path.endswith(".pth"):
            made = base64.urlsafe_b64encode(hashlib.sha256(contents[path]).digest()).decode()
            digest, size = f"sha256={made.rstrip('=')}", str(len(contents[path]))
        writer.writerow((path, digest, size))
    return text.getvalue().encode()
