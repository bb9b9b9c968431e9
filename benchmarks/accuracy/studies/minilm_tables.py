"""The table of the MiniLM study: networks that were cut, and then those that were distilled too."""

from __future__ import annotations

import statistics

from benchmarks.accuracy.studies.cells import mean_of
from benchmarks.markdown import NOT_YET, Result, Table, rows_of
from benchmarks.stamp import made_at


def table(result: Result) -> str:
    """One-shot networks and distilled ones, the best first in each part."""
    if not result:
        return f"{NOT_YET}\n"
    settings, dense = result["settings"], result["dense"]
    lines = [
        ["thin network", "repair", "trained", "test", "dev", "seeds", "of the encoder"],
        ["---", "---", "---", "--:", "--:", "--:", "--:"],
        ["original", "", "", f"{100 * dense['test']:.2f}", f"{100 * dense['dev']:.2f}", "", "1"],
    ]
    keys = dict.fromkeys((row["name"], row["seed"] is not None) for row in result["rows"])
    groups = [
        [row for row in result["rows"] if (row["name"], row["seed"] is not None) == key] for key in keys
    ]
    groups.sort(key=lambda rows: (rows[0]["seed"] is not None, -statistics.fmean(r["test"] for r in rows)))
    for rows in groups:
        first = rows[0]
        name = first["name"].removesuffix(f", {first['repair']}")
        trained = first["seed"] is not None
        scores = [mean_of([100 * row[split] for row in rows]) for split in ("test", "dev")]
        lines.append(
            [
                f"{name}{' (control)' if first['control'] else ''}",
                first["repair"] or "none",
                "distilled" if trained else "",
                *scores,
                str(len(rows)) if trained else "",
                f"{first['encoder'] / dense['encoder']:.3f}",
            ]
        )
    epochs = f"{settings['epochs']} epoch{'s' * (settings['epochs'] != 1)}"
    sentences = f"{settings['sentences']:,}" if settings["sentences"] else "all"
    return (
        f"{rows_of(lines)}\n\nSpearman's rank correlation x 100; heads and MLP of MiniLM cut to "
        f"{settings['encoder']:g} of the encoder's parameters, {settings['calibration']} sentences of the "
        f"training split calibrate. Distilled: {epochs} on {sentences} of its sentences, without scores, "
        f"AdamW, cosine from {settings['lr']:g}, batches of {settings['batch']}, the same for all; "
        f"{made_at(result)}.\n"
    )


TABLES = (Table("accuracy-minilm*", ("minilm*.json",), table),)
