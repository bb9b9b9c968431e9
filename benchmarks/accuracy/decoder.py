"""A language model, cut: ``python -m benchmarks.accuracy.decoder [--short | --draws | --depth]``.

SmolLM2-135M-Instruct is cut to shares of the parameters of its decoder layers by every way of
``benchmarks.accuracy.studies.decoder_rows``, with repair and without, and its perplexity measured on the
test split of WikiText-2 before any training. Articles of the validation split calibrate, in as many draws
as the settings say. Each row is written as it is done: the same command goes on where it was stopped.
``--short`` is a few minutes: one share, one draw, a few windows and rows; ``--draws`` is three hours:
four times the calibration in three draws, three shares, and the rows between which the default is chosen;
``--depth`` is one of those draws with layers dropped, and about half an hour.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

import slimfast
from benchmarks.accuracy.data import smollm2_data, wikitext2_data
from benchmarks.accuracy.studies.decoder_rows import CUT, LAYERS, MEMORY, ROWS, thin_decoder
from benchmarks.accuracy.studies.study import Study
from benchmarks.stamp import ROOT, add_row, stamp
from slimfast.calibration import error_curves
from slimfast.errors import SlimfastError
from slimfast.storage.atomic import atomic_path, output_folder


@dataclass(frozen=True, slots=True)
class Settings:
    """``shares`` of the parameters of the decoder layers to keep; ``calibration`` windows of
    ``calibration_length`` tokens in each of ``draws`` draws; test windows of ``length`` tokens, None: all;
    ``rows``: the ways, None: all.
    """

    shares: tuple[float, ...] = (0.8, 0.7, 0.6, 0.5)
    calibration: int = 128
    calibration_length: int = 256
    draws: int = 3
    windows: int | None = None
    length: int = 1024
    rows: tuple[str, ...] | None = None


FULL = Settings()
SHORT = Settings(
    shares=(0.8,),
    calibration=16,
    calibration_length=128,
    draws=1,
    windows=4,
    length=512,
    rows=(
        "marginal gain, MLP, activations",
        "uniform, MLP, activations",
        "marginal gain, activations",
        "layers dropped (ShortGPT)",
        "marginal gain, no repair",
        "uniform, MLP, no repair",
        "data-free, no repair",
    ),
)
# As many tokens as curves by the loss want.
DRAWS = replace(
    SHORT,
    shares=(0.8, 0.7, 0.5),
    calibration=32,
    calibration_length=256,
    draws=3,
    windows=8,
    rows=(
        "marginal gain, MLP, activations",
        "uniform, MLP, activations",
        "uniform, MLP, moments",
        "FLAP's widths, MLP, activations",
        "marginal gain, MLP, moments",
    ),
)
# One share and draw of those, with layers that go.
DEPTH = replace(
    DRAWS,
    shares=(0.8,),
    draws=1,
    rows=(
        "layers dropped by divergence, activations",
        "2 layers dropped, then marginal gain, MLP, activations",
        "layers dropped by divergence, no repair",
        "layers dropped (ShortGPT)",
        "4 layers dropped, then marginal gain, MLP, activations",
    ),
)
# Windows that run at once.
_BATCH = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """One thin decoder; ``params`` of its decoder layers, ``processor`` seconds of plan, cut and repair, and
    ``peak``, the most memory that the process has had by then, in bytes.
    """

    name: str
    share: float
    draw: int
    control: bool
    repair: str | None
    params: int
    perplexity: float
    seconds: float
    processor: float
    peak: int


def layer_params(model: nn.Module) -> int:
    """Parameters of the decoder's layers, without the embeddings."""
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(LAYERS))


def batches_of(rows: Tensor) -> list[dict[str, Tensor]]:
    """Windows as the network is called with them."""
    return [{"input_ids": part} for part in rows.split(_BATCH)]


def wanted(settings: Settings) -> Iterator[tuple[int, str, float]]:
    """(draw, way, share), the most telling first."""
    for draw in range(settings.draws):
        for name in settings.rows or ROWS:
            for share in settings.shares:
                yield draw, name, share


