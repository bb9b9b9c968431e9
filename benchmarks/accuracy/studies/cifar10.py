"""ResNets on CIFAR-10, cut and distilled: ``python -m benchmarks.accuracy.studies.cifar10 [--full]``.

The planned network beside a control of uniform widths and equal MACs, both with filters chosen by L1,
distilled by the same recipe from the same public weights. Training images held out from the distillation
choose the best epoch; the test images are read once, at the end. (The public weights have seen all training
images, so that accuracy on held-out ones is too high, the dense network's most of all.) A run that was
stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.accuracy.data.cifar10_data import AugmentedBatches, Images, data_folder, load_split
from benchmarks.accuracy.networks import resnet_cifar, vgg_cifar
from benchmarks.accuracy.studies.trainings import training_folder
from benchmarks.stamp import ROOT, stamp
from slimfast.distillation import DistillationLoss, History, accuracy, distill
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.plans import Plan, plan
from slimfast.plans.controls import uniform_like
from slimfast.plans.costs import Cost, count_module
from slimfast.plans.plan_table import quantity
from slimfast.pruning.prune import prune_channels
from slimfast.spectra import measure_spectra
from slimfast.storage.atomic import atomic_path, output_folder

Key: TypeAlias = tuple[str, str, int | None]
"""Kind, stage and seed of a network."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run does; ``train_images`` + ``validation_images`` are at most 50,000."""

    network: str = "resnet56"
    macs: float = 0.5
    select: Literal["l1", "pivoted_cholesky"] = "l1"
    train_images: int = 5000
    validation_images: int = 2000
    test_images: int = 2000
    epochs: int = 1
    lr: float = 0.05
    batch: int = 128
    temperature: float = 4.0
    soft: float = 0.9
    hard: float = 0.1
    weight_decay: float = 5e-4
    seeds: tuple[int, ...] = (0,)


SHORT = Settings()
FULL = replace(
    SHORT, train_images=45000, validation_images=5000, test_images=10000, epochs=100, seeds=(0, 1, 2)
)


@dataclass(frozen=True, slots=True)
class Row:
    """One network: accuracies in [0, 1] on validation and test images; the dense one has no kind of its
    own."""

    kind: str
    stage: str
    seed: int | None
    params: int
    macs: int
    validation: float
    test: float
    seconds: float


def run(
    settings: Settings, *, work: Path, data: Path | None = None, progress: bool | None = None
) -> list[Row]:
    """All networks of the benchmark, trained and measured; ``work`` keeps the state of the trainings."""
    data = data_folder() if data is None else data
    teacher = load_network(settings.network, data)
    train, validation = held_out(load_split("train", folder=data), settings)
    example = torch.zeros(1, 3, 32, 32)
    networks: dict[Key, nn.Module] = {("dense", "trained", None): teacher}
    seconds: dict[Key, float] = {}
    for kind, widths in plans(teacher, example, settings.macs).items():
        networks[kind, "one shot", None] = prune_channels(teacher, widths, select=settings.select)
        for seed in settings.seeds:
            thin = prune_channels(teacher, widths, select=settings.select, verify=False)
            folder = training_folder(work, kind, seed, thin)
            history = train_thin(thin, teacher, train, validation, settings, seed, folder, progress)
            networks[kind, "distilled", seed] = thin.eval()
            seconds[kind, "distilled", seed] = seconds_of(history)
    test = load_split("test", folder=data)[: settings.test_images]
    rows = []
    for key, network in networks.items():
        cost: Cost = count_module(network, example)
        scores = [accuracy(network, images.batches(250)) for images in (validation, test)]
        rows.append(Row(*key, cost.params, cost.macs, scores[0], scores[1], round(seconds.get(key, 0.0), 1)))
    return rows


def load_network(name: str, data: Path) -> nn.Module:
    """The network of that name: a public one from ``weights`` in the data folder, or VGG trained here."""
    folders = (data / "weights", ROOT / "build" / "accuracy" / "weights")
    found = [path for folder in folders for path in sorted(folder.glob(f"{name}-*.th"))]
    factory: Any = getattr(resnet_cifar, name, getattr(vgg_cifar, name, None))
    if factory is None or not found:
        raise SlimfastError(
            f"no network {name}: expected resnet20, 32, 44 or 56, with weights in {data}/weights, "
            f"or vgg16_bn, which benchmarks.accuracy.studies.vgg trains"
        )
    network: nn.Module = factory().load_pretrained(found[0])
    return network


