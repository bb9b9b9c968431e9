"""The commands that cut: ``prune``, and ``slim``, which is all of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from slimfast.checkpoints.shard_folder import INDEX
from slimfast.checkpoints.shards import prune_checkpoint
from slimfast.checkpoints.thin_files import export as export_network
from slimfast.checkpoints.thin_files import save
from slimfast.cli import options
from slimfast.cli.models import build_model, default_inputs, parse_inputs
from slimfast.cli.option_groups import Cut, Training, Widths, takes_groups
from slimfast.cli.training import train
from slimfast.errors import SlimfastError
from slimfast.huggingface.pretrained import save_pretrained
from slimfast.plans import Plan
from slimfast.plans import plan as make_plan
from slimfast.plans.costs import Cost, count_module
from slimfast.reports.plots import history_table
from slimfast.storage.atomic import output_folder

Stream = Annotated[
    bool,
    typer.Option(
        "--stream", help="Cut --weights a tensor at a time into shards in the folder OUTPUT; nothing is run."
    ),
]
Thin = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", show_default="thin.safetensors", help="File, or with --stream folder, to write."
    ),
]


@takes_groups
def prune(
    model: options.Model,
    plan: Annotated[Path, typer.Argument(help="A plan of this model, as 'slimfast plan' writes it.")],
    weights: options.Weights = None,
    *,
    cut: Cut,
    export: options.Export = None,
    pretrained: options.Pretrained = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    stream: Stream = False,
    output: Thin = None,
    as_json: options.Json = False,
) -> None:
    """Cut a model to the widths of a plan."""
    if stream:
        others = {
            "repair": cut.repair,
            "repair-damping": cut.repair_damping,
            "calibration": cut.calibration,
            "export": export,
            "pretrained": pretrained,
        }
        options.refuse("--stream: expected --select, --backend or --output", others)
        network, source = options.on_meta_device(model, weights, seed, device)
        _prune_streamed(network, source, plan, cut.select, backend, output, as_json=as_json)
        return
    output = output or Path("thin.safetensors")
    options.check_outputs(output)
    options.check_export(export)
    options.check_new_folder(pretrained)
    found = Plan.load(plan)
    network = build_model(model, weights=weights, seed=seed, device=device)
    thin = cut.apply(network, found, cut.load_calibration(device), backend)
    save(thin, output)
    options.tell_written(output)
    cut.tell_verified(thin)
    args, kwargs = found.inputs.example(device=device)
    example = kwargs or args
    _export(thin, export, example)
    if pretrained is not None:
        save_pretrained(thin, pretrained, example)
        options.tell_written(pretrained)
    _show_costs(found.cost_before, count_module(thin, example), as_json=as_json)


def _prune_streamed(
    network: nn.Module,
    source: Path,
    plan: Path,
    select: options.Method,
    backend: str,
    output: Path | None,
    *,
    as_json: bool,
) -> None:
    """Prune from shards to shards, one tensor in memory at a time."""
    if select is options.Method.activations:
        raise SlimfastError("--stream: expected a --select that goes by weights, got activations")
    found = Plan.load(plan)
    folder = output or Path("thin")
    with options.progress("cutting") as advance:
        prune_checkpoint(
            source, found, folder, model=network, select=select.value, backend=backend, progress=advance
        )
    options.tell_written(folder / INDEX)
    _show_costs(found.cost_before, found.cost_after, as_json=as_json)


@takes_groups
def slim(
    model: options.Model,
    input: options.Inputs = None,
    weights: options.Weights = None,
    outputs: options.Outputs = None,
    *,
    widths: Widths,
    cut: Cut,
    data: Annotated[str | None, typer.Option(help=f"Distil too. {options.DATA_HELP}")] = None,
    training: Training,
    export: options.Export = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("slim"),
    as_json: options.Json = False,
) -> None:
    """Plan, prune and, with --data, distil: all of it, into one folder.

    It gets plan.json and thin.safetensors, and with --data distilled.safetensors too.
    """
    wanted = widths.request_options()
    options.check_export(export)
    folder = output_folder(output)
    network = build_model(model, weights=weights, seed=seed, device=device)
    example = parse_inputs(input or default_inputs(network, model), seed=seed, device=device)
    calibration = cut.load_calibration(device)
    with options.progress("measuring spectra") as advance:
        plan = make_plan(
            network,
            example,
            outputs=options.outputs_of(outputs),
            calibration=calibration,
            backend=backend,
            progress=advance,
            **wanted,
        )
    thin = cut.apply(network, plan, calibration, backend)
    plan.save(folder / "plan.json")
    save(thin, folder / "thin.safetensors")
    options.tell_written(folder / "plan.json", folder / "thin.safetensors")
    cut.tell_verified(thin)
    if data is not None:
        target = folder / "distilled.safetensors"
        history = train(thin, network, data, target, training, seed)
        options.show(history_table(history), stderr=True)
        options.tell_written(target)
    _export(thin, export, example)
    if as_json:
        print(plan.to_json(), end="")
    else:
        print(plan)


def _export(thin: nn.Module, path: Path | None, example: Any) -> None:
    if path is not None:
        export_network(thin, path, example)
        options.tell_written(path)


def _show_costs(before: Cost, after: Cost, *, as_json: bool) -> None:
    costs: dict[str, Any] = {"before": asdict(before), "after": asdict(after)}
    if as_json:
        options.show_json(costs)
        return
    for name in ("params", "macs"):
        old, new = costs["before"][name], costs["after"][name]
        share = f" ({100 * new / old:.1f} %)" if old else ""
        print(f"{name}: {old:,} -> {new:,}{share}")