def run(settings: Settings, path: Path) -> dict[str, Any]:
    """All rows that ``path`` has not."""
    result: dict[str, Any] = {"benchmark": "decoder", "settings": asdict(settings), "rows": []}
    known = json.loads(json.dumps(result["settings"]))
    if path.exists():
        result = json.loads(path.read_text())
        # Further rows and shares may join those that are there.
        if {**result["settings"], "rows": known["rows"], "shares": known["shares"]} != known:
            raise SlimfastError(f"{path} has results of other settings: {result['settings']}")
        result["settings"] = known
    done = {(row["draw"], row["name"], row["share"]) for row in result["rows"]}
    left = [row for row in wanted(settings) if row not in done]
    made = stamp("cpu")
    result.setdefault("stamp", made)
    file = smollm2_data.model_file()
    model, encode = smollm2_data.load_decoder(file), smollm2_data.load_tokenizer(file)
    text = wikitext2_data.load_text("test")
    test = batches_of(wikitext2_data.windows(encode(text), settings.length, settings.windows))
    if "dense" not in result:
        predicted = sum(batch["input_ids"][:, 1:].numel() for batch in test)
        result["dense"] = {
            "perplexity": slimfast.perplexity(model, test),
            "layers": layer_params(model),
            "tokens": predicted,
        }
        print(f"original {result['dense']['perplexity']:.2f}, {predicted:,} predictions", flush=True)
        _write(path, result)
    valid = wikitext2_data.articles(wikitext2_data.load_text("valid"))
    # The last fifth is left for those who choose between ways.
    calibrating = valid[: math.ceil(0.8 * len(valid))]
    study, of_draw = None, -1
    for draw, name, share in left:
        if study is None or draw != of_draw:
            rows = wikitext2_data.drawn(
                calibrating, encode, settings.calibration, settings.calibration_length, draw
            )
            study, of_draw = (
                Study.of(
                    model,
                    {"input_ids": rows[:1]},
                    batches_of(rows),
                    settings.calibration,
                    budget="params",
                    include=CUT,
                    moments=any(ROWS[name].moments for _, name, _ in left),
                    with_curves=False,
                    memory=MEMORY,
                ),
                draw,
            )
        if ROWS[name].curves and not study.curves:
            # They want a backward pass, which other rows do without.
            study = replace(
                study, curves=error_curves(study.model, study.graph, study.calibration, memory=MEMORY)
            )
        row = measure(name, study, share, draw, test)
        add_row(result, asdict(row), made)
        _write(path, result)
        print(f"{draw} {name:48} {share:g} {row.perplexity:12,.2f}  {row.seconds:.0f} s", flush=True)
    return result


def measure(name: str, study: Study, share: float, draw: int, test: list[dict[str, Tensor]]) -> Measured:
    """One network, cut to a share of its layers' parameters, repaired and run."""
    row, layers = ROWS[name], layer_params(study.model)
    total = sum(p.numel() for p in study.model.parameters())
    started, used = time.perf_counter(), time.process_time()
    thin = thin_decoder(row, study, 1.0 - (1.0 - share) * layers / total)
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    return Measured(
        name=name,
        share=share,
        draw=draw,
        control=row.control,
        repair=row.repair,
        params=layer_params(thin),
        perplexity=slimfast.perplexity(thin, test),
        seconds=round(seconds, 1),
        processor=round(processor, 1),
        peak=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def _write(path: Path, result: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")


def main(
    short: Annotated[bool, typer.Option("--short", help="A few windows, one share, one draw.")] = False,
    draws: Annotated[bool, typer.Option("--draws", help="Few windows, three shares, three draws.")] = False,
    depth: Annotated[bool, typer.Option("--depth", help="One share and draw, with layers dropped.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
) -> None:
    """Cut SmolLM2-135M in every way and measure its perplexity, before any training."""
    if short + draws + depth > 1:
        raise typer.BadParameter("expected one of --short, --draws and --depth, got several")
    smaller = {"-short": (short, SHORT), "-draws": (draws, DRAWS), "-depth": (depth, DEPTH)}
    name = next((name for name, (asked, _) in smaller.items() if asked), "")
    settings = smaller[name][1] if name else FULL
    path = output or ROOT / "benchmarks" / "results" / f"decoder{name}.json"
    output_folder(path.parent)
    started = time.perf_counter()
    run(settings, path)
    if settings is not FULL:
        print(
            f"{name[1:]}: {settings.windows} windows of {settings.length} tokens and "
            f"{len(settings.rows or ROWS)} of {len(ROWS)} ways, to see that it works; the figures are rough"
        )
    print(f"written: {path} ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"decoder: {error}") from None
