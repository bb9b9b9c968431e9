"""Markdown tables of the zoo's results: a row a network, then the counts, then why what failed failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.markdown import NOT_MEASURED, NOT_YET, Table, rows_of
from benchmarks.zoo.networks import ZOOS
from benchmarks.zoo.stages import PARAMS

# How far below the budget a plan may stay.
NEAR = 0.02
# A peer's network counts as slimmed when it runs and has lost at least this share of its parameters.
PEER_LEAST = 0.3

_HEAD = ("", "groups", "prunable", "reached", "runs", "verified", "reloaded", "trained", "ONNX", "seconds",
         "torch-pruning", "seconds")  # fmt: skip
# Where the time of the whole road lies, verification not included.
_ROAD = ("trace", "spectra", "plan", "prune")
_COUNTED = (
    ("trace", "traced"),
    ("plan", "planned"),
    ("prune", "pruned"),
    ("run", "run"),
    ("verify", "verified"),
    ("reload", "reloaded"),
    ("train", "trained"),
    ("onnx", "exported to ONNX"),
)

Row = Mapping[str, Any]


def table(zoo: str, results: Mapping[str, Row]) -> str:
    """The table of one of :data:`ZOOS`; networks without a row are told as not measured."""
    names = ZOOS[zoo]
    lines: list[Sequence[str]] = [_HEAD, ["---", *["--:"] * 3, *["---"] * 5, "--:", "---", "--:"]]
    lines += [_line(name, results.get(name)) for name in names]
    rows = {name: results[name] for name in names if name in results}
    counts, failures, where = _counts(len(names), rows), _failures(rows), _where(list(rows.values()))
    return f"{rows_of(lines)}\n\n{counts}\n\n{failures}{where}\n"


def further(zoo: str, results: Mapping[str, Row]) -> str:
    """The table of a zoo that is verified at a second size and in training mode, without export or peer."""
    lines: list[Sequence[str]] = [
        ("", "groups", "prunable", "reached", "verified", "another size", "training", "reloaded", "trained",
         "seconds"),
        ["---", *["--:"] * 3, *["---"] * 5, "--:"],
    ]  # fmt: skip
    for name in ZOOS[zoo]:
        shown, *cells = _line(name, results.get(name))
        if name not in results:
            lines.append([shown, *[NOT_MEASURED] * 9])
            continue
        stages = results[name]["stages"]
        found = stages.get("verify", {})
        done = "seconds" in found
        other = ("yes" if found["other"] else "none found") if done else "-"
        training = ("yes" if found["training"] is None else "not compared") if done else "-"
        lines.append([shown, *cells[:3], cells[4], other, training, *cells[5:7], _seconds(stages)])
    rows = {name: results[name] for name in ZOOS[zoo] if name in results}
    counts, failures = _counts(len(ZOOS[zoo]), rows), _failures(rows)
    return f"{rows_of(lines)}\n\n{counts}\n\n{failures}{_where(list(rows.values()))}\n"


def left_whole(zoo: str, results: Mapping[str, Row]) -> str:
    """What stays whole in the networks of a zoo, and why: the share of the parameters by the reason."""
    lines: list[Sequence[str]] = [("", "stays whole", "because of"), ("---", "--:", "---")]
    for name in ZOOS[zoo]:
        shares = results.get(name, {"stages": {}})["stages"].get("count", {}).get("whole", {})
        for place, (reason, share) in enumerate(shares.items()):
            lines.append(["" if place else name.partition(":")[2], f"{100 * share:.0f} %", _plain(reason)])
    return f"{rows_of(lines)}\n" if len(lines) > 2 else f"{NOT_YET}\n"


def times(zoo: str, results: Mapping[str, Row]) -> str:
    """Where the time of each network goes, stage by stage in seconds, those that take longest first."""
    rows = {name: results[name] for name in ZOOS[zoo] if name in results}
    done = {
        name: float(_seconds(row["stages"])) for name, row in rows.items() if _seconds(row["stages"]) != "-"
    }
    lines: list[Sequence[str]] = [("", *_ROAD, "together", "verify"), ["---", *["--:"] * (len(_ROAD) + 2)]]
    for name in sorted(done, key=lambda name: -done[name]):
        stages = rows[name]["stages"]
        spent = [f"{stages[stage]['seconds']:.2f}" for stage in _ROAD]
        checked = stages.get("verify", {}).get("seconds")
        shown = "-" if checked is None else f"{checked:.2f}"
        lines.append([name.partition(":")[2], *spent, f"{done[name]:.2f}", shown])
    return f"{rows_of(lines)}\n\n{_where(list(rows.values()))}\n"


def _line(name: str, row: Row | None) -> list[str]:
    shown = name.partition(":")[2]
    if row is None:
        return [shown, *[NOT_MEASURED] * (len(_HEAD) - 1)]
    stages = row["stages"]
    count = stages.get("count", {})
    return [
        shown,
        str(stages.get("trace", {}).get("groups", "-")),
        f"{100 * count['prunable']:.0f} %" if "prunable" in count else "-",
        f"{count['reached']:.3f}{'' if near(row) else ' (far)'}" if "reached" in count else "-",
        _said(stages, "run"),
        _verified(stages),
        *(_said(stages, stage) for stage in ("reload", "train")),
        _said(stages, "onnx")
        if "onnx" in stages or "seconds" not in stages.get("reload", {})
        else NOT_MEASURED,
        _seconds(stages),
        peer_verdict(row),
        _peer_seconds(row),
    ]


def near(row: Row) -> bool:
    """Whether the thin network has the share of parameters that was asked for."""
    reached = row["stages"].get("count", {}).get("reached")
    return reached is not None and PARAMS * (1 - NEAR) <= reached <= PARAMS


def _said(stages: Mapping[str, Any], stage: str) -> str:
    """Yes or no; a dash for what an earlier failure left undone."""
    found = stages.get(stage, {})
    told = "yes" if "seconds" in found else "**no**" if "failed" in found else "-"
    return f"{told} (another time)" if found.get("apart") else told


def _verified(stages: Mapping[str, Any]) -> str:
    found = stages.get("verify", {})
    if found.get("compared") == 0:
        return "weights only"
    if found.get("inexact"):
        return f"yes, {found['compared']} of {found['compared'] + found['inexact']} groups"
    return _said(stages, "verify")


def _seconds(stages: Mapping[str, Any]) -> str:
    spent = [stages.get(stage, {}).get("seconds") for stage in _ROAD]
    return "-" if None in spent else f"{sum(spent):.2f}"


def peer_verdict(row: Row) -> str:
    """What became of the network in the peer's hands, in a word or two."""
    peer = row.get("peer")
    if peer is None or "not measured" in peer.get("build", {}):
        return NOT_MEASURED
    failed = next((found["failed"] for found in peer.values() if "failed" in found), None)
    if failed is not None:
        return "not finished" if failed.startswith("not finished") else "error"
    reached = peer["prune"]["reached"]
    return f"{reached:.2f} of it" if reached <= 1 - PEER_LEAST else f"{reached:.2f} of it (too much)"


