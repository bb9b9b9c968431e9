"""Half the time, spent in three ways: ``python -m benchmarks.accuracy.studies.equal_time [--train]``.

A network is planned for half of its time by its error curves and a latency table. The plan of a budget of
MACs by the same curves, and uniform widths, are moved until their thin networks take the same time: all are
measured in turn with the whole network, and the share of the MACs is halved between too slow and too fast.
Then all have their units chosen, are repaired and scored alike, before any training; with ``--train`` after
the same short recovery too. Each row is written as it is done: the same command goes on where it was stopped,
and trains what an earlier one has measured.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.accuracy.studies import allocations
from benchmarks.accuracy.studies.equal_time_search import LONGER, Clock, moved
from benchmarks.accuracy.studies.equal_time_subjects import NETWORKS, SETTINGS, Settings, Subject, load, short
from benchmarks.accuracy.studies.study import Allocation, Study
from benchmarks.accuracy.studies.trainings import training_folder
from benchmarks.stamp import ROOT, add_row, stamp
from slimfast.errors import SlimfastError
from slimfast.plans import Plan, plan
from slimfast.pruning.prune import prune_channels
from slimfast.storage.atomic import atomic_path, output_folder

OURS = "latency plan"
OTHERS: Mapping[str, Allocation] = {
    "MACs plan": allocations.marginal_gain,
    "uniform": allocations.uniform,
}
# Units and repair, the same for all.
_MADE: Mapping[str, Any] = {"select": "lookahead", "repair": "activations", "verify": False}


@dataclass(frozen=True, slots=True)
class Row:
    """A thin network, before training where ``seed`` and ``epochs`` are None.

    ``error`` is the share of the curves' whole error that is predicted to be left; ``predicted`` and
    ``measured`` are shares of the whole network's time, ``apart`` how much longer it takes than the first
    plan's, measured in turn with it, as a share. ``macs`` are those of the forward that is timed.
    """

    name: str
    seed: int | None
    epochs: int | None
    error: float
    predicted: float
    measured: float
    apart: float
    params: int
    macs: int
    held_out: float
    score: float
    widths: Mapping[str, int] | None
    seconds: float


def planned_for(subject: Subject, latency: float, clock: Clock) -> Plan:
    """The plan within that share of the time, by the error curves."""
    study = subject.study
    return plan(
        study.model,
        subject.example,
        graph=study.graph,
        calibration=study.calibration,
        curves=study.curves,
        latency=latency,
        latency_table=clock.table,
    )


def error_left(study: Study, widths: Mapping[str, int]) -> float:
    """The share of the error that all curves together can make which these widths are predicted to leave."""
    most = math.fsum(float(curve.residual[0]) for curve in study.curves.values())
    return math.fsum(float(curve.residual[widths[name]]) for name, curve in study.curves.items()) / most


def cut(study: Study, widths: Mapping[str, int]) -> nn.Module:
    """The thin network of these widths: units chosen and repaired, the same way for all."""
    by_hand = allocations.by_hand(study, widths)
    return prune_channels(study.model, by_hand, calibration=study.calibration, **_MADE).eval()


def run(
    settings: Settings,
    *,
    work: Path,
    path: Path,
    train: bool = False,
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    loaded: Callable[[Settings, Path], Subject] = load,
    **how: Any,
) -> dict[str, Any]:
    """All rows that ``path`` has not: the three before training, and with ``train`` after ``epochs`` epochs
    from each of ``seeds``, or of the settings' own.
    """
    known = json.loads(json.dumps(asdict(settings)))
    result: dict[str, Any] = {"benchmark": "equal-time", "settings": known, "rows": []}
    if path.exists():
        result = json.loads(path.read_text())
        if result["settings"] != known:
            raise SlimfastError(f"{path} has results of other settings: {result['settings']}")
    made = stamp("cpu")
    result.setdefault("stamp", made)
    subject = loaded(settings, work)
    if "dense" not in result:
        result["dense"] = _dense(subject)
    rows = {row["name"]: row for row in result["rows"] if row["seed"] is None}
    clock: Clock | None = None
    for name in (OURS, *OTHERS):
        if name in rows:
            continue
        started = time.perf_counter()
        if clock is None:
            clock = Clock(
                subject.study, subject.example, settings.seconds, **(how or {"threads": settings.threads})
            )
        first = rows[OURS]["widths"] if OURS in rows else None
        rows[name] = asdict(_before(subject, name, first, settings.latency, clock, started))
        _add(result, rows[name], made, path)
    done = {(row["name"], row["seed"], row["epochs"]) for row in result["rows"]}
    count = settings.epochs if epochs is None else epochs
    for seed in (settings.seeds if seeds is None else seeds) if train else ():
        for name in (OURS, *OTHERS):
            if (name, seed, count) in done:
                continue
            thin = cut(subject.study, rows[name]["widths"])
            place = training_folder(work / f"epochs{count}", name, seed, thin)
            seconds = subject.train(thin, seed, count, place)
            held, score = subject.scores(thin.eval())
            row = rows[name] | {"seed": seed, "epochs": count, "held_out": held, "score": score}
            _add(result, row | {"widths": None, "seconds": round(seconds, 1)}, made, path)
    return result


def _dense(subject: Subject) -> dict[str, Any]:
    study = subject.study
    whole = study.plan(study.spectra, 1.0).cost_before
    held, score = subject.scores(study.model)
    return {"held_out": held, "score": score, "params": whole.params, "macs": whole.macs}


def _before(
    subject: Subject,
    name: str,
    first: Mapping[str, int] | None,
    latency: float,
    clock: Clock,
    started: float,
) -> Row:
    """Plan a thin network, measure it and score it, before any training."""
    study, apart = subject.study, 0.0
    if first is None:
        found = planned_for(subject, latency, clock)
        (measured,) = clock.measured(found.widths(), longer=LONGER)
    else:
        found, measured, apart = moved(study, OTHERS[name], first, clock)
    widths = found.widths()
    held, score = subject.scores(cut(study, widths))
    return Row(
        name=name,
        seed=None,
        epochs=None,
        error=error_left(study, widths),
        predicted=clock.predicted(widths),
        measured=measured,
        apart=apart,
        params=found.cost_after.params,
        macs=found.cost_after.macs,
        held_out=held,
        score=score,
        widths=widths,
        seconds=round(time.perf_counter() - started, 1),
    )


def _add(result: dict[str, Any], row: Mapping[str, Any], made: dict[str, Any], path: Path) -> None:
    add_row(result, row, made)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    when = "before" if row["seed"] is None else f"seed {row['seed']}"
    print(
        f"{row['name']:13} {when:9} error {row['error']:.4f}, time {row['measured']:.4f} "
        f"({row['apart']:+.1%}), score {100 * row['score']:.2f}, {row['seconds']:.0f} s",
        flush=True,
    )


def main(
    network: Annotated[str, typer.Option(help="resnet20, resnet56 or minilm.")] = NETWORKS[0],
    train: Annotated[bool, typer.Option("--train", help="After the short recovery too.")] = False,
    seed: Annotated[
        list[int] | None, typer.Option(help="Train from this seed only; may be given several times.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="How many epochs; rows of their own.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A minute or two, to see that it works.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the state of the trainings.")] = None,
) -> None:
    """Spend half of a network's time by its curves, by MACs and uniformly, and compare."""
    if network not in NETWORKS:
        raise SlimfastError(f"network: expected one of {', '.join(NETWORKS)}, got {network!r}")
    settings = short(SETTINGS[network]) if quick else SETTINGS[network]
    name = f"equal-time-{network}{'-quick' if quick else ''}"
    path = output or ROOT / "benchmarks" / "results" / f"{name}.json"
    output_folder(path.parent)
    torch.set_num_threads(settings.threads)
    started = time.perf_counter()
    folder = work or ROOT / "build" / "accuracy" / name
    run(settings, work=folder, path=path, train=train, seeds=seed, epochs=epochs)
    print(f"written: {path} ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"equal_time: {error}") from None
