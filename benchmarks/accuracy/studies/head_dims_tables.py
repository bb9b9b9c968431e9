"""The table of MiniLM's head dims, chosen or rotated."""

from __future__ import annotations

from benchmarks.markdown import NOT_YET, Result, Table, rows_of
from benchmarks.stamp import made_at


def table(result: Result) -> str:
    """One row a network, the best first."""
    if not result:
        return f"{NOT_YET}\n"
    settings, dense = result["settings"], result["dense"]
    lines = [["dims of a head", "which", "repair", "test"], ["--:", "---", "---", "--:"]]
    lines.append(["32", "all", "", f"{100 * dense['test']:.2f}"])
    for row in sorted(result["rows"], key=lambda row: -row["test"]):
        lines.append([str(row["width"]), row["way"], row["repair"] or "none", f"{100 * row['test']:.2f}"])
    return (
        f"{rows_of(lines)}\n\nSpearman's rank correlation x 100 on STS-B; {settings['calibration']} "
        f"sentences of {settings['length']} tokens calibrate, one draw, no training; {made_at(result)}.\n"
    )


TABLES = (Table("accuracy-head-dims", ("head-dims.json",), table),)
