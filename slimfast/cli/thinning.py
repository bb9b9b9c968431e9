"""The commands that make thin networks: ``prune``, ``distill`` and ``slim``, which is all of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from slimfast.calibration.files import load_calibration
from slimfast.checkpoints.shards import INDEX, load_checkpoint, prune_checkpoint
from slimfast.checkpoints.thin_files import export as export_network
from slimfast.checkpoints.thin_files import load, save
from slimfast.cli import options
from slimfast.cli.models import build_model, default_inputs, load_data, parse_inputs
from slimfast.distillation import DistillationLoss, History
from slimfast.distillation import distill as train_student
from slimfast.distillation.resume import FILE
from slimfast.errors import SlimfastError
from slimfast.huggingface.pretrained import save_pretrained
from slimfast.plans import Plan
from slimfast.plans import plan as make_plan
from slimfast.plans.costs import Cost, count_module
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.repair import repair_report
from slimfast.reports.plots import history_table
from slimfast.storage.atomic import output_folder

Verify = Annotated[bool, typer.Option(help="Run both networks and compare what comes out.")]


def prune(
    model: options.Model,
    plan: Annotated[Path, typer.Argument(help="A plan of this model, as 'slimfast plan' writes it.")],
    weights: options.Weights = None,
    select: options.Select = options.DEFAULT_METHOD,
    repair: options.Repair = None,
    repair_damping: options.RepairDamping = 0.0,
    calibration: options.Calibration = None,
    verify: Verify = True,
    export: options.Export = None,
    pretrained: options.Pretrained = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    backend: options.Backend = "auto",
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Cut --weights a tensor at a time into shards in the folder OUTPUT; nothing is run.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", show_default="thin.safetensors", help="File, or with --stream folder, to write."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Cut a model to the widths of a plan."""
    if stream:
        others = {
            "repair": repair,
            "repair-damping": repair_damping,
            "calibration": calibration,
            "export": export,
            "pretrained": pretrained,
        }
        options.refuse("--stream: expected --select, --backend or --output", others)
        _prune_streamed(model, plan, weights, select, seed, device, backend, output, as_json=as_json)
        return
    output = output or Path("thin.safetensors")
    options.check_outputs(output)
    options.check_export(export)
    options.check_new_folder(pretrained)
    found = Plan.load(plan)
    network = build_model(model, weights=weights, seed=seed, device=device)
    thin = prune_channels(
        network,
        found,
        select=select.value,
        repair=repair.value if repair else None,
        repair_damping=repair_damping,
        calibration=None if calibration is None else load_calibration(calibration, device=device),
        verify=verify,
        backend=backend,
    )
    _tell_repair(thin, repair)
    save(thin, output)
    options.tell_written(output)
    args, kwargs = found.inputs.example(device=device)
    example = kwargs or args
    _export(thin, export, example)
    _save_pretrained(thin, pretrained, example)
    _show_costs(found.cost_before, count_module(thin, example), as_json=as_json)


def _prune_streamed(
    model: str,
    plan: Path,
    weights: Path | None,
    select: options.Method,
    seed: int,
    device: str,
    backend: str,
    output: Path | None,
    *,
    as_json: bool,
) -> None:
    """``prune --stream``: from shards to shards, one tensor in memory at a time."""
    if select is options.Method.activations:
        raise SlimfastError("--stream: expected a --select that goes by weights, got activations")
    found = Plan.load(plan)
    network, source = options.without_memory(model, weights, seed, device)
    folder = output or Path("thin")
    with options.progress("cutting") as advance:
        prune_checkpoint(
            source, found, folder, model=network, select=select.value, backend=backend, progress=advance
        )
    options.tell_written(folder / INDEX)
    _show_costs(found.cost_before, found.cost_after, as_json=as_json)


def distill(
    model: options.Model,
    thin: Annotated[Path, typer.Argument(help="The thin network, as 'slimfast prune' writes it.")],
    data: Annotated[str, typer.Option(help=options.DATA_HELP)],
    weights: options.Weights = None,
    epochs: options.Epochs = 10,
    lr: options.LearningRate = 0.05,
    temperature: options.Temperature = 4.0,
    ema: options.Ema = None,
    resume: options.Resume = None,
    pretrained: options.Pretrained = None,
    input: options.Inputs = None,
    seed: options.Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "distilled.safetensors"
    ),
    as_json: options.Json = False,
) -> None:
    """Train a thin network towards the model it was cut from.

    The training is kept in OUTPUT.training, after every epoch and on Ctrl-C, until it is done. --pretrained
    checks what it writes on an --input.
    """
    options.check_outputs(output)
    options.check_new_folder(pretrained)
    teacher = build_model(model, weights=weights, seed=seed)
    example = parse_inputs(input or default_inputs(teacher, model), seed=seed) if pretrained else None
    wide = build_model(model, seed=seed)
    # What 'prune --stream' writes is a folder.
    student = load_checkpoint(thin, wide) if thin.is_dir() else load(thin, wide)
    history = _train(student, teacher, data, output, resume, epochs, lr, temperature, ema, seed)
    _save_pretrained(student, pretrained, example)
    if as_json:
        options.show_json(asdict(history))
    else:
        options.show(history_table(history))
    options.tell_written(output)


