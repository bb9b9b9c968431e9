"""What was measured of a latency table so far, kept in a file."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from slimfast.errors import SlimfastError, shown
from slimfast.latency.pricing import TimedPiece
from slimfast.latency.surfaces import Point
from slimfast.latency.table import KIND, SCHEMA, LatencyTable
from slimfast.latency.table_fields import seconds_from_json
from slimfast.storage.atomic import atomic_path
from slimfast.storage.documents import Fields, check_integer, parse_object, read_text

_EVERY_SECONDS = 5.0


class Unfinished:
    """The points of a table that were measured: those that a file has, and more.

    ``head`` is the table without its pieces: what is in the file must be of the same network, runtime,
    threads, batch and machine, else :class:`SlimfastError`.
    """

    def __init__(self, head: LatencyTable, path: Path | None) -> None:
        self._head = head
        self._path = path
        self._seconds: dict[tuple[str, Point], float] = {}
        self._saved = time.monotonic()
        if path is not None and path.exists():
            self._read(parse_object(read_text(path), str(path)))

    def has(self, signature: str, point: Point) -> bool:
        """Whether a piece was measured at a point."""
        return (signature, point) in self._seconds

    def keep(self, signature: str, point: Point, seconds: float) -> None:
        """Note what a piece took at a point, and write the file where that was long ago."""
        self._seconds[signature, point] = seconds
        if self._path is not None and time.monotonic() - self._saved > _EVERY_SECONDS:
            self._write(self._path)

    def seconds(self, signature: str, point: Point) -> float:
        """Look up what was measured."""
        return self._seconds[signature, point]

    def table(self, pieces: tuple[TimedPiece, ...], whole: tuple[tuple[float, float], ...]) -> LatencyTable:
        """Make the finished table."""
        return replace(self._head, pieces=pieces, whole=whole)

    def _identity(self) -> dict[str, str]:
        head = self._head
        return {
            "graph": head.graph,
            "runtime": head.runtime,
            "threads": str(head.threads),
            "machine": head.machine,
        }

    def _write(self, path: Path) -> None:
        points = [[signature, list(point), s] for (signature, point), s in self._seconds.items()]
        document = {"kind": KIND, "schema": SCHEMA, "finished": False, **self._identity(), "points": points}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        self._saved = time.monotonic()

    def _read(self, fields: Fields) -> None:
        fields.schema(KIND, SCHEMA)
        if fields.boolean("finished"):
            raise SlimfastError(
                f"{fields.where}: this table is finished; read it, or measure into another file"
            )
        for name, expected in self._identity().items():
            found = fields.string(name)
            if found != expected:
                raise SlimfastError(
                    f"{fields.where}: expected what was measured of this network here ({name} {expected}), "
                    f"got {found}; measure into another file"
                )
        points = fields.raw("points")
        for found in points if isinstance(points, list) else [points]:
            if not isinstance(found, list) or len(found) != 3 or not isinstance(found[1], list):
                raise SlimfastError(
                    f"{fields.where}: points: expected lists of a piece, its widths and seconds, got "
                    f"{shown(found)}"
                )
            point = tuple(check_integer(width, f"{fields.where}: points") for width in found[1])
            self._seconds[str(found[0]), point] = seconds_from_json(found[2], fields.where)
        fields.done()
