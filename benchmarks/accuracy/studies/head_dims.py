"""Head dims of MiniLM, rotated or as they are: ``python -m benchmarks.accuracy.studies.head_dims``.

Every head of ``all-MiniLM-L6-v2`` keeps as many of its 32 dims as every other one; heads and MLP stay whole.
The dims are chosen from the network as it is, or are the first ones of one whose heads were rotated
(:func:`slimfast.rotate_heads`), with the same calibration and the same repair. Nothing is trained, and
nothing is tuned on the test split. Spearman's rank correlation of cosines and scores on it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from benchmarks.accuracy.data.stsb_data import load_encoder, model_folder, similarity
from benchmarks.accuracy.studies import allocations
from benchmarks.accuracy.studies.minilm import FULL, Data, encoder_params
from benchmarks.accuracy.studies.study import Study
from benchmarks.stamp import ROOT, add_row, stamp
from slimfast.errors import SlimfastError
from slimfast.pruning import rotate_heads
from slimfast.pruning.prune import prune_channels
from slimfast.storage.atomic import atomic_path, output_folder

DIMS = 32
WIDTHS = (16,)
"""Dims of each head that stay."""
SAMPLES = 128
"""Sentences that calibrate."""
WAYS = ("rotated", "lookahead", "activations", "rotated without data")


@dataclass(frozen=True, slots=True)
class Row:
    """One network: how its dims were chosen, what solved for the layers behind them, and its correlations."""

    way: str
    width: int
    repair: str | None
    encoder: int
    test: float


def prepared(teacher: nn.Module, way: str, study: Study) -> tuple[nn.Module, str]:
    """The network that is cut, and the method that chooses: for a rotated one the first dims, whatever it
    says.
    """
    if way == "rotated":
        example = dict(study.calibration.batches[0][1])
        return rotate_heads(teacher, example, calibration=study.calibration), "lookahead"
    if way == "rotated without data":
        return rotate_heads(teacher, dict(study.calibration.batches[0][1])), "lookahead"
    return teacher, way


def run(path: Path) -> dict[str, Any]:
    """All rows that ``path`` has not."""
    settings = {"widths": list(WIDTHS), "calibration": SAMPLES, "length": FULL.length}
    result: dict[str, Any] = {"benchmark": "head_dims", "settings": settings, "rows": []}
    if path.exists():
        result = json.loads(path.read_text())
        if result["settings"] != settings:
            raise SlimfastError(f"{path} has results of other settings: {result['settings']}")
    done = {(row["way"], row["width"], row["repair"]) for row in result["rows"]}
    made = stamp("cpu")
    result.setdefault("stamp", made)
    folder = model_folder()
    data = Data.load(folder, FULL)
    teacher = load_encoder(folder)
    if "dense" not in result:
        test = similarity(teacher, data.test, data.tokenizer)
        result["dense"] = {"test": test, "encoder": encoder_params(teacher)}
    batches = data.calibration(FULL)[: SAMPLES // 64]

    def studied(model: nn.Module) -> Study:
        return Study.of(
            model, batches[0], batches, SAMPLES, budget="params", include=("head_dim",), with_curves=False
        )

    dense = studied(teacher)
    for way in WAYS:
        wanted = [(width, repair) for width in WIDTHS for repair in (None, "activations")]
        if all((way, *each) in done for each in wanted):
            continue
        model, select = prepared(teacher, way, dense)
        study = dense if model is teacher else studied(model)
        for width, repair in wanted:
            if (way, width, repair) in done:
                continue
            options: dict[str, Any] = {"select": select, "repair": repair, "calibration": study.calibration}
            thin = prune_channels(model, _plan(study, width), verify=False, **options)
            test = similarity(thin.eval(), data.test, data.tokenizer)
            row = Row(way, width, repair, encoder_params(thin), test)
            add_row(result, asdict(row), made)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{way:21} {width} {repair!s:12} {100 * test:6.2f}", flush=True)
    return result


def _plan(study: Study, width: int) -> Any:
    """The plan in which every head keeps ``width`` dims."""
    attention = sum(tensor.numel() for name, tensor in study.model.named_parameters() if _is_of_heads(name))
    total = sum(tensor.numel() for tensor in study.model.parameters())
    found = allocations.uniform(study, 1 - (1 - width / DIMS) * attention / total)
    if any(group.width != width for group in found.groups if group.kind == "head_dim"):
        widths = [group.width for group in found.groups if group.kind == "head_dim"]
        raise SlimfastError(f"expected {width} dims of every head, got {widths}")
    return found


def _is_of_heads(name: str) -> bool:
    """Whether a parameter has head dims along it: all of attention but the output's bias and the norm."""
    return ".attention.self." in name or name.endswith("attention.output.dense.weight")


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
) -> None:
    """Cut MiniLM's head dims as they are and rotated, and compare."""
    path = output or ROOT / "benchmarks" / "results" / "head-dims.json"
    output_folder(path.parent)
    started = time.perf_counter()
    run(path)
    print(f"written: {path} ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SlimfastError as error:
        raise SystemExit(f"head_dims: {error}") from None
