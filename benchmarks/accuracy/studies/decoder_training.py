"""A thin language model, distilled: ``python -m benchmarks.accuracy.studies.decoder_training [--short]``.

SmolLM2-135M-Instruct, cut to 80 % of its decoder layers' parameters and repaired as in
``benchmarks.accuracy.decoder --draws``, learns from the original for 100 steps of 4 x 256 tokens: the default
and its control in the same way. Articles of WikiText-2's validation split calibrate and train; the test
split is read for the perplexities alone. Beside them stands what each network writes. A seed is about an
hour of one core; the same command goes on where it was stopped. ``--short`` is to see that it works.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import slimfast
from benchmarks.accuracy.data import smollm2_data, wikitext2_data
from benchmarks.accuracy.decoder import batches_of, layer_params
from benchmarks.accuracy.studies.decoder_rows import CUT, MEMORY, ROWS, thin_decoder
from benchmarks.accuracy.studies.study import Study
from benchmarks.accuracy.studies.trainings import training_folder
from benchmarks.stamp import ROOT, add_row, stamp
from slimfast.calibration import error_curves
from slimfast.distillation import DistillationLoss
from slimfast.errors import SlimfastError
from slimfast.storage.atomic import atomic_path, output_folder

CONTENDERS = ("marginal gain, MLP, activations", "uniform, MLP, activations")
PROMPTS = ("The capital of France is", "Plants need water because", "The old man opened the door and")
_WRITTEN = 24


@dataclass(frozen=True, slots=True)
class Settings:
    """``calibration`` windows of ``length`` tokens calibrate; ``steps`` of ``batch`` windows train, drawn
    anew for each of ``seeds``; ``windows`` test windows of ``test_length`` tokens. The rate was not searched.
    """

    share: float = 0.8
    calibration: int = 32
    length: int = 256
    steps: int = 100
    batch: int = 4
    lr: float = 3e-4
    temperature: float = 1.0
    windows: int = 8
    test_length: int = 512
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Settings()
SHORT = replace(FULL, calibration=8, length=128, steps=4, windows=4, seeds=(0,))


@dataclass(frozen=True, slots=True)
class Row:
    """One thin decoder before and after its training: ``params`` of its decoder layers, perplexities, what it
    writes to each prompt, the training's mean loss and seconds.
    """

    name: str
    control: bool
    seed: int
    params: int
    before: float
    after: float
    writes_before: list[str]
    writes_after: list[str]
    loss: float
    seconds: float


def written(model: nn.Module, encode: Any, decode: Any) -> list[str]:
    """What a network writes to each of :data:`PROMPTS`, its most probable token at each step."""
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([encode(prompt)])
        made = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_WRITTEN,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        found.append(decode(made[0, ids.shape[1] :].tolist()))
    return found


def run(
    settings: Settings,
    *,
    work: Path,
    path: Path,
    names: list[str] | None = None,
    seeds: list[int] | None = None,
) -> dict[str, Any]:
    """All rows that ``path`` has not, of ``names`` and ``seeds`` alone where they are given."""
    for name in names or ():
        if name not in CONTENDERS:
            raise SlimfastError(f"no contender {name!r}: expected one of {'; '.join(CONTENDERS)}")
    for seed in seeds or ():
        if seed not in settings.seeds:
            raise SlimfastError(f"seed {seed}: expected one of {', '.join(map(str, settings.seeds))}")
    result: dict[str, Any] = {"benchmark": "decoder_training", "settings": asdict(settings), "rows": []}
    known = json.loads(json.dumps(result["settings"]))
    if path.exists():
        result = json.loads(path.read_text())
        if result["settings"] != known:
            raise SlimfastError(f"{path} has results of other settings: {result['settings']}")
    made = stamp("cpu")
    result.setdefault("stamp", made)
    file = smollm2_data.model_file()
    model, encode = smollm2_data.load_decoder(file), smollm2_data.load_tokenizer(file)
    decode = smollm2_data.load_decoding(file)
    ids = encode(wikitext2_data.load_text("test"))
    test = batches_of(wikitext2_data.windows(ids, settings.test_length, settings.windows))
    if "dense" not in result:
        tokens = sum(batch["input_ids"][:, 1:].numel() for batch in test)
        result["dense"] = {
            "perplexity": slimfast.perplexity(model, test),
            "layers": layer_params(model),
            "tokens": tokens,
            "prompts": list(PROMPTS),
            "writes": written(model, encode, decode),
        }
        _write(path, result)
    valid = wikitext2_data.articles(wikitext2_data.load_text("valid"))
    # The last fifth is left for those who choose between ways.
    articles = valid[: math.ceil(0.8 * len(valid))]
    done = {(row["name"], row["seed"]) for row in result["rows"]}
    for seed in seeds or settings.seeds:
        left = [name for name in names or CONTENDERS if (name, seed) not in done]
        if not left:
            continue
        rows = wikitext2_data.drawn(articles, encode, settings.calibration, settings.length, seed)
        study = Study.of(
            model,
            {"input_ids": rows[:1]},
            batches_of(rows),
            settings.calibration,
            budget="params",
            include=CUT,
            with_curves=False,
            memory=MEMORY,
        )
        if any(ROWS[name].curves for name in left):
            curves = error_curves(study.model, study.graph, study.calibration, memory=MEMORY)
            study = replace(study, curves=curves)
        for name in left:
            # Other windows than those that calibrated, as far as there are.
            drawn = wikitext2_data.drawn(
                articles, encode, settings.steps * settings.batch, settings.length, seed + 1000
            )
            train = drawn.split(settings.batch)
            row = measure(name, study, settings, seed, train, test, work, encode, decode)
            add_row(result, asdict(row), made)
            _write(path, result)
            print(f"{seed} {name:34} {row.before:8.2f} -> {row.after:8.2f}  {row.seconds:.0f} s", flush=True)
    return result


def measure(
    name: str,
    study: Study,
    settings: Settings,
    seed: int,
    train: tuple[torch.Tensor, ...],
    test: list[dict[str, torch.Tensor]],
    work: Path,
    encode: Any,
    decode: Any,
) -> Row:
    """One network, cut, repaired, run, distilled and run again."""
    layers, total = layer_params(study.model), sum(p.numel() for p in study.model.parameters())
    thin = thin_decoder(ROWS[name], study, 1.0 - (1.0 - settings.share) * layers / total)
    before, writes = slimfast.perplexity(thin, test), written(thin, encode, decode)
    started = time.perf_counter()
    history = slimfast.distill(
        thin,
        teacher=study.model,
        train=[{"input_ids": tokens, "labels": tokens} for tokens in train],
        epochs=1,
        lr=settings.lr,
        optimizer="adamw",
        loss=DistillationLoss(temperature=settings.temperature),
        seed=seed,
        checkpoint=training_folder(work, name, seed, thin),
        resume=True,
    )
    seconds = time.perf_counter() - started
    thin.eval()
    return Row(
        name=name,
        control=ROWS[name].control,
        seed=seed,
        params=layer_params(thin),
        before=before,
        after=slimfast.perplexity(thin, test),
        writes_before=writes,
        writes_after=written(thin, encode, decode),
        loss=history.epochs[-1].loss,
        seconds=round(seconds, 1),
    )


def _write(path: Path, result: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


def main(
    short: Annotated[bool, typer.Option("--short", help="Four steps and windows, one seed.")] = False,
    contender: Annotated[list[str] | None, typer.Option(help="This one only; repeat it for more.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="From this seed only; repeat it for more.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the state of the trainings.")] = None,
) -> None:
    """Distil thin SmolLM2-135M for a hundred steps and compare."""
    settings = SHORT if short else FULL
    suffix = "-short" if short else ""
    path = output or ROOT / "benchmarks" / "results" / f"distilled-decoder{suffix}.json"
    output_folder(path.parent)
    place = work or ROOT / "build" / "accuracy" / f"distilled-decoder{suffix}"
    run(settings, work=output_folder(place), path=path, names=contender, seeds=seed)
    print(f"written: {path}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"decoder_training: {error}") from None
