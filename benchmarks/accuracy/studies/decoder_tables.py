"""The table of the decoder benchmark: perplexity of thin decoders before any training."""

from __future__ import annotations

import itertools
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


def training_table(result: Result) -> str:
    """A line for each way that was trained, the best first, and what each network writes."""
    if not result:
        return f"{NOT_YET}\n"
    settings, dense, rows = result["settings"], result["dense"], result["rows"]
    lines = [["thin decoder", "before", "after", "seeds", "seconds"], ["---", *["--:"] * 4]]
    whole = f"{dense['perplexity']:.2f}"
    lines.append(["original", whole, whole, "", ""])
    names = dict.fromkeys((row["name"], row["control"]) for row in rows)
    of = {name: [row for row in rows if row["name"] == name] for name, _ in names}
    for name, control in sorted(names, key=lambda key: statistics.fmean(r["after"] for r in of[key[0]])):
        cells = [
            _cell([row[key] for row in of[name]], dense["perplexity"], len(of[name]))
            for key in ("before", "after")
        ]
        seconds = f"{statistics.fmean(row['seconds'] for row in of[name]):.0f}"
        lines.append([f"{name}{' (control)' if control else ''}", *cells, str(len(of[name])), seconds])
    told = [["", *(f"{prompt} ..." for prompt in dense["prompts"])], ["---"] * (len(dense["prompts"]) + 1)]
    told.append(["original", *map(_quoted, dense["writes"])])
    for (name, _), stage in itertools.product(names, ("before", "after")):
        told.append([f"{name}, {stage}", *map(_quoted, of[name][0][f"writes_{stage}"])])
    return (
        f"{rows_of(lines)}\n\nSmolLM2-135M-Instruct with {settings['share']:.0%} of its decoder layers' "
        f"parameters; perplexity (and times the original's) on {settings['windows']} test windows of "
        f"{settings['test_length']} tokens of WikiText-2, {dense['tokens']:,} predictions, so rough. Before: "
        f"cut and repaired by {settings['calibration']} windows of {settings['length']} tokens; after: "
        f"{settings['steps']} steps of {settings['batch']} x {settings['length']} tokens of the validation "
        f"articles, AdamW, cosine from {settings['lr']:g} (not searched), soft targets at T = "
        f"{settings['temperature']:g} and labels, the same for all. {made_at(result)}.\n\n"
        f"What they write, the most probable token at each step (first seed):\n\n{rows_of(told)}\n"
    )


def _quoted(text: str) -> str:
    """A text for a cell of a table."""
    return " ".join(text.split()).replace("|", "/")


TABLES = (
    Table("accuracy-decoder*", ("decoder*.json",), table),
    Table("accuracy-distilled-decoder*", ("distilled-decoder*.json",), training_table),
)
