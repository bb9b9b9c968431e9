"""The table of the decoder benchmark: perplexity of thin decoders before any training."""

from __future__ import annotations

import statistics

from benchmarks.markdown import NOT_YET, Result, Table, rows_of
from benchmarks.stamp import made_at


def table(result: Result) -> str:
    """A line for each way, the best first; a column for each share of the decoder layers' parameters."""
    if not result:
        return f"{NOT_YET}\n"
    settings, dense = result["settings"], result["dense"]
    shares = sorted({row["share"] for row in result["rows"]}, reverse=True)
    heads = [f"{share:.0%} kept" for share in shares]
    lines = [["thin decoder", "repair", *heads, "seconds"], ["---", "---", *["--:"] * len(shares), "--:"]]
    lines.append(["original", "", *[f"{dense['perplexity']:.2f}"] * len(shares), ""])
    ways = dict.fromkeys((row["name"], row["repair"], row["control"]) for row in result["rows"])
    cells = {way: [_of(result, way[0], share) for share in shares] for way in ways}
    for way in sorted(ways, key=lambda way: statistics.fmean(cells[way][0] or [float("inf")])):
        name, repair, control = way
        seconds = [row["seconds"] for row in result["rows"] if row["name"] == name]
        lines.append(
            [
                f"{name.rpartition(', ')[0] if repair or name.endswith(', no repair') else name}"
                f"{' (control)' if control else ''}",
                repair or "none",
                *(_cell(values, dense["perplexity"], settings["draws"]) for values in cells[way]),
                f"{statistics.median(seconds):.0f}",
            ]
        )
    test = f"{settings['windows']} test windows" if settings["windows"] else "all test windows"
    draws = settings["draws"]
    return (
        f"{rows_of(lines)}\n\nPerplexity (and times the original's) of SmolLM2-135M-Instruct, dequantised, "
        f"on WikiText-2: {test} of {settings['length']} tokens without overlap, {dense['tokens']:,} "
        f"predictions{', so rough' if dense['tokens'] < 100_000 else ''}; {settings['calibration']} windows "
        f"of {settings['calibration_length']} tokens of the validation articles calibrate, {draws} "
        f"draw{'s' * (draws != 1)} of them. Kept is the share of the parameters of the decoder's layers; MLP "
        f"alone, or MLP and heads, are cut. Before any training. Seconds of the plan, the cut and repair; "
        f"{made_at(result)}.\n"
    )


def _of(result: Result, name: str, share: float) -> list[float]:
    return [row["perplexity"] for row in result["rows"] if (row["name"], row["share"]) == (name, share)]


def _cell(values: list[float], dense: float, draws: int) -> str:
    if not values:
        return "not measured"
    mean = statistics.fmean(values)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    of = "" if len(values) == draws else f", {len(values)} of {draws} draws"
    return f"{mean:,.1f}{spread} ({mean / dense:,.2f} x{of})"


TABLES = (Table("accuracy-decoder*", ("decoder*.json",), table),)