def held_out(images: Images, settings: Settings) -> tuple[Images, Images]:
    """The first images for training, the last ones for validation."""
    count = settings.train_images + settings.validation_images
    if count > len(images):
        raise SlimfastError(f"{count} images for training and validation, but there are {len(images)}")
    return images[: settings.train_images], images[len(images) - settings.validation_images :]


def plans(teacher: nn.Module, example: Tensor, macs: float) -> Mapping[str, Plan]:
    """The plan and its uniform control."""
    graph = trace_channels(teacher, example)
    spectra = measure_spectra(teacher, graph)
    ours = plan(teacher, example, macs=macs, spectra=spectra)
    return {"plan": ours, "uniform": uniform_like(ours, graph, spectra)}


def train_thin(
    thin: nn.Module,
    teacher: nn.Module,
    train: Images,
    validation: Images,
    settings: Settings,
    seed: int,
    work: Path,
    progress: bool | None,
    loss: DistillationLoss | None = None,
) -> History:
    """Distil ``thin`` in place; its epochs, those before an interruption included.

    ``validation`` chooses the best epoch; without images it is the last one. ``loss`` stands in for that of
    the settings.
    """
    of_settings = DistillationLoss(temperature=settings.temperature, soft=settings.soft, hard=settings.hard)
    return distill(
        thin,
        teacher=teacher,
        train=AugmentedBatches(train, settings.batch),
        evaluate=validation.batches(250) if len(validation) else None,
        epochs=settings.epochs,
        lr=settings.lr,
        loss=loss or of_settings,
        weight_decay=settings.weight_decay,
        seed=seed,
        checkpoint=work,
        resume=True,
        progress=progress,
    )


def seconds_of(history: History) -> float:
    """What a training took."""
    return sum(epoch.seconds for epoch in history.epochs)


def summary(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Per kind and stage: mean and, from two seeds on, standard deviation of the test accuracy."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        tests = [other.test for other in rows if (other.kind, other.stage) == (row.kind, row.stage)]
        deviation = {"deviation": statistics.stdev(tests)} if len(tests) > 1 else {}
        found[f"{row.kind}, {row.stage}"] = {"mean": statistics.fmean(tests), **deviation}
    return found


def table(rows: list[Row]) -> Table:
    """The rows as they are printed."""
    shown = Table(title="CIFAR-10, top-1", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("network", "stage", "seed", "params", "MACs", "held out", "test", "time"):
        shown.add_column(column, justify="left" if column in ("network", "stage") else "right", no_wrap=True)
    whole = rows[0]
    for row in rows:
        shown.add_row(
            row.kind,
            row.stage,
            "" if row.seed is None else str(row.seed),
            quantity(row.params),
            f"{quantity(row.macs)} ({row.macs / whole.macs:.1%})",
            f"{100 * row.validation:.2f} %",
            f"{100 * row.test:.2f} %",
            f"{row.seconds:.0f} s" if row.seconds else "",
        )
    return shown


def main(
    full: Annotated[bool, typer.Option("--full", help="45,000 images, 100 epochs, 3 seeds.")] = False,
    network: Annotated[str, typer.Option(help="resnet20, resnet32, resnet44 or resnet56.")] = SHORT.network,
    macs: Annotated[float, typer.Option(help="Share of the MACs to keep.")] = SHORT.macs,
    epochs: Annotated[int | None, typer.Option(help="Epochs of distillation.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Images to train on.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the state of the trainings.")] = None,
) -> None:
    """Cut a CIFAR-10 ResNet, distil it, and compare it with uniform widths."""
    settings = replace(FULL if full else SHORT, network=network, macs=macs)
    settings = replace(
        settings,
        epochs=settings.epochs if epochs is None else epochs,
        lr=settings.lr if lr is None else lr,
        train_images=settings.train_images if train_images is None else train_images,
        seeds=settings.seeds if seeds is None else tuple(range(seeds)),
    )
    name = f"cifar10-{network}-{macs:g}{'-full' if full else ''}"
    output = ROOT / "benchmarks" / "results" / f"{name}.json" if output is None else output
    output_folder(output.parent)
    made = stamp("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    rows = run(settings, work=ROOT / "build" / "accuracy" / name if work is None else work)
    result = {
        "benchmark": "cifar10",
        "settings": asdict(settings),
        "stamp": made,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "rows": [asdict(row) for row in rows],
        "test_accuracy": summary(rows),
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    console.print(table(rows))
    console.print(f"written: {output}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"cifar10: {error}") from None
