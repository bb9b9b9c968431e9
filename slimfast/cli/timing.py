"""The command ``latency``: how long a network takes, and the table for budgets of time."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from slimfast.cli import console, options
from slimfast.cli.inputs import example_of
from slimfast.cli.models import build
from slimfast.graph import trace_channels
from slimfast.latency import latency_table, measure_latency


class Runtime(str, Enum):
    """What runs a network that is timed."""

    torch = "torch"
    compile = "compile"
    onnxruntime = "onnxruntime"


def latency(
    model: options.Model,
    input: options.Inputs = None,
    weights: options.Weights = None,
    runtime: Annotated[Runtime, typer.Option(help="What runs the network.")] = Runtime.torch,
    threads: Annotated[
        int | None, typer.Option(help="With how many threads; PyTorch's own number unless given.", min=1)
    ] = None,
    minutes: Annotated[float, typer.Option(help="How long the table may take.")] = 10.0,
    seconds: Annotated[float, typer.Option(help="How long to measure the whole network.")] = 2.0,
    resume: Annotated[
        Path | None, typer.Option(help="File that keeps what was measured, and is gone on with.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Measure how long one forward takes, and with --output the table for budgets of time.

    'plan --latency 0.5 --latency-table FILE' reads the table. Measure on a quiet machine.
    """
    console.check_outputs(output, suffixes=(".json",))
    network = build(model, weights=weights, seed=seed, device=device, random_weights=weights is None).model
    example = example_of(input, network, model, seed=seed, device=device)
    found = measure_latency(network, example, runtime=runtime.value, threads=threads, seconds=seconds)
    if as_json:
        console.show_json(asdict(found))
    else:
        print(found)
    if output is None:
        return
    graph = trace_channels(network, example)
    with console.progress("measuring pieces") as advance:
        table = latency_table(
            graph,
            network,
            example,
            runtime=runtime.value,
            threads=threads,
            minutes=minutes,
            resume=resume,
            progress=advance,
        )
    with console.output(output, ".json") as path:
        table.save(path)
    console.tell(str(table))
    console.tell_written(output)
