"""The arguments that the commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from slimfast.checkpoints.exporting import SUFFIXES as EXPORTS
from slimfast.checkpoints.streamed import without_weights
from slimfast.cli.console import check_outputs
from slimfast.cli.models import build
from slimfast.cli.stored import in_float32, stored_weights
from slimfast.distributed.team import Team, join_team, launched
from slimfast.errors import SlimfastError
from slimfast.storage.atomic import cannot_write
from slimfast.storage.weights import Weights as StoredWeights


class Method(str, Enum):
    """The ways to choose units, by the names ``select`` knows them under."""

    l1 = "l1"
    l2 = "l2"
    lookahead = "lookahead"
    geometric_median = "geometric_median"
    bn_scale = "bn_scale"
    pivoted_cholesky = "pivoted_cholesky"
    activations = "activations"


class Schedules(str, Enum):
    """How a budget comes down from round to round."""

    geometric = "geometric"
    linear = "linear"
    cubic = "cubic"


DEFAULT_SCHEDULE = Schedules.geometric


class Optimizer(str, Enum):
    """The optimizers that ``distill`` knows."""

    sgd = "sgd"
    adamw = "adamw"


class Precision(str, Enum):
    """The arithmetic of a training."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


class Kind(str, Enum):
    """The ways to repair a thin network, and not to."""

    none = "none"
    weights = "weights"
    activations = "activations"
    moments = "moments"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:factory (the current folder is searched too), timm:NAME, torchvision:NAME, "
        "hf:FOLDER or ultralytics:FILE (.yaml; .pt?trust=true runs its pickle); ?key=value&key=value behind "
        "it are arguments (timm:resnet18?num_classes=10).",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME[.KEY]=]SHAPE[:DTYPE[:HIGH]]",
        help="An input of the model; repeat it for more, in the order of its arguments or by name "
        "(batch.image=3x8x8 is an entry of a dict). A batch of 1 comes in front of floating inputs "
        "(3x224x224); integer ones are taken as written, with values below HIGH (1x128:int64:30522).",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="The model's tensors: a file of safetensors or torch.save (no code of it runs), an index of "
        "shards, a folder of the hub, or a thin network."
    ),
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Take a model without --weights as it is initialised.")
]
Seed = Annotated[int, typer.Option(help="Seed of random weights, inputs and training.")]
Backend = Annotated[str, typer.Option(help="Kernels: auto, cpu, cuda, triton or reference.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")]
Select = Annotated[
    Method | None,
    typer.Option(help="Which units of a group stay; by activations with --calibration, else by lookahead."),
]
Calibration = Annotated[
    Path | None,
    typer.Option(help="What 'slimfast calibrate' wrote: for widths, units and repair."),
]
Repair = Annotated[
    Kind | None,
    typer.Option(
        help="Solve the layers that read what is cut; from activations with --calibration, else not."
    ),
]
RepairDamping = Annotated[
    float,
    typer.Option(help="Least damping of the repair from activations; 1 where a training follows.", min=0.0),
]
Rounds = Annotated[
    int, typer.Option(help="Cut in so many rounds, with --epochs of distillation after each.", min=1)
]
Schedule = Annotated[Schedules, typer.Option(help="How the budget comes down with --rounds.")]
ForTraining = Annotated[
    bool,
    typer.Option(
        "--for-training",
        help="Choose --select, --repair and its damping as a training starts best from them.",
    ),
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


Report = Annotated[
    Path | None,
    typer.Option(help="Also write a report that one looks at, to this .html file."),
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="An output that stays as it is, by name or number; repeat it for more. By default all stay.",
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT[,INPUT...]",
        help="The inputs of another call, each as in --input, for layers that the first leaves out; repeat "
        "it for more calls.",
    ),
]

DATA_HELP = (
    "A folder of images (CLASS/*.jpg or train/CLASS/*.jpg), a data set of Hugging Face saved to disk, a .npz "
    "file, or package.module:function that returns a train loader or (train, eval) loaders; "
    "?key=value behind it are arguments."
)
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse a plan that was made from other weights, not only warn.")
]
BatchSize = Annotated[int, typer.Option(help="Samples in a batch, of folders and files.", min=1)]
Workers = Annotated[int, typer.Option(help="Processes that load data, of folders and files.", min=0)]
Epochs = Annotated[int, typer.Option(help="Epochs of distillation.")]
LearningRate = Annotated[float, typer.Option("--lr", help="Learning rate after the warm-up.")]
Soft = Annotated[float, typer.Option(help="Weight of the teacher's soft targets.", min=0.0)]
Hard = Annotated[
    float | None,
    typer.Option(help="Weight of the labels.", show_default="0.1, 0 for data without labels", min=0.0),
]
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


def on_meta_device(
    model: str, weights: Path | None, seed: int, device: str
) -> tuple[nn.Module, StoredWeights]:
    """Build the model without weights, which stay in their file: what ``--stream`` asks for.

    Half precision is computed with in float32, as it is for a model in memory.
    """
    if weights is None or device != "cpu":
        raise SlimfastError(f"--stream: expected --weights and --device cpu, got {weights} and {device}")
    with without_weights():
        network = build(model, seed=seed, device="meta", random_weights=True).model
    in_float32(network)
    return network, stored_weights(network, weights)


def check_export(path: Path | None) -> None:
    """Refuse a file for an exported network that cannot be written, or whose suffix does not say how."""
    if path is not None and path.suffix not in EXPORTS:
        raise SlimfastError(f"--export: expected a file ending in {' or '.join(EXPORTS)}, got {path}")
    check_outputs(path)


def check_new_folder(path: Path | None) -> None:
    """Refuse a folder that is there already and not empty."""
    if path is None:
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise cannot_write(path, "it is there already, and not an empty folder")
    if not path.parent.is_dir():
        raise cannot_write(path, f"the folder {path.parent} does not exist")


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
