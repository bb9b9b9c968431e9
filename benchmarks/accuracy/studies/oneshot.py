"""Thin networks before any training: ``python -m benchmarks.accuracy.studies.oneshot [--telling | --full]``.

A CIFAR-10 network is cut to a share of its MACs, residual streams included, by every allocation,
selection and repair, the controls with the same repair. 512 training images calibrate; every network is run
once on the test images. Each row is written as it is done: the same command goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.accuracy.data.cifar10_data import data_folder, load_split
from benchmarks.accuracy.studies.allocations import ALLOCATIONS, CONTROLS, explained_variance, noise_null
from benchmarks.accuracy.studies.cifar10 import load_network
from benchmarks.accuracy.studies.study import Study
from benchmarks.stamp import ROOT, add_row, stamp
from slimfast.distillation import accuracy
from slimfast.errors import SlimfastError
from slimfast.plans.costs import count_module
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.selection import select
from slimfast.storage.atomic import atomic_path, output_folder

# What is run first is the short form.
ROWS = (
    ("l1", None),
    ("l1", "activations"),
    ("activations", "activations"),
    ("pivoted_cholesky", "activations"),
    ("l1", "weights"),
    ("activations", None),
    ("activations", "weights"),
    ("pivoted_cholesky", None),
    ("lookahead", "activations"),
)
SHORT = 3
OWN = "its own"
# The default, the paper's rule and every control with the repair that the default has, on all test images.
TELLING = (
    ("marginal gain, activations", "activations", "activations"),
    ("marginal gain, activations", "lookahead", "activations"),
    ("marginal gain, loss", "activations", "activations"),
    ("marginal gain, loss", "lookahead", "activations"),
    ("explained variance (paper)", "l1", "activations"),
    *((name, OWN if name == "group magnitude, global" else "l1", "activations") for name in CONTROLS),
    ("uniform", "activations", "activations"),
    ("marginal gain, activations", "activations", None),
    ("explained variance (paper)", "l1", None),
    ("uniform", "l1", None),
    ("group magnitude, global", OWN, None),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One thin network: test accuracy in [0, 1], and the seconds that selection, cut and repair took."""

    network: str
    share: float
    allocation: str
    control: bool
    select: str
    repair: str | None
    params: int
    macs: int
    test: float
    seconds: float


def wanted(full: bool) -> Iterator[tuple[str, str, str | None]]:
    """(allocation, selection, repair), the most telling first."""
    for select_by, repair in ROWS if full else ROWS[:SHORT]:
        for name in (*CONTROLS, *ALLOCATIONS):
            own = name == "group magnitude, global"
            if not own:
                yield name, select_by, repair
            elif select_by == "l1":
                yield name, OWN, repair


def main(
    full: Annotated[bool, typer.Option("--full", help="All rows, 10,000 test images.")] = False,
    telling: Annotated[bool, typer.Option("--telling", help="A few rows, 10,000 test images.")] = False,
    network: Annotated[
        str, typer.Option(help="resnet20, resnet32, resnet44, resnet56 or vgg16_bn.")
    ] = "resnet56",
    macs: Annotated[list[float] | None, typer.Option(help="Shares of the MACs: 0.5 and 0.3.")] = None,
    calibration: Annotated[int, typer.Option(help="Training images that calibrate.")] = 512,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
) -> None:
    """Cut a CIFAR-10 ResNet in every way and measure what is left, before any training."""
    shares = macs or [0.5, 0.3]
    form = "-full" if full else "-telling" if telling else ""
    path = output or ROOT / "benchmarks" / "results" / f"oneshot-{network}{form}.json"
    output_folder(path.parent)
    data = data_folder()
    test = load_split("test", folder=data)[: 10000 if form else 2000]
    settings = {"network": network, "calibration_images": calibration, "test_images": len(test)}
    result, made = _read(path, settings), stamp("cpu")
    done = {tuple(row[key] for key in ("share", "allocation", "select", "repair")) for row in result["rows"]}
    model = load_network(network, data)
    example = torch.zeros(1, 3, 32, 32)
    batches = load_split("train", folder=data)[:calibration].batches(256)
    if "dense" not in result:
        whole = count_module(model, example)
        dense = {"test": accuracy(model, test.batches(250)), "params": whole.params, "macs": whole.macs}
        result["dense"] = dense
    study = Study.of(model, example, batches, calibration)
    result["profile"] = [profile(study, share) for share in shares]
    rows = TELLING if telling and not full else wanted(full)
    for (name, select_by, repair), share in itertools.product(rows, shares):
        if (share, name, select_by, repair) in done:
            continue
        row = measure(study, network, name, select_by, repair, share, example, test.batches(250))
        add_row(result, asdict(row), made)
        _write(path, result)
        print(f"{share:g} {name:28} {select_by:17} {repair!s:12} {100 * row.test:6.2f} %", flush=True)
    _write(path, result)
    print(f"written: {path}")


def profile(study: Study, share: float) -> dict[str, float]:
    """How much of the paper's layer profile is that of noise of the same shapes: the squared correlation of
    the groups' kept shares, and the tau of each.
    """
    plans = [allocate(study, share) for allocate in (explained_variance, noise_null)]
    kept = [[group.width / group.n for group in plan.groups] for plan in plans]
    return {
        "share": share,
        "squared_correlation": round(float(np.corrcoef(*kept)[0, 1] ** 2), 4),
        "tau": round(float(plans[0].explained_variance or 0.0), 4),
        "tau_of_noise": round(float(plans[1].explained_variance or 0.0), 4),
    }


def measure(
    study: Study,
    network: str,
    name: str,
    select_by: str,
    repair: Any,
    share: float,
    example: torch.Tensor,
    batches: Any,
) -> Row:
    """One network, cut, repaired and run."""
    started = time.perf_counter()
    plan = {**ALLOCATIONS, **CONTROLS}[name](study, share)
    method: Any = select_by
    if select_by != OWN:
        plan = select(study.model, plan, method=method, calibration=study.calibration)
    thin = prune_channels(study.model, plan, repair=repair, calibration=study.calibration, verify=False)
    seconds = time.perf_counter() - started
    cost = count_module(thin, example)
    found = accuracy(thin, batches)
    control = name in CONTROLS
    return Row(
        network, share, name, control, select_by, repair, cost.params, cost.macs, found, round(seconds, 1)
    )


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The results so far; an error where they are of other settings."""
    if not path.exists():
        return {"benchmark": "oneshot", "settings": settings, "stamp": stamp("cpu"), "rows": []}
    found: dict[str, Any] = json.loads(path.read_text())
    if found["settings"] != settings:
        raise SlimfastError(f"{path} has results of other settings: {found['settings']}")
    return found


def _write(path: Path, result: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"oneshot: {error}") from None
