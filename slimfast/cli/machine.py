"""The commands about this machine: ``doctor``, ``bench`` and ``demo``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from slimfast.cli import console, options
from slimfast.cli.digits_demo import EPOCHS, TEACHER_EPOCHS, demo_table, run_demo
from slimfast.cli.models import build_model, check_device
from slimfast.diagnostics.comparison import RESNET18, compare_ops, random_layers, weight_matrices
from slimfast.diagnostics.doctor import diagnose
from slimfast.reports.plots import comparison_table, doctor_report


def doctor_command(as_json: options.Json = False) -> None:
    """Say what is built, found and chosen on this machine, and why not the rest."""
    found = diagnose()
    if as_json:
        console.show_json(found.to_json())
    else:
        console.show(doctor_report(found))


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="As in 'plan'; the layers of a ResNet-18 without it."),
    ] = None,
    weights: options.Weights = None,
    repeats: Annotated[int, typer.Option(help="Runs to take the median of.")] = 5,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")] = "cpu",
    seed: options.Seed = 0,
    backend: options.Backend = "auto",
    as_json: options.Json = False,
) -> None:
    """Time the grouped ops beside plain PyTorch on this machine, on the layers of a network.

    A quick look: runs in turn, medians, results compared with float64 first.
    """
    if model is None:
        layers = random_layers(RESNET18, seed=seed)
    else:
        layers = weight_matrices(build_model(model, weights=weights, seed=seed))
    layers = {name: x.to(check_device(device)) for name, x in layers.items()}
    with console.progress("measuring") as advance:
        rows = compare_ops(layers, repeats=repeats, backend=backend, progress=advance)
    if as_json:
        console.show_json([asdict(row) for row in rows])
    else:
        console.show(comparison_table(rows))


def demo(
    seed: options.Seed = 0,
    teacher_epochs: Annotated[
        int, typer.Option(help="Epochs of the network that is slimmed.")
    ] = TEACHER_EPOCHS,
    epochs: Annotated[int, typer.Option(help="Epochs of each distillation.")] = EPOCHS,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("demo"),
    as_json: options.Json = False,
) -> None:
    """Train, plan, prune and distil a small network on the digit scans that scikit-learn ships."""
    found = run_demo(output, teacher_epochs=teacher_epochs, epochs=epochs, seed=seed, tell=console.tell)
    if as_json:
        console.show_json(asdict(found))
    else:
        console.show(demo_table(found))
    console.tell(f"all of it is in {output}")
