"""The arguments that the commands share, and how they print: results on stdout, all the rest on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console, RenderableType
from rich.progress import Progress as Bars
from torch import nn

from slimfast.arrays import Progress
from slimfast.cli.models import build_model
from slimfast.distributed.team import Team, join_team, launched
from slimfast.errors import ArgumentError, SlimfastError
from slimfast.plans.amounts import amount_of
from slimfast.pruning import selection
from slimfast.storage.atomic import cannot_write, check_writable


class Method(str, Enum):
    """The ways to choose units, by the names ``select`` knows them under."""

    l1 = "l1"
    l2 = "l2"
    lookahead = "lookahead"
    geometric_median = "geometric_median"
    bn_scale = "bn_scale"
    pivoted_cholesky = "pivoted_cholesky"
    activations = "activations"


DEFAULT_METHOD = Method(selection.DEFAULT_METHOD)


class Kind(str, Enum):
    """The ways to repair a thin network."""

    weights = "weights"
    activations = "activations"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory (the current folder is searched too), timm:NAME or torchvision:NAME.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SHAPE[:DTYPE[:HIGH]]",
        help="An input of the model; repeat it for more, in the order of its arguments. A batch of 1 comes "
        "in front of floating inputs (3x224x224); integer ones are taken as written, with values below HIGH "
        "(1x128:int64:30522).",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="The model's tensors: .safetensors, an index of its shards, or .pth (never unpickled)."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of random weights, inputs and training.")]
Backend = Annotated[str, typer.Option(help="Kernels: auto, cpu, cuda, triton or reference.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")]
Select = Annotated[Method, typer.Option(help="Which units of a group stay.")]
Calibration = Annotated[
    Path | None,
    typer.Option(help="What 'slimfast calibrate' wrote: for widths, and for 'activations' elsewhere."),
]
Repair = Annotated[
    Kind | None, typer.Option(help="Solve the layers that read what is cut, from weights or activations.")
]
RepairDamping = Annotated[
    float,
    typer.Option(help="Least damping of the repair from activations; 1 where a training follows.", min=0.0),
]
Export = Annotated[
    Path | None,
    typer.Option(help="Also write the thin network to this .onnx or .pt2 file, checked by running it."),
]

Pretrained = Annotated[
    Path | None,
    typer.Option(
        help="Also write the thin transformer to this folder, for from_pretrained of its stock class."
    ),
]


def _amount(name: str, text: str) -> float:
    """Parse a budget as the option of that name has it."""
    try:
        return amount_of(name, text)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from None


Macs = Annotated[
    float | None,
    typer.Option(
        parser=partial(_amount, "macs"),
        metavar="NUMBER",
        help="Budget of multiply-adds: a share (0.5, 50%) or a number (2e9, 2G).",
    ),
]
Params = Annotated[
    float | None,
    typer.Option(
        parser=partial(_amount, "params"),
        metavar="NUMBER",
        help="Budget of parameters: a share (0.5, 50%) or a number (2e6, 2M).",
    ),
]
ExplainedVariance = Annotated[
    float | None, typer.Option(help="Share of the variance that every group keeps, in (0, 1].")
]
MultipleOf = Annotated[int, typer.Option(help="Widths are multiples of this, or whole.")]
MinWidth = Annotated[int, typer.Option(help="The smallest width.")]
Include = Annotated[list[str] | None, typer.Option(help="Only groups whose name matches this pattern.")]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Leave groups whose name matches this pattern alone.")
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="An output that stays as it is, by name or number; repeat it for more. By default all stay.",
    ),
]
Widths = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN=WIDTH", help="Width of groups by hand: units (64) or a share (0.5)."),
]

DATA_HELP = "package.module:function that returns a train loader, or (train, eval) loaders."
Epochs = Annotated[int, typer.Option(help="Epochs of distillation.")]
LearningRate = Annotated[float, typer.Option("--lr", help="Learning rate after the warm-up.")]
Temperature = Annotated[float, typer.Option(help="Temperature of the soft targets.")]
Ema = Annotated[
    float | None, typer.Option(help="Decay of an average of the weights, as 0.999, which is the result.")
]
Resume = Annotated[
    Path | None,
    typer.Option(help="Folder of a training that was stopped: go on from there, and keep it there."),
]
Finished = Annotated[
    Path | None,
    typer.Option("--resume", help="File of finished layers: a measurement that was stopped goes on there."),
]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Read --weights a layer at a time; the model is built without memory."),
]


def refuse(what: str, given: dict[str, Any]) -> None:
    """Raise :class:`SlimfastError` for the first option in ``given`` (name -> value) that was used."""
    for name, value in given.items():
        if value:
            raise SlimfastError(f"{what}, got --{name}")


def on_meta_device(model: str, weights: Path | None, seed: int, device: str) -> tuple[nn.Module, Path]:
    """Build the model on the meta device, for weights that stay in their file: what ``--stream`` asks for."""
    if weights is None or device != "cpu":
        raise SlimfastError(f"--stream: expected --weights and --device cpu, got {weights} and {device}")
    with torch.device("meta"):
        return build_model(model, seed=seed, device="meta"), weights


def show(renderable: RenderableType, *, stderr: bool = False) -> None:
    """Print a table; where that is not to a terminal, it is as wide as it needs to be."""
    console = Console(highlight=False, stderr=stderr)
    if not console.is_terminal:
        console.width = 200
    console.print(renderable)


def show_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def check_outputs(*paths: Path | None) -> None:
    """Refuse an output that cannot be written now, not after the work."""
    for path in paths:
        if path is not None:
            check_writable(path)


def check_export(path: Path | None) -> None:
    """Refuse a file for an exported network that cannot be written, or whose suffix does not say how."""
    if path is not None and path.suffix not in (".onnx", ".pt2"):
        raise SlimfastError(f"--export: expected a file ending in .onnx or .pt2, got {path}")
    check_outputs(path)


def check_new_folder(path: Path | None) -> None:
    """Refuse a folder that is there already and not empty."""
    if path is None:
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise cannot_write(path, "it is there already, and not an empty folder")
    if not path.parent.is_dir():
        raise cannot_write(path, f"the folder {path.parent} does not exist")


def tell(text: str) -> None:
    """Say something that is not a result."""
    print(text, file=sys.stderr)


def tell_written(*paths: Path | None) -> None:
    """Say which files were written."""
    written = [str(path) for path in paths if path is not None]
    if written:
        tell(f"wrote {', '.join(written)}")


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show a bar on stderr, where that is a terminal, moved by calls of (done, all)."""
    console = Console(stderr=True)
    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def team_if_launched() -> Iterator[Team | None]:
    """Join the processes that torchrun has started, this one among them; None where it is alone."""
    if launched():
        with join_team() as team:
            yield team
    else:
        yield None


def is_first(team: Team | None) -> bool:
    """Whether this process is the one that writes and prints."""
    return team is None or team.rank == 0


def outputs_of(names: list[str] | None) -> list[str | int] | None:
    """Read the outputs that stay: digits are a number."""
    return [int(name) if name.isdecimal() else name for name in names] if names else None
