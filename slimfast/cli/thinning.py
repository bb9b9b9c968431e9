"""The commands that cut: ``prune``, and ``slim``, which is all of it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from slimfast.checkpoints.exporting import export as export_network
from slimfast.checkpoints.shard_folder import INDEX
from slimfast.checkpoints.shards import prune_checkpoint
from slimfast.checkpoints.thin_files import save
from slimfast.checkpoints.thin_shards import stored_report
from slimfast.cli import console, options
from slimfast.cli.gradual_cut import data_of_rounds, slim_in_rounds
from slimfast.cli.inputs import example_of, other_calls
from slimfast.cli.models import build
from slimfast.cli.option_groups import Batches, Cut, Gradual, Widths, takes_groups
from slimfast.cli.reshaping import Reshaping
from slimfast.cli.slimming import Slimming, calibrated_by
from slimfast.cli.stored import dtypes_of_cut, in_dtypes
from slimfast.cli.training import Lesson, show_score, train
from slimfast.cli.training_options import Training
from slimfast.huggingface.pretrained import save_pretrained
from slimfast.plans import Plan
from slimfast.plans.costs import Cost, count_module
from slimfast.reports.html import check_report
from slimfast.reports.html import report as write_report
from slimfast.reports.plots import history_table
from slimfast.storage.atomic import output_folder
from slimfast.storage.weights import Weights

Stream = Annotated[
    bool,
    typer.Option("--stream", help="Cut --weights a tensor at a time into shards in the folder OUTPUT."),
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
    random_weights: options.RandomWeights = False,
    *,
    cut: Cut,
    strict: options.Strict = False,
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
        others = {"export": export, "pretrained": pretrained, "for_training": cut.for_training or None}
        expected = "--select, --repair, --calibration, --strict, --backend or --output"
        console.refuse(f"--stream: expected {expected}", others)
        network, source = options.on_meta_device(model, weights, seed, device)
        _prune_streamed(network, source, plan, cut, backend, output, strict=strict, as_json=as_json)
        return
    output = output or Path("thin.safetensors")
    console.check_outputs(output, suffixes=(".safetensors",))
    options.check_export(export)
    options.check_new_folder(pretrained)
    found = Plan.load(plan)
    built = build(model, weights=weights, seed=seed, device=device, random_weights=random_weights)
    thin = cut.apply(built.model, found, cut.load_calibration(device), backend, strict=strict)
    cut.tell_not_repaired(thin)
    args, kwargs = found.inputs.example(device=device)
    example = kwargs or args
    with console.output(output, ".safetensors") as path:
        with in_dtypes(thin, built.dtypes):
            save(thin, path)
        console.tell_written(output)
        cut.tell_verified(thin)
        _export(thin, export, example)
        if pretrained is not None:
            save_pretrained(thin, pretrained, example)
            console.tell_written(pretrained)
        _show_costs(found.cost_before, count_module(thin, example), as_json=as_json)


def _prune_streamed(
    network: nn.Module,
    source: Weights,
    plan: Path,
    cut: Cut,
    backend: str,
    output: Path | None,
    *,
    strict: bool,
    as_json: bool,
) -> None:
    """Prune from shards to shards, one tensor in memory at a time."""
    found = Plan.load(plan)
    calibration = cut.load_calibration("cpu")
    folder = output or Path("thin")
    with console.progress("cutting") as advance:
        prune_checkpoint(
            source,
            found,
            folder,
            model=network,
            **cut.chosen(),
            calibration=calibration,
            strict=strict,
            backend=backend,
            progress=advance,
        )
    console.tell_written(folder / INDEX)
    report = stored_report(folder)
    for name, reason in report.left.items() if report is not None else ():
        console.tell(f"not repaired: {name}: {reason}")
    _show_costs(found.cost_before, found.cost_after, as_json=as_json)


@takes_groups
def slim(
    model: options.Model,
    input: options.Inputs = None,
    weights: options.Weights = None,
    outputs: options.Outputs = None,
    also: options.Also = None,
    random_weights: options.RandomWeights = False,
    *,
    reshaping: Reshaping,
    widths: Widths,
    cut: Cut,
    gradual: Gradual,
    data: Annotated[str | None, typer.Option(help=f"Distil too. {options.DATA_HELP}")] = None,
    batches: Batches,
    samples: Annotated[
        int,
        typer.Option(
            help="So many training samples of --data choose widths and units and repair, where there is no "
            "--calibration; 0 for none.",
            min=0,
        ),
    ] = 512,
    training: Training,
    export: options.Export = None,
    report: options.Report = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("slim"),
    as_json: options.Json = False,
) -> None:
    """Plan, prune and, with --data, distil: all of it, into one folder.

    It gets plan.json and thin.safetensors, and with --data distilled.safetensors too: some of the training
    samples are looked at first, and the cut is as --for-training makes it. After --depth and
    --rotate-heads the plan is one of the network that these make. With --rounds it gets the last round and
    the plans of all in rounds, and distilled.safetensors; the same command goes on where it was stopped.
    Every round measures the training batches, and cuts as --for-training does.
    """
    wanted = widths.request_options()
    by_data = data is not None and samples > 0
    numbers = reshaping.numbers(widths, calibrated=by_data or cut.calibration is not None)
    if gradual.rounds > 1:
        reshaping.check_rounds()
    # What lies in the folder is checked when that is there.
    inside = [path for path in (export, report) if path is not None and path.is_relative_to(output)]
    if report not in inside:
        check_report(report)
    built = build(model, weights=weights, seed=seed, device=device, random_weights=random_weights)
    folder = output_folder(output)
    for path in inside:
        output_folder(path.parent)
    options.check_export(export)
    check_report(report)
    network = built.model
    example = example_of(input, network, model, seed=seed, device=device)
    loaded = None if data is None else batches.load(data, network, example, seed=seed)
    others = other_calls(also, network, model, seed=seed, device=device)
    traced: dict[str, Any] = {"outputs": options.outputs_of(outputs), "also": others}
    if gradual.rounds > 1:
        lesson = Lesson(network, network, data_of_rounds(loaded, cut, training), device, built.dtypes)
        how: dict[str, Any] = {"seed": seed, "verify": cut.verify, "backend": backend}
        thin = slim_in_rounds(lesson, example, gradual, wanted, traced, training, folder, **how)
        _export(thin, export, example)
        _show_costs(count_module(network, example), count_module(thin, example), as_json=as_json)
        return
    calibration = cut.load_calibration(device)
    if calibration is None and loaded is not None:
        with console.progress("calibrating") as advance:
            calibration = calibrated_by(
                loaded, network, example, samples, traced, seed=seed, backend=backend, progress=advance
            )
        cut = cut if calibration is None else cut.before_training()
    with console.progress("measuring spectra") as advance:
        slimming = Slimming(
            example=example,
            cut=cut,
            numbers=numbers,
            rotated=reshaping.rotate_heads,
            **traced,
            curves=report is not None,
            backend=backend,
            progress=advance,
        )
        thin, made = slimming(network, calibration, wanted)
    cut.tell_not_repaired(thin)
    dtypes = dtypes_of_cut(built.dtypes, network, thin)
    made.plan.save(folder / "plan.json")
    with in_dtypes(thin, dtypes):
        save(thin, folder / "thin.safetensors")
    console.tell_written(folder / "plan.json", folder / "thin.safetensors")
    made.tell_of_plan()
    cut.tell_verified(thin)
    if report is not None:
        write_report(made.plan, report, curves=made.curves, thin=thin, title=model)
        console.tell_written(report)
    if loaded is not None:
        target = folder / "distilled.safetensors"
        lesson = Lesson(thin, network, loaded, device, dtypes)
        show_score("the original", network, loaded)
        show_score("pruned, before any training", thin, loaded)
        history = train(lesson, target, training, seed)
        console.show(history_table(history), stderr=True)
        console.tell_written(target)
    _export(thin, export, example)
    for text in made.reports():
        print(f"{text}\n", file=sys.stderr if as_json else sys.stdout)
    print(made.plan.to_json() if as_json else f"{made.plan}\n", end="")
    if made.depth is not None and not as_json:
        print()
        _show_costs(count_module(network, example), count_module(thin, example), as_json=False)


def _export(thin: nn.Module, path: Path | None, example: Any) -> None:
    if path is not None:
        export_network(thin, path, example)
        console.tell_written(path)


def _show_costs(before: Cost, after: Cost, *, as_json: bool) -> None:
    costs: dict[str, Any] = {"before": asdict(before), "after": asdict(after)}
    if as_json:
        console.show_json(costs)
        return
    for name in ("params", "macs"):
        old, new = costs["before"][name], costs["after"][name]
        share = f" ({100 * new / old:.1f} %)" if old else ""
        print(f"{name}: {old:,} -> {new:,}{share}")
