"""Short recovery: ``python -m benchmarks.accuracy.studies.recovery``, the same few epochs for every thin
network.

A CIFAR-10 network is cut to 1 / 3.5 of its MACs by the default and by every control, and trained from
scratch at the uniform widths too; all by one recipe, from the same teacher, over the same seeds. Training
images held out choose the best epoch, and the test images are read once, at the end. Every training is kept,
every row written as it is done: the same command goes on where it was stopped. All contenders of a seed see
the same augmented images in the same order, so that the teacher's logits are computed once for all of them
and kept beside the trainings.

``--long`` is the full recipe: half of the MACs, 30 epochs on all 50,000 training images. None is held out, so
that the network of the last epoch counts.

``--losses`` trains one thin network, ResNet-20's by the default, by each loss that ``distill`` offers.

``--starts`` asks what a training makes of its start: the same widths with other units, the same units with
other repairs, one epoch on fewer images and from a low rate, so that the start shows in the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.accuracy.data.cifar10_data import Images, data_folder, load_split
from benchmarks.accuracy.studies.cifar10 import Settings, held_out, load_network, seconds_of, train_thin
from benchmarks.accuracy.studies.contenders import LOSSES, RECOVERY, STARTS, Contender, thin_network, wanted
from benchmarks.accuracy.studies.study import Study
from benchmarks.accuracy.studies.trainings import training_folder
from benchmarks.stamp import ROOT, add_row, stamp
from slimfast.distillation import CachedTeacher, accuracy
from slimfast.errors import SlimfastError
from slimfast.plans.costs import count_module
from slimfast.storage.atomic import atomic_path, output_folder

# Epoch e of a training draws from the generator of its seed + e: seeds this far apart share no images.
SETTINGS = Settings(
    network="resnet56",
    macs=1 / 3.5,
    train_images=20000,
    validation_images=2000,
    test_images=10000,
    epochs=5,
    seeds=(0, 100, 200),
)
# A few minutes on a few cores.
SHORT = replace(
    SETTINGS,
    network="resnet20",
    train_images=2000,
    validation_images=1000,
    test_images=2000,
    epochs=1,
    seeds=(0,),
)
LONG = replace(SETTINGS, network="resnet20", macs=0.5, train_images=50000, validation_images=0, epochs=30)
OF_LOSSES = replace(SETTINGS, network="resnet20")
FROM_STARTS = replace(SETTINGS, train_images=10000, epochs=1, lr=0.015, seeds=(0, 100))


@dataclass(frozen=True, slots=True)
class Row:
    """One training: accuracies in [0, 1] before it on validation, after it on validation and test images,
    None where no image is held out; ``loss`` is that of the training images, the mean over the last epoch.
    """

    name: str
    control: bool
    seed: int
    params: int
    macs: int
    before: float | None
    validation: float | None
    test: float
    loss: float
    seconds: float


def run(
    settings: Settings,
    parts: Sequence[Mapping[str, Contender]] = RECOVERY,
    *,
    work: Path,
    path: Path,
    names: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """All trainings that ``path`` has no row of: of each part's contenders with all seeds, part by part;
    only those of ``names``, where there are any, and of these of the settings' ``seeds``.
    """
    data = data_folder()
    # What is cut in rounds has an epoch after each.
    parts = [{n: c for n, c in part.items() if c.rounds <= settings.epochs} for part in parts]
    contenders = {name: contender for part in parts for name, contender in part.items()}
    for name in names:
        if name not in contenders:
            raise SlimfastError(f"no contender {name!r}: expected one of {'; '.join(contenders)}")
    for seed in seeds or ():
        if seed not in settings.seeds:
            raise SlimfastError(f"seed {seed}: expected one of {', '.join(map(str, settings.seeds))}")
    result: dict[str, Any] = {"benchmark": "recovery", "settings": asdict(settings), "rows": []}
    known = json.loads(json.dumps(result["settings"]))
    if path.exists():
        result = json.loads(path.read_text())
        if result["settings"] != known:
            raise SlimfastError(f"{path} has results of other settings: {result['settings']}")
    made = stamp("cuda" if torch.cuda.is_available() else "cpu")
    result.setdefault("stamp", made)
    result["planned"] = len(wanted(parts, settings.seeds))
    done = {(row["name"], row["seed"]) for row in result["rows"]}
    teacher = load_network(settings.network, data)
    train, validation = held_out(load_split("train", folder=data), settings)
    test = load_split("test", folder=data)[: settings.test_images]
    example = torch.zeros(1, 3, 32, 32)
    study = Study.of(teacher, example, train[:512].batches(256), 512)
    output_folder(work)
    cached = CachedTeacher(teacher, work / "teacher.logits")
    for name, seed in wanted(parts, settings.seeds):
        left_out = (names and name not in names) or (seeds is not None and seed not in seeds)
        if left_out or (name, seed) in done:
            continue
        contender = contenders[name]
        seconds, done_epochs, here = 0.0, 0, study
        for number, epochs in enumerate(epochs_of(contender.rounds, settings.epochs)):
            if number > 0:
                here = Study.of(thin, example, train[:512].batches(256), 512)
            thin = thin_network(contender, here, settings.macs ** (1 / contender.rounds), seed)
            cost, before = count_module(thin, example), accuracy_on(thin, validation)
            folder = training_folder(work, name, seed, thin)
            # Faster on CPUs and GPUs alike, for everyone.
            thin = thin.to(memory_format=torch.channels_last)
            part = replace(settings, epochs=epochs)
            loss = contender.loss(thin) if contender.loss else None
            # Hints look inside the teacher, so that its logits alone do not serve.
            taught_by = teacher if loss and loss.hints else cached
            history = train_thin(
                thin, taught_by, train, validation, part, seed + done_epochs, folder, progress, loss
            )
            seconds, done_epochs = seconds + seconds_of(history), done_epochs + epochs
        thin.eval()
        row = Row(
            name,
            contender.control,
            seed,
            cost.params,
            cost.macs,
            before,
            validation=accuracy_on(thin, validation),
            test=accuracy(thin, test.batches(250)),
            loss=history.epochs[-1].loss,
            seconds=round(seconds, 1),
        )
        add_row(result, asdict(row), made)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name:26} seed {seed:3}  {100 * row.test:6.2f} %  {row.seconds:.0f} s", flush=True)
    return result


def accuracy_on(network: nn.Module, images: Images) -> float | None:
    """The share of ``images`` that ``network`` gets right; None where there are none."""
    return accuracy(network, images.batches(250)) if len(images) else None


def epochs_of(rounds: int, epochs: int) -> list[int]:
    """The epochs after each round: one after all but the last, which has the rest."""
    return [1] * (rounds - 1) + [epochs - rounds + 1]


def main(
    short: Annotated[bool, typer.Option("--short", help="ResNet-20, 2,000 images, 1 epoch, 1 seed.")] = False,
    starts: Annotated[
        bool, typer.Option("--starts", help="Widths, units and repairs one by one: 10,000 images, 1 epoch.")
    ] = False,
    long: Annotated[
        bool, typer.Option("--long", help="ResNet-20, half of the MACs, 50,000 images, 30 epochs.")
    ] = False,
    losses: Annotated[
        bool, typer.Option("--losses", help="One thin ResNet-20 by each loss of distill.")
    ] = False,
    network: Annotated[
        str | None, typer.Option(help="resnet20, resnet32, resnet44, resnet56 or vgg16_bn.")
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help="Train this one only; may be given several times.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Train from this seed only; may be given several times.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate; results of their own.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="How many epochs; results of their own.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the state of the trainings.")] = None,
) -> None:
    """Train every contender by the same short recipe and compare."""
    forms = {
        "short": (short, SHORT),
        "long": (long, LONG),
        "losses": (losses, OF_LOSSES),
        "starts": (starts, FROM_STARTS),
    }
    chosen = [name for name, (asked, _) in forms.items() if asked]
    if len(chosen) > 1:
        raise SlimfastError(f"{' and '.join(f'--{name}' for name in chosen)}: pass one of them")
    settings = forms[chosen[0]][1] if chosen else SETTINGS
    settings = replace(
        settings,
        network=network or settings.network,
        lr=lr or settings.lr,
        epochs=epochs or settings.epochs,
    )
    own = f"{'' if lr is None else f'-lr{lr:g}'}{'' if epochs is None else f'-epochs{epochs}'}"
    form = f"-{chosen[0]}" if chosen else ""
    name = f"recovery-{settings.network}{own}{form}"
    path = output or ROOT / "benchmarks" / "results" / f"{name}.json"
    output_folder(path.parent)
    started = time.perf_counter()
    parts = (STARTS,) if starts else (LOSSES,) if losses else RECOVERY
    folder = work or ROOT / "build" / "accuracy" / name
    run(settings, parts, work=folder, path=path, names=contender or (), seeds=seed)
    print(f"written: {path} ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"recovery: {error}") from None