def _peer_seconds(row: Row) -> str:
    seconds = row.get("peer", {}).get("prune", {}).get("seconds")
    apart = " (another time)" if row.get("apart") else ""
    return "-" if seconds is None else f"{seconds:.2f}{apart}"


def _counts(total: int, rows: Mapping[str, Row]) -> str:
    done = {
        stage: sum("seconds" in row["stages"].get(stage, {}) for row in rows.values())
        for stage, _ in _COUNTED
    }
    told = [f"{word} {done[stage]}" for stage, word in _COUNTED if stage != "onnx" or done["onnx"]]
    weights = sum(_verified(row["stages"]) == "weights only" for row in rows.values())
    told = [
        f"{t} ({weights} of them weights only)" if weights and t.startswith("verified") else t for t in told
    ]
    told.insert(3, f"within {100 * NEAR:g} % of the budget {sum(map(near, rows.values()))}")
    peers = [peer_verdict(row) for row in rows.values()]
    slimmed = sum(verdict.endswith("of it") for verdict in peers)
    compared = sum(verdict != NOT_MEASURED for verdict in peers)
    text = f"Of {total} networks, {len(rows)} measured: {', '.join(told)}."
    if not compared:
        return text
    told = f"{text} torch-pruning made {slimmed} of {compared} at least {100 * PEER_LEAST:g} % smaller."
    both = [row for row in rows.values() if not row.get("apart") and _both_finished(row)]
    if not both:
        return told
    faster = sum(float(_seconds(row["stages"])) < float(_peer_seconds(row)) for row in both)
    return f"{told} slimfast was the faster for {faster} of the {len(both)} that both finished side by side."


def road_seconds(results: Mapping[str, Row]) -> list[float]:
    """List the seconds from trace to prune of the families that came to the end."""
    spent = [_seconds(results[name]["stages"]) for name in ZOOS["families"] if name in results]
    return [float(seconds) for seconds in spent if seconds != "-"]


def _both_finished(row: Row) -> bool:
    """Whether both made a network that runs."""
    return _seconds(row["stages"]) != "-" and "of it" in peer_verdict(row)


def _failures(rows: Mapping[str, Row]) -> str:
    lines = [
        f"- {name.partition(':')[2]}, {stage}: {_plain(found['failed'])}"
        for name, row in rows.items()
        for stage, found in row["stages"].items()
        if "failed" in found
    ]
    return "\n".join(["What failed, and why:", "", *lines]) + "\n\n" if lines else ""


def _plain(text: str) -> str:
    """Text that markdown leaves as it is."""
    return f"`{text.replace('`', chr(39))}`"


def _where(rows: Sequence[Row]) -> str:
    made = [row["stamp"] for row in rows]
    if not made:
        return NOT_YET
    limits = sorted({f"{row['limit_s']:g} s and {row['limit_gb']:g} GB" for row in rows})
    commits = sorted({stamp["commit"] or "no commit" for stamp in made})
    threads = sorted({str(stamp["machine"]["threads"]) for stamp in made})
    loads = [stamp["machine"]["load"] for stamp in made]
    machine, versions = made[0]["machine"], made[0]["versions"]
    return (
        f"Seconds are of one run each, trace to prune, after a warm-up on a small network; "
        f"at most {', '.join(limits)} a process; {machine['cpu']}, {' or '.join(threads)} of its threads, "
        f"load {min(loads):g} to {max(loads):g} (1 minute, before each network: under load seconds compare "
        f"within a row only); torch {versions['torch']}, timm {versions['timm']}, "
        f"torch-pruning {versions['torch-pruning']}, {max(stamp['date'] for stamp in made)}, "
        f"commit {', '.join(commits)}."
    )


_FURTHER = ("detectors", "segmentation", "diffusion", "audio", "graphs", "language")

TABLES = (
    *(Table(f"zoo-further-{zoo}", ("zoo-further.json",), partial(further, zoo)) for zoo in _FURTHER),
    *(Table(f"zoo-whole-{zoo}", ("zoo-further.json",), partial(left_whole, zoo)) for zoo in _FURTHER),
    *(Table(f"zoo-{zoo}", ("zoo.json",), partial(table, zoo)) for zoo in ZOOS),
    Table("zoo-times", ("zoo.json",), partial(times, "families")),
)
