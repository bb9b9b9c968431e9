"""What is cut at equal time: CIFAR-10 ResNets and MiniLM with real weights, their data and short recovery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy.data.cifar10_data import data_folder, load_split
from benchmarks.accuracy.data.stsb_data import load_encoder, model_folder
from benchmarks.accuracy.studies import minilm, recovery
from benchmarks.accuracy.studies.cifar10 import held_out, load_network, seconds_of, train_thin
from benchmarks.accuracy.studies.study import Study
from slimfast.distillation import CachedTeacher, accuracy
from slimfast.storage.atomic import output_folder

MINILM = "minilm"
NETWORKS = ("resnet20", "resnet56", MINILM)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured: forwards of ``batch`` images or sentences of ``tokens`` tokens.

    ``samples`` calibrate, ``train`` are trained on, ``held_out`` choose the best epoch and ``test`` are
    scored; None is all that there are. ``seconds``: how long each network is measured at once.
    """

    network: str = "resnet20"
    latency: float = 0.5
    batch: int = 64
    tokens: int | None = None
    threads: int = 1
    seconds: float = 1.0
    samples: int = 512
    train: int | None = recovery.SETTINGS.train_images
    held_out: int | None = recovery.SETTINGS.validation_images
    test: int | None = recovery.SETTINGS.test_images
    epochs: int = recovery.SETTINGS.epochs
    seeds: tuple[int, ...] = recovery.SETTINGS.seeds


_SENTENCES = minilm.SHORT
SETTINGS = {
    "resnet20": Settings(),
    "resnet56": Settings("resnet56"),
    MINILM: Settings(
        MINILM,
        batch=16,
        tokens=64,
        samples=_SENTENCES.calibration,
        train=_SENTENCES.sentences,
        held_out=None,
        test=None,
        epochs=_SENTENCES.epochs,
    ),
}


def short(settings: Settings) -> Settings:
    """Settings of a minute or two, to see that it works."""
    small = replace(settings, seconds=0.1, samples=64, epochs=1, seeds=(0,))
    if settings.network == MINILM:
        return replace(small, batch=4, tokens=16, train=256)
    return replace(small, batch=4, train=256, held_out=250, test=500)


@dataclass(frozen=True, slots=True)
class Subject:
    """A network with all that is measured once, an ``example`` of the forward that is timed, and what scores
    and trains thin ones.

    ``scores`` are on what is held out and on test data; ``train`` (thin, seed, epochs, folder) distils in
    place and says the seconds it took.
    """

    study: Study
    example: Any
    scores: Callable[[nn.Module], tuple[float, float]]
    train: Callable[[nn.Module, int, int, Path], float]


def load(settings: Settings, work: Path) -> Subject:
    """The subject of that name; what its teacher says is kept in ``work``."""
    return _sentences(settings, work) if settings.network == MINILM else _images(settings, work)


def _images(settings: Settings, work: Path) -> Subject:
    data = data_folder()
    images = load_split("train", folder=data)
    training = replace(
        recovery.SETTINGS,
        network=settings.network,
        train_images=len(images) if settings.train is None else settings.train,
        validation_images=settings.held_out or 0,
    )
    teacher = load_network(settings.network, data)
    train, validation = held_out(images, training)
    test = load_split("test", folder=data)[: settings.test]
    torch.manual_seed(0)
    example = torch.randn(settings.batch, 3, 32, 32, device="cpu")
    calibrating = train[: settings.samples].batches(256)
    study = Study.of(teacher, example, calibrating, settings.samples)

    def scores(network: nn.Module) -> tuple[float, float]:
        return accuracy(network, validation.batches(250)), accuracy(network, test.batches(250))

    def distilled(thin: nn.Module, seed: int, epochs: int, folder: Path) -> float:
        cached = CachedTeacher(teacher, output_folder(work) / "teacher.logits")
        # Faster on CPUs and GPUs alike, for everyone.
        thin = thin.to(memory_format=torch.channels_last)
        recipe = replace(training, epochs=epochs)
        return seconds_of(train_thin(thin, cached, train, validation, recipe, seed, folder, None))

    return Subject(study, example, scores, distilled)


def _sentences(settings: Settings, work: Path) -> Subject:
    folder = model_folder()
    given = replace(minilm.SHORT, calibration=settings.samples, sentences=settings.train)
    data = minilm.Data.load(folder, given)
    teacher = load_encoder(folder)
    shape = (settings.batch, settings.tokens or given.length)
    torch.manual_seed(0)
    words = torch.randint(1, teacher.bert.config.vocab_size, shape, device="cpu")
    example = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    study = Study.of(teacher, example, data.calibration(given), settings.samples, include=minilm.CUT)

    def distilled(thin: nn.Module, seed: int, epochs: int, place: Path) -> float:
        cached = CachedTeacher(teacher, output_folder(work) / "teacher.embeddings")
        return minilm.train(thin, cached, data, replace(given, epochs=epochs), seed, place)

    return Subject(study, example, data.scores, distilled)
