"""The command that looks at data: ``calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimfast.calibration import Calibration
from slimfast.calibration.files import save_calibration
from slimfast.calibration.moments import calibrate as measure
from slimfast.checkpoints.calibrating import calibrate_checkpoint
from slimfast.cli import console, options
from slimfast.cli.inputs import example_of
from slimfast.cli.models import build
from slimfast.cli.option_groups import Batches, takes_groups
from slimfast.graph import trace_channels


@takes_groups
def calibrate(
    model: options.Model,
    data: Annotated[str, typer.Option(help=options.DATA_HELP)],
    input: options.Inputs = None,
    weights: options.Weights = None,
    random_weights: options.RandomWeights = False,
    samples: Annotated[int, typer.Option(help="Samples to look at.")] = 512,
    *,
    batches: Batches,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    stream: options.Stream = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            show_default="calibration.safetensors",
            help="File, or with --stream folder, to write; in the folder a run that was stopped goes on.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure what a model's layers read on some of the training data, for widths, selection and repair."""
    if stream:
        target = output or Path("calibration")
        empty, source = options.on_meta_device(model, weights, seed, device)
        example = example_of(input, empty, model, seed=seed, device=device)
        loaded = batches.load(data, empty, example, seed=seed)
        graph = trace_channels(empty, example)
        with console.progress("calibrating") as advance:
            found = calibrate_checkpoint(
                source, empty, graph, loaded.train, target, samples=samples, backend=backend, progress=advance
            )
        _show(found, as_json=as_json)
        console.tell_written(target)
        return
    output = output or Path("calibration.safetensors")
    console.check_outputs(output, suffixes=(".safetensors",))
    network = build(model, weights=weights, seed=seed, device=device, random_weights=random_weights).model
    example = example_of(input, network, model, seed=seed, device=device)
    loaded = batches.load(data, network, example, seed=seed)
    graph = trace_channels(network, example)
    with console.progress("calibrating") as advance:
        found = measure(
            network,
            graph,
            loaded.train,
            samples=samples,
            for_repair=False,  # a file holds moments alone
            backend=backend,
            progress=advance,
        )
    with console.output(output, ".safetensors") as path:
        save_calibration(found, path)
        _show(found, as_json=as_json)
    console.tell_written(output)


def _show(found: Calibration, *, as_json: bool) -> None:
    if as_json:
        counts = {name: reading.count for name, reading in found.readings.items()}
        console.show_json({"samples": found.samples, "readings": counts, "left": dict(found.left)})
        return
    print(f"{found.samples} samples, read by {len(found.readings)} layers")
    for name, reason in found.left.items():
        print(f"not measured: {name}: {reason}")
