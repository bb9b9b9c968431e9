"""The table of the CIFAR-10 study: the planned network beside its uniform control."""

from __future__ import annotations

from benchmarks.accuracy.studies.cells import cells_of
from benchmarks.markdown import NOT_MEASURED, NOT_YET, Result, Table, rows_of

NETWORKS = (
    ("dense, trained", "original"),
    ("plan, one shot", "thin, pruned"),
    ("plan, distilled", "thin, distilled"),
    ("uniform, one shot", "uniform widths, pruned"),
    ("uniform, distilled", "uniform widths, distilled"),
)


def table(result: Result) -> str:
    """A row each of the networks, measured or not, and a line on the recipe and the machine."""
    lines = [["", "test accuracy", "parameters", "MACs"], ["---", "--:", "--:", "--:"]]
    for key, name in NETWORKS:
        rows = [row for row in result.get("rows", ()) if f"{row['kind']}, {row['stage']}" == key]
        lines.append([name, *(cells_of(rows) if rows else [NOT_MEASURED] * 3)])
    return f"{rows_of(lines)}\n\n{_where(result)}\n"


def _where(result: Result) -> str:
    if not result:
        return NOT_YET
    settings, made = result["settings"], result["stamp"]
    seeds = len(settings["seeds"])
    return (
        f"{settings['network']} at {settings['macs']:g} of its MACs, filters by {settings['select']}; "
        f"{settings['epochs']} epoch{'s' * (settings['epochs'] != 1)} of distillation on "
        f"{settings['train_images']:,} images, {seeds} seed{'s' * (seeds != 1)}, "
        f"{settings['test_images']:,} test images read once; {result['wall_seconds']:.0f} s, "
        f"torch {made['versions']['torch']}, {made['date']}, commit {made['commit']}."
    )


TABLES = (Table("accuracy-cifar10-*", ("cifar10-*.json",), table),)
