"""The command that looks at data: ``calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimfast.calibration.files import save_calibration
from slimfast.calibration.moments import calibrate as measure
from slimfast.cli import options
from slimfast.cli.models import build_model, default_inputs, load_data, parse_inputs
from slimfast.graph import trace_channels


def calibrate(
    model: options.Model,
    data: Annotated[str, typer.Option(help=options.DATA_HELP)],
    input: options.Inputs = None,
    weights: options.Weights = None,
    samples: Annotated[int, typer.Option(help="Samples to look at.")] = 512,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "calibration.safetensors"
    ),
    as_json: options.Json = False,
) -> None:
    """Measure what a model's layers read on some of the training data, for widths, selection and repair."""
    options.check_outputs(output)
    network = build_model(model, weights=weights, seed=seed, device=device)
    example = parse_inputs(input or default_inputs(network, model), seed=seed, device=device)
    batches, _ = load_data(data)
    graph = trace_channels(network, example)
    with options.progress("calibrating") as advance:
        found = measure(network, graph, batches, samples=samples, backend=backend, progress=advance)
    save_calibration(found, output)
    if as_json:
        counts = {name: reading.count for name, reading in found.readings.items()}
        options.show_json({"samples": found.samples, "readings": counts, "left": dict(found.left)})
    else:
        print(f"{found.samples} samples, read by {len(found.readings)} layers")
        for name, reason in found.left.items():
            print(f"not measured: {name}: {reason}")
    options.tell_written(output)
