"""MiniLM on STS-B: ``python -m benchmarks.accuracy.studies.minilm [--short]``, attention heads and MLP cut
to 60 %.

Heads and MLP channels of ``all-MiniLM-L6-v2`` are cut until 60 % of its encoder's parameters are left (the
embeddings stay), by every allocation, data-free and repaired, and the controls alike; then some are distilled
towards the original's embeddings on the sentences of the training split, without their scores. Spearman's
rank correlation of cosines and scores: the dev split chooses the best epoch, and every network is run once on
the test split. Each row is written as it is done: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from benchmarks.accuracy.data.stsb_data import (
    Pairs,
    TokenBatches,
    Tokenizer,
    Tokens,
    load_encoder,
    load_pairs,
    model_folder,
    padded,
    similarity,
)
from benchmarks.accuracy.studies import allocations
from benchmarks.accuracy.studies.study import Study
from benchmarks.accuracy.studies.trainings import training_folder
from benchmarks.stamp import ROOT, add_row, stamp
from slimfast.distillation import CachedTeacher, distill
from slimfast.errors import SlimfastError
from slimfast.plans import Plan
from slimfast.pruning.prune import prune_channels
from slimfast.storage.atomic import atomic_path, output_folder

CUT = ("head", "channel")
"""The kinds of groups that are cut; the positions inside heads, which query, key and value share, stay."""


@dataclass(frozen=True, slots=True)
class Settings:
    """``encoder``: the share of the encoder's parameters to keep; ``calibration`` sentences of ``length``
    tokens calibrate, all of one length so that no position is padding.
    """

    encoder: float = 0.6
    calibration: int = 512
    length: int = 12
    sentences: int | None = None
    epochs: int = 3
    lr: float = 3e-4
    batch: int = 32
    weight_decay: float = 0.01
    seeds: tuple[int, ...] = (0, 100, 200)


FULL = Settings()
SHORT = replace(FULL, sentences=4000, epochs=1, seeds=(0,))


@dataclass(frozen=True, slots=True)
class Contender:
    """How a thin network is made; ``trained``: whether it is distilled as well."""

    plan: Callable[[Study, float], Plan]
    select: str = "l1"
    repair: str | None = None
    control: bool = True
    trained: bool = False
    damping: float = 0.0


def _contenders() -> dict[str, Contender]:
    ours, paper = allocations.marginal_gain, allocations.explained_variance
    # The default's units, with the repair that fits best and with the one a training should start from.
    found = {
        f"marginal gain, lookahead{named}, activations": Contender(
            ours, "lookahead", "activations", control=False, trained=True, damping=damping
        )
        for named, damping in ((", damping 1", 1.0), ("", 0.0))
    }
    found["marginal gain, lookahead"] = Contender(ours, "lookahead", control=False)
    for repair in ("activations", None, "weights"):
        after = f", {repair}" if repair else ""
        best = repair == "activations"
        found[f"marginal gain{after}"] = Contender(ours, "activations", repair, control=False, trained=best)
        found[f"gain in squares{after}"] = Contender(
            allocations.marginal_gain_of_squares, "activations", repair, control=False, trained=best
        )
        found[f"paper{after}"] = Contender(paper, "l1", repair, control=False, trained=best)
        found[f"uniform, L1{after}"] = Contender(
            allocations.uniform, "l1", repair, trained=repair != "weights"
        )
        found[f"group magnitude{after}"] = Contender(
            allocations.group_magnitude, "l1", repair, trained=repair != "weights"
        )
        found[f"noise null, L1{after}"] = Contender(allocations.noise_null, "l1", repair)
        found[f"random widths, L1{after}"] = Contender(allocations.random, "l1", repair)
    return found


CONTENDERS = _contenders()


@dataclass(frozen=True, slots=True)
class Row:
    """One network: Spearman's correlations on dev and test; ``seed`` None where it was not trained."""

    name: str
    control: bool
    repair: str | None
    seed: int | None
    params: int
    encoder: int
    dev: float
    test: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Data:
    """The splits as the networks take them."""

    tokenizer: Tokenizer
    train: list[list[int]]
    dev: Pairs
    test: Pairs

    @staticmethod
    def load(folder: Path, settings: Settings) -> Data:
        tokenizer = Tokenizer(folder)
        train = tokenizer(load_pairs("train").sentences())
        return Data(tokenizer, train, load_pairs("dev"), load_pairs("test"))

    def calibration(self, settings: Settings) -> list[Tokens]:
        """Sentences of one length, in batches."""
        rows = [row for row in self.train if len(row) == settings.length][: settings.calibration]
        return [padded(rows[i : i + 64]) for i in range(0, len(rows), 64)]

    def batches(self, settings: Settings) -> TokenBatches:
        """What is trained on: every so many-th sentence, as many as the settings say."""
        step = 1 if settings.sentences is None else max(1, len(self.train) // settings.sentences)
        return TokenBatches(self.train[::step][: settings.sentences], settings.batch)

    def scores(self, model: nn.Module) -> tuple[float, float]:
        """On dev and test."""
        dev, test = (similarity(model, pairs, self.tokenizer) for pairs in (self.dev, self.test))
        return dev, test


def encoder_params(model: nn.Module) -> int:
    """Parameters of the encoder's layers, without the embeddings."""
    return sum(p.numel() for name, p in model.named_parameters() if ".encoder." in f".{name}")


def embedding_loss(student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
    """Squared distance of two embeddings of unit length, 2 - 2 cos, the mean over the batch."""
    return (student - teacher).square().sum(1).mean()


def thin_network(contender: Contender, study: Study, share: float) -> nn.Module:
    """The network of a contender, before its training."""
    options: dict[str, Any] = {"select": contender.select, "repair": contender.repair}
    if contender.repair == "activations":
        options["repair_damping"] = contender.damping
    plan = contender.plan(study, share)
    return prune_channels(study.model, plan, calibration=study.calibration, verify=False, **options)


def train(
    thin: nn.Module, teacher: nn.Module, data: Data, settings: Settings, seed: int, work: Path
) -> float:
    """Distil ``thin`` in place; the seconds it took."""
    history = distill(
        thin,
        teacher=teacher,
        train=data.batches(settings),
        evaluate=lambda model: similarity(model, data.dev, data.tokenizer),
        epochs=settings.epochs,
        lr=settings.lr,
        loss=embedding_loss,
        optimizer="adamw",
        weight_decay=settings.weight_decay,
        warmup=0.1,
        max_grad_norm=1.0,
        seed=seed,
        checkpoint=work,
        resume=True,
    )
    return sum(epoch.seconds for epoch in history.epochs)


def wanted(seeds: Sequence[int]) -> list[tuple[str, int | None]]:
    """(contender, seed) in the order they are measured, the most telling first; None for no training."""
    trained = [(name, seed) for seed in seeds for name, made in CONTENDERS.items() if made.trained]
    cut = [(name, None) for name, made in CONTENDERS.items() if made.repair != "weights"]
    return [*cut, *trained, *((name, None) for name, made in CONTENDERS.items() if made.repair == "weights")]


def run(settings: Settings, *, work: Path, path: Path) -> dict[str, Any]:
    """All rows that ``path`` has not."""
    result: dict[str, Any] = {"benchmark": "minilm", "settings": asdict(settings), "rows": []}
    known = json.loads(json.dumps(result["settings"]))
    if path.exists():
        result = json.loads(path.read_text())
        if result["settings"] != known:
            raise SlimfastError(f"{path} has results of other settings: {result['settings']}")
    done = {(row["name"], row["seed"]) for row in result["rows"]}
    made = stamp("cpu")
    result.setdefault("stamp", made)
    folder = model_folder()
    data = Data.load(folder, settings)
    teacher = load_encoder(folder)
    params, encoder = (count(teacher) for count in (_params, encoder_params))
    if "dense" not in result:
        dev, test = data.scores(teacher)
        result["dense"] = {"dev": dev, "test": test, "params": params, "encoder": encoder}
    share = 1 - (1 - settings.encoder) * encoder / params
    batches = data.calibration(settings)
    study = Study.of(teacher, batches[0], batches, settings.calibration, budget="params", include=CUT)
    cached = CachedTeacher(teacher, output_folder(work) / "teacher.embeddings")
    for name, seed in wanted(settings.seeds):
        if (name, seed) in done:
            continue
        contender = CONTENDERS[name]
        started = time.perf_counter()
        thin = thin_network(contender, study, share)
        seconds = time.perf_counter() - started
        if seed is not None:
            place = training_folder(work, name, seed, thin)
            seconds = train(thin, cached, data, settings, seed, place)
        dev, test = data.scores(thin.eval())
        row = Row(
            name=name,
            control=contender.control,
            repair=contender.repair,
            seed=seed,
            params=_params(thin),
            encoder=encoder_params(thin),
            dev=dev,
            test=test,
            seconds=round(seconds, 1),
        )
        add_row(result, asdict(row), made)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
        print(
            f"{name:30} {'' if seed is None else seed!s:4} {100 * row.dev:6.2f} {100 * row.test:6.2f}",
            flush=True,
        )
    return result


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def main(
    short: Annotated[bool, typer.Option("--short", help="4,000 sentences, 1 epoch, 1 seed.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the state of the trainings.")] = None,
) -> None:
    """Cut MiniLM's heads and MLP in every way, distil, and compare."""
    settings = SHORT if short else FULL
    name = f"minilm{'-short' if short else ''}"
    path = output or ROOT / "benchmarks" / "results" / f"{name}.json"
    output_folder(path.parent)
    started = time.perf_counter()
    run(settings, work=work or ROOT / "build" / "accuracy" / name, path=path)
    print(f"written: {path} ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"minilm: {error}") from None
