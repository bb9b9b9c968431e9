"""The latency of a network as a function of its widths: what was measured, as data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slimfast.errors import ArgumentTypeError, SlimfastError
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.latency.pricing import PricedLatency, TimedPiece
from slimfast.latency.table_fields import pairs_from_json, piece_from_json, piece_to_json
from slimfast.latency.timing import Measure, seconds_text, threads_text
from slimfast.storage.atomic import atomic_path
from slimfast.storage.documents import parse_object, read_text

KIND = "slimfast.latency"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """How long a network takes at any widths, on the machine where it was measured.

    Attributes:
        pieces: The pieces of the forward, each where it was measured.
        whole: Of whole networks at a few uniform widths: what the pieces add up to, and what the network
            took. The last is the network as it is.
        graph: The fingerprint of the graph it belongs to.
        runtime: What ran it.
        threads: With how many threads; None where a function of the user's own has measured.
        batch: The length of the first axis of the first input.
        machine: The processor.
        versions: Those of the libraries.
        measure: The user's own function, where one has measured; it is not written.

    Example:
        table = slimfast.latency_table(graph, model, example)
        table.save("latency.json")
        plan = slimfast.plan_widths(graph, spectra, latency=0.5, latency_table="latency.json")
    """

    pieces: tuple[TimedPiece, ...]
    whole: tuple[tuple[float, float], ...]
    graph: str
    runtime: str
    threads: int | None
    batch: int
    machine: str
    versions: Mapping[str, str]
    measure: Measure | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        points = sum(len(piece.seconds) for piece in self.pieces)
        return (
            f"{seconds_text(self.whole[-1][1])} whole; {len(self.pieces)} pieces at {points:,} points, "
            f"{self.where()}"
        )

    def where(self) -> str:
        """Say in what runtime, with how many threads and on what machine it was measured."""
        ran = self.runtime if self.threads is None else f"{self.runtime}, {threads_text(self.threads)}"
        return f"{ran}, batch {self.batch}, on {self.machine}"

    def predicted(self, graph: ChannelGraph, widths: Mapping[str, int]) -> float:
        """Predict the seconds of a forward where the groups have these widths; others keep all units.

        Raises :class:`SlimfastError` for another graph.
        """
        vector = [widths.get(group.name, group.n) for group in graph.groups]
        return self.priced(graph).price(np.array(vector, dtype=np.int64))

    def priced(self, graph: ChannelGraph, *, factor: float = 1.0) -> PricedLatency:
        """Make a function of the widths of a graph's groups of it, times a factor; errors as of
        :meth:`predicted`.
        """
        if self.graph != fingerprint_of_graph(graph):
            raise SlimfastError(
                "latency_table: expected the table of this network with this example, got that of another "
                f"(batch {self.batch}); make one with slimfast.latency_table(graph, model, example)"
            )
        return PricedLatency(self.pieces, self.whole, graph, factor=factor)

    def to_json(self) -> str:
        """Write the table as a JSON document, one piece a line."""
        head: dict[str, Any] = {
            "kind": KIND,
            "schema": SCHEMA,
            "finished": True,
            "machine": self.machine,
            "versions": dict(self.versions),
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "graph": self.graph,
            "whole": [list(pair) for pair in self.whole],
        }
        lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in head.items()]
        pieces = ",\n".join(f"  {json.dumps(piece_to_json(p), allow_nan=False)}" for p in self.pieces)
        return ",\n".join(["{" + lines[0], *lines[1:], f'"pieces": [\n{pieces}\n]}}\n'])

    @staticmethod
    def from_json(text: str | bytes, *, what: str = "latency table") -> LatencyTable:
        """Read the table in a JSON document; one line of :class:`SlimfastError` for what is wrong with it."""
        fields = parse_object(text, what)
        fields.schema(KIND, SCHEMA)
        if not fields.boolean("finished"):
            raise SlimfastError(
                f"{what}: its measurement was not finished: go on with latency_table(..., resume=)"
            )
        versions = fields.object("versions")
        table = LatencyTable(
            machine=fields.string("machine"),
            versions={name: versions.string(name) for name in versions.names()},
            runtime=fields.string("runtime"),
            threads=None if fields.is_null("threads") else fields.integer("threads", 1),
            batch=fields.integer("batch", 0),
            graph=fields.string("graph"),
            whole=pairs_from_json(fields, "whole"),
            pieces=tuple(piece_from_json(item) for item in fields.objects("pieces")),
        )
        fields.done()
        return table

    @staticmethod
    def of(table: LatencyTable | str | os.PathLike[str]) -> LatencyTable:
        """Return a table itself, or load the one in the file of that path; ``TypeError`` for all else."""
        if isinstance(table, LatencyTable):
            return table
        if isinstance(table, (str, os.PathLike)):
            return LatencyTable.from_json(read_text(table), what=os.fspath(table))
        raise ArgumentTypeError(
            f"latency_table: expected a LatencyTable or the path of one, got {type(table).__name__}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to a file, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")


def fingerprint_of_graph(graph: ChannelGraph) -> str:
    """Compute the fingerprint of a graph: its groups, and the operations with all their lengths."""
    digest = hashlib.blake2b(digest_size=16)
    for group in graph.groups:
        digest.update(f"{group.name} {group.kind} {group.n}\n".encode())
    for name, axes in graph.axes.items():
        digest.update(f"{name} {[axis.length for axis in axes]}\n".encode())
    for operation in graph.operations:
        lengths = [[axis.length for axis in axes] for axes in operation.outputs]
        digest.update(f"{operation.name} {operation.module} {lengths}\n".encode())
    return digest.hexdigest()
