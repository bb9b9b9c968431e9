"""Peak memory predicted and measured: ``python -m benchmarks.memory [--only GLOB ...]``.

For each network and batch of ``benchmarks.latency`` a memory table is made from one run, and thin networks of
three uniform shares of all groups are measured beside what it predicts of their widths. A budget of half of
the peak is planned too, and its thin network measured. Networks have random weights, which memory does not
depend on, and nothing is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks.latency import BATCHES, NETWORKS
from benchmarks.markdown import NOT_YET, Table, rows_of
from benchmarks.network_rows import measure_rows, origin, parser_of
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.graph.recording.network import Network
from slimfast.latency.tabulate import thin_network
from slimfast.memory import memory_table, peak_memory
from slimfast.plans import plan

SHARES = (0.75, 0.5, 0.25)
BUDGET = 0.5
WITHIN = 0.05


def measured(name: str, batch: int) -> dict[str, Any]:
    """Measure a network and thin ones of it."""
    torch.manual_seed(0)
    model, example = NETWORKS[name](batch)
    model.eval()
    graph = trace_channels(model, example)
    table = memory_table(graph, model, example)
    network = Network.of(model)
    row: dict[str, Any] = {
        "bytes": table.whole.total,
        "weights": table.whole.weights,
        "activations": table.whole.activations,
        "shares": {},
    }
    for share in SHARES:
        widths = {group.name: max(1, round(group.n * share)) for group in graph}
        taken = peak_memory(thin_network(network, graph, widths), example).total
        row["shares"][str(share)] = {"predicted": table.predicted(graph, widths), "measured": taken}
    try:
        found = plan(model, example, graph=graph, peak_memory=BUDGET, memory_table=table)
    except SlimfastError as error:
        return row | {"budget": {"failed": str(error)}}
    assert found.peak_memory is not None
    assert found.peak_memory.measured is not None
    row["budget"] = {
        "predicted": table.predicted(graph, found.widths()),
        "measured": found.peak_memory.measured,
        "macs": found.cost_after.macs / found.cost_before.macs,
        "params": found.cost_after.params / found.cost_before.params,
    }
    return row


def errors_of(rows: Mapping[str, Any]) -> list[float]:
    """List how far each prediction is from what was measured, as a share of that."""
    return [abs(told["predicted"] / told["measured"] - 1.0) for told in _told(rows)]


def _told(rows: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for row in rows.values():
        if "failed" not in row:
            yield from row["shares"].values()
            if "failed" not in row["budget"]:
                yield row["budget"]


def table_text(result: Mapping[str, Any]) -> str:
    """Show each network with its peak, and the peaks of thin ones."""
    rows = result.get("rows", {})
    if not rows:
        return f"{NOT_YET}\n"
    heads = [f"{share:g} of the units" for share in SHARES]
    lines: list[Sequence[str]] = [
        ("", "peak, MB", "weights, MB", *heads, f"budget {BUDGET:g}", "MACs left"),
        ["---", *["--:"] * (len(SHARES) + 4)],
    ]
    for name, row in rows.items():
        if "failed" in row:
            lines.append([name, row["failed"], *[""] * (len(SHARES) + 3)])
            continue
        cells = [_cell(row["shares"][str(share)]) for share in SHARES]
        budget = row["budget"]
        reached = "failed" not in budget
        kept = f"{budget['measured'] / row['bytes']:.3f}" if reached else "cannot be reached"
        whole = (f"{row['bytes'] / 1e6:.1f}", f"{row['weights'] / 1e6:.1f}")
        lines.append([name, *whole, *cells, kept, f"{budget['macs']:.3f}" if reached else "-"])
    errors = errors_of(rows)
    plans = [row for row in rows.values() if "failed" not in row and "failed" not in row["budget"]]
    inside = sum(row["budget"]["measured"] <= BUDGET * row["bytes"] for row in plans)
    summary = (
        "Predicted / measured peak of thin networks in MB, at uniform shares of all groups as they come; "
        f"then the measured share of the peak that a plan for `peak_memory={BUDGET:g}` leaves. Error of the "
        f"prediction: median {statistics.median(errors):.2%}, worst {max(errors):.1%}, within 5 % in "
        f"{sum(error <= WITHIN for error in errors)} of {len(errors)}; plans inside when measured: {inside} "
        f"of {len(plans)}. "
    )
    return f"{rows_of(lines)}\n\n{summary}{origin(result)}.\n"


def _cell(told: Mapping[str, Any]) -> str:
    return f"{told['predicted'] / 1e6:.2f} / {told['measured'] / 1e6:.2f}"


TABLES = (Table("peak-memory", ("memory.json",), table_text),)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the networks that are asked for, one after the other."""
    parser = parser_of("memory", __doc__, BATCHES)
    measure_rows(parser.parse_args(arguments), NETWORKS, BATCHES, measured)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
