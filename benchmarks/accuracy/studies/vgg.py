"""VGG-16-BN trained on CIFAR-10: ``python -m benchmarks.accuracy.studies.vgg [--full]``, for the other
benchmarks.

There are no public weights of it at hand, so it is trained here: SGD with Nesterov momentum, a cosine
schedule, flips and crops. Held-out training images choose the best epoch; the test images are read once. The
weights go to ``build/accuracy/weights``, where ``--network vgg16_bn`` of the one-shot and recovery benchmarks
finds them. A training that was stopped goes on where it was when the same command is given again. The short
form, a minute or two on a CPU, only shows that all of it works: its network knows little.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.accuracy.data.cifar10_data import AugmentedBatches, data_folder, load_split
from benchmarks.accuracy.networks.vgg_cifar import vgg16_bn
from benchmarks.accuracy.studies.cifar10 import Settings, held_out
from benchmarks.stamp import ROOT, stamp
from slimfast.distillation import DistillationLoss, accuracy, distill
from slimfast.errors import SlimfastError
from slimfast.plans.costs import count_module
from slimfast.storage.atomic import atomic_path, output_folder

WEIGHTS = ROOT / "build" / "accuracy" / "weights"
FULL = Settings(
    network="vgg16_bn", train_images=45000, validation_images=5000, test_images=10000, epochs=100, lr=0.1
)
SHORT = replace(FULL, train_images=1000, validation_images=200, test_images=500, epochs=1)


class Unknowing(nn.Module):
    """A teacher without an opinion: logits of zeros. Only the labels count."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.classes)


@dataclass(frozen=True, slots=True)
class Trained:
    """Accuracies in [0, 1] of the best epoch, and the seconds of the training."""

    params: int
    macs: int
    validation: float
    test: float
    seconds: float


def run(settings: Settings, *, work: Path, weights: Path, progress: bool | None = None) -> Trained:
    """Train, or go on, and write the weights."""
    data = data_folder()
    train, validation = held_out(load_split("train", folder=data), settings)
    torch.manual_seed(settings.seeds[0])
    network = vgg16_bn().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    history = distill(
        network,
        teacher=Unknowing(10),
        train=AugmentedBatches(train, settings.batch),
        evaluate=validation.batches(250),
        epochs=settings.epochs,
        lr=settings.lr,
        loss=DistillationLoss(soft=0.0, hard=1.0, hint=0.0),
        weight_decay=settings.weight_decay,
        seed=settings.seeds[0],
        checkpoint=work,
        resume=True,
        progress=progress,
    )
    network.eval()
    test = load_split("test", folder=data)[: settings.test_images]
    scores = [accuracy(network, images.batches(250)) for images in (validation, test)]
    with atomic_path(output_folder(weights) / f"{settings.network}-{settings.epochs}epochs.th") as temporary:
        torch.save({"state_dict": network.state_dict()}, temporary)
    cost = count_module(network, torch.zeros(1, 3, 32, 32))
    seconds = sum(epoch.seconds for epoch in history.epochs)
    return Trained(cost.params, cost.macs, *scores, seconds=round(seconds, 1))


def main(
    full: Annotated[bool, typer.Option("--full", help="45,000 images, 100 epochs: for a GPU.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Epochs of training.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Images to train on.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the state of the training.")] = None,
    weights: Annotated[Path, typer.Option(help="Folder for the weights.")] = WEIGHTS,
) -> None:
    """Train VGG-16-BN on CIFAR-10."""
    settings = FULL if full else SHORT
    settings = replace(
        settings,
        epochs=settings.epochs if epochs is None else epochs,
        train_images=settings.train_images if train_images is None else train_images,
        lr=settings.lr if lr is None else lr,
    )
    name = f"vgg16_bn-{settings.train_images}x{settings.epochs}"
    path = output or ROOT / "benchmarks" / "results" / f"{name}.json"
    output_folder(path.parent)
    made = stamp("cuda" if torch.cuda.is_available() else "cpu")
    found = run(settings, work=work or ROOT / "build" / "accuracy" / name, weights=weights)
    result: dict[str, Any] = {"benchmark": "vgg", "settings": asdict(settings), "stamp": made}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result | asdict(found), indent=1) + "\n")
    print(f"test accuracy {100 * found.test:.2f} %, written: {path}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"vgg: {error}") from None
