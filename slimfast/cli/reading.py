"""The commands that read what others wrote: ``export``, ``eval`` and ``explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from slimfast.checkpoints.exporting import SUFFIXES
from slimfast.checkpoints.exporting import export as export_network
from slimfast.cli import console, options
from slimfast.cli.inputs import example_of
from slimfast.cli.models import build, build_model
from slimfast.cli.option_groups import Batches, takes_groups
from slimfast.cli.stored import in_float32, load_weights
from slimfast.cli.training import score_of
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.plans import Plan

Thin = Annotated[Path, typer.Argument(help="The thin network, as 'slimfast prune' writes it.")]


def export(
    thin: Thin,
    model: options.Model,
    input: options.Inputs = None,
    seed: options.Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .onnx or .pt2.")] = Path(
        "thin.onnx"
    ),
) -> None:
    """Write a thin network for other runtimes, checked by running the file.

    MODEL is the network it was cut from; its weights are not needed.
    """
    console.check_outputs(output, suffixes=SUFFIXES)
    network = _with_weights(model, thin, seed, "cpu")
    example = example_of(input, network, model, seed=seed)
    with console.output(output, ".onnx") as path:
        export_network(network, path, example)
    console.tell_written(output)


@takes_groups
def evaluate(
    model: options.Model,
    data: Annotated[str, typer.Option(help=options.DATA_HELP)],
    weights: options.Weights = None,
    random_weights: options.RandomWeights = False,
    input: options.Inputs = None,
    *,
    batches: Batches,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    as_json: options.Json = False,
) -> None:
    """Take the score of a model, or of the thin network in --weights, on the evaluation split of the data, or
    on all of it where it has none.
    """
    network = build(model, weights=weights, seed=seed, device=device, random_weights=random_weights).model
    needed = input or getattr(network, "pretrained_cfg", None)
    example = example_of(input, network, model, seed=seed, device=device) if needed else None
    found = batches.load(data, network, example, seed=seed)
    score = score_of(network, found.for_scores())
    if as_json:
        console.show_json({"score": score})
    else:
        print(f"score {score:.4f}")


def explain(
    plan: Annotated[Path, typer.Argument(help="A plan, as 'slimfast plan' writes it.")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Its model: also says what is coupled, and what is left alone."
        ),
    ] = None,
) -> None:
    """Show a plan: its widths and, with its model, what each group couples and why the rest stays."""
    found = Plan.load(plan)
    print(found)
    print(
        f"made from weights of fingerprint {found.weights}" if found.weights else "made from no known weights"
    )
    if model is not None:
        with torch.device("meta"):
            network = build(model, device="meta", random_weights=True).model
        args, kwargs = found.inputs.example(device="meta")
        print(f"\n{found.explain(trace_channels(network, kwargs or args))}")


def _with_weights(model: str, thin: Path, seed: int, device: str) -> nn.Module:
    if not thin.exists():
        raise SlimfastError(f"cannot read {thin}: no such file")
    network, _ = load_weights(build_model(model, seed=seed, device=device), thin)
    in_float32(network)
    return network.eval()