def slim(
    model: options.Model,
    input: options.Inputs = None,
    weights: options.Weights = None,
    macs: options.Macs = None,
    params: options.Params = None,
    explained_variance: options.ExplainedVariance = None,
    multiple_of: options.MultipleOf = 1,
    min_width: options.MinWidth = 1,
    include: options.Include = None,
    exclude: options.Exclude = None,
    width: options.Widths = None,
    select: options.Select = options.DEFAULT_METHOD,
    repair: options.Repair = None,
    repair_damping: options.RepairDamping = 0.0,
    calibration: options.Calibration = None,
    verify: Verify = True,
    data: Annotated[str | None, typer.Option(help=f"Distil too. {options.DATA_HELP}")] = None,
    epochs: options.Epochs = 10,
    lr: options.LearningRate = 0.05,
    temperature: options.Temperature = 4.0,
    ema: options.Ema = None,
    resume: options.Resume = None,
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
    wishes = options.wishes(
        macs, params, explained_variance, multiple_of, min_width, include, exclude, options.widths(width)
    )
    options.check_export(export)
    folder = output_folder(output)
    network = build_model(model, weights=weights, seed=seed, device=device)
    example = parse_inputs(input or default_inputs(network, model), seed=seed, device=device)
    measured = None if calibration is None else load_calibration(calibration, device=device)
    with options.progress("measuring spectra") as advance:
        plan = make_plan(network, example, calibration=measured, backend=backend, progress=advance, **wishes)
    thin = prune_channels(
        network,
        plan,
        select=select.value,
        repair=repair.value if repair else None,
        repair_damping=repair_damping,
        calibration=measured,
        verify=verify,
        backend=backend,
    )
    _tell_repair(thin, repair)
    plan.save(folder / "plan.json")
    save(thin, folder / "thin.safetensors")
    options.tell_written(folder / "plan.json", folder / "thin.safetensors")
    if data is not None:
        target = folder / "distilled.safetensors"
        history = _train(thin, network, data, target, resume, epochs, lr, temperature, ema, seed)
        options.show(history_table(history), stderr=True)
        options.tell_written(target)
    _export(thin, export, example)
    if as_json:
        print(plan.to_json(), end="")
    else:
        print(plan)


def _train(
    student: nn.Module,
    teacher: nn.Module,
    data: str,
    output: Path,
    resume: Path | None,
    epochs: int,
    lr: float,
    temperature: float,
    ema: float | None,
    seed: int,
) -> History:
    """Distil and save the student; the training's folder goes when its result is safe."""
    if resume is not None and not (resume / FILE).exists():
        raise SlimfastError(f"{resume}: expected a folder that holds a training to go on with, got none")
    folder = resume or output.with_name(f"{output.name}.training")
    train, evaluate = load_data(data)
    try:
        history = train_student(
            student,
            teacher=teacher,
            train=train,
            evaluate=evaluate,
            epochs=epochs,
            lr=lr,
            loss=DistillationLoss(temperature=temperature),
            ema=ema,
            seed=seed,
            checkpoint=folder,
            resume=resume is not None,
        )
        save(student, output)
        (folder / FILE).unlink(missing_ok=True)
    except KeyboardInterrupt:
        if (folder / FILE).exists():
            options.tell(f"the training so far is kept in {folder}: go on with --resume {folder}")
        raise
    finally:
        # It stays where there is something in it.
        with suppress(OSError):
            folder.rmdir()
    return history


def _tell_repair(thin: nn.Module, repair: options.Kind | None) -> None:
    """Say what a repair left as it was cut."""
    if repair is not None:
        for name, reason in repair_report(thin).left.items():
            options.tell(f"not repaired: {name}: {reason}")


def _export(thin: nn.Module, path: Path | None, example: Any) -> None:
    if path is not None:
        export_network(thin, path, example)
        options.tell_written(path)


def _save_pretrained(thin: nn.Module, folder: Path | None, example: Any) -> None:
    if folder is not None:
        save_pretrained(thin, folder, example)
        options.tell_written(folder)


def _show_costs(before: Cost, after: Cost, *, as_json: bool) -> None:
    costs: dict[str, Any] = {"before": asdict(before), "after": asdict(after)}
    if as_json:
        options.show_json(costs)
        return
    for name in ("params", "macs"):
        old, new = costs["before"][name], costs["after"][name]
        share = f" ({100 * new / old:.1f} %)" if old else ""
        print(f"{name}: {old:,} -> {new:,}{share}")
