"""The commands that read what others wrote: ``export``, ``eval`` and ``explain``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from slimfast.checkpoints.exporting import SUFFIXES
from slimfast.checkpoints.exporting import export as export_network
from slimfast.checkpoints.thin_files import thin_manifest
from slimfast.cli import console, options
from slimfast.cli.inputs import example_of
from slimfast.cli.models import build, build_model
from slimfast.cli.option_groups import Batches, takes_groups
from slimfast.cli.stored import in_float32, load_weights
from slimfast.cli.training import score_of
from slimfast.errors import SlimfastError
from slimfast.plans import Plan
from slimfast.pruning.manifests import Manifest
from slimfast.pruning.plan_graph import graph_of

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
    plan: Annotated[
        Path, typer.Argument(help="A plan, as 'slimfast plan' writes it, or a thin network's file.")
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="The plan's model: also says what is coupled, and what is left alone."
        ),
    ] = None,
) -> None:
    """Show a plan: its widths and, with its model, what each group couples and why the rest stays.

    Of a thin network the layers that it has not, its widths, and what changed its weights.
    """
    if plan.suffix == ".safetensors":
        if model is not None:
            raise SlimfastError(
                f"explain: expected a plan before MODEL, got {plan}, which says all by itself"
            )
        print("\n".join(_lines_of(thin_manifest(plan))))
        return
    found = Plan.load(plan)
    coupled = ""
    if model is not None:
        with torch.device("meta"):
            network = build(model, device="meta", random_weights=True).model
        coupled = f"\n{found.explain(graph_of(network, found))}\n"
    print(found)
    print(
        f"made from weights of fingerprint {found.weights}" if found.weights else "made from no known weights"
    )
    print(coupled, end="")


def _lines_of(kept: Manifest) -> Iterator[str]:
    """Say what separates a thin network from the wide one."""
    yield f"{len(kept.keeps)} of {len(kept.shapes_before)} parameters and buffers are cut"
    if kept.dropped:
        yield "without, by the names of the original; what stays is numbered anew:"
        fates = {"gone": "", "input": ", which hands on what it reads", "zeros": ", which adds zeros"}
        yield from (f"  {one.name}{fates[one.fate]}" for one in kept.dropped)
    narrower = {name: pair for name, pair in kept.widths.items() if pair[1] < pair[0]}
    yield f"{len(narrower)} groups are narrower, {len(kept.widths) - len(narrower)} are whole"
    yield from (f"  {name}: {wide} -> {thin}" for name, (wide, thin) in narrower.items())
    reasons = {"masks": "constants of dead units", "rotation": "a rotation of heads", "repair": "a repair"}
    for change, reason in reasons.items():
        moved = [name for name, changes in kept.moved.items() if change in changes]
        if moved:
            others = ", ..." if moved[1:] else ""
            yield f"{len(moved)} have other values than the original by {reason}: {moved[0]}{others}"


def _with_weights(model: str, thin: Path, seed: int, device: str) -> nn.Module:
    if not thin.exists():
        raise SlimfastError(f"cannot read {thin}: no such file")
    network, _ = load_weights(build_model(model, seed=seed, device=device), thin)
    in_float32(network)
    return network.eval()
