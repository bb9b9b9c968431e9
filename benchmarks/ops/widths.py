"""k(tau) of real layers against float64 LAPACK: ``python -m benchmarks.ops.widths FILE ...``.

Every file of weights (``.pth``, ``.safetensors``, an index of shards) is measured in float32, its widths at
4001 shares between 0.3 and 0.9999 are compared with those of float64 LAPACK on the float64 covariance, once
as float32 gives them and once after the second look that :func:`slimfast.measure_spectra` takes where
float32 does not settle one. Written to ``results/widths.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.markdown import Table
from benchmarks.stamp import ROOT, stamp
from slimfast.spectra import Spectrum, measure_spectra
from slimfast.storage.atomic import atomic_path
from slimfast.storage.weights import read_tensors

TAUS = np.linspace(0.3, 0.9999, 4001)
RESULT = ROOT / "benchmarks" / "results" / "widths.json"


def lapack_ratio(weight: torch.Tensor) -> NDArray[np.float64]:
    """F(1), F(2), ... of a weight by LAPACK in float64, on the smaller side."""
    x = weight.flatten(1).double().numpy()
    x = x - x.mean(1, keepdims=True)
    values = np.maximum(np.linalg.eigvalsh(x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x)[::-1], 0.0)
    ratio: NDArray[np.float64] = np.cumsum(values) / values.sum()
    return ratio


def compare(path: Path) -> dict[str, Any]:
    """How many (layer, tau) pairs of one file are wrong, unsettled and wrong after the second look."""
    tensors = {k: t for k, t in read_tensors(path).items() if t.is_floating_point() and t.ndim >= 2}
    first = measure_spectra(tensors, dtype=torch.float32)
    both = measure_spectra(tensors, taus=tuple(TAUS))
    found = {"layers": len(tensors), "pairs": len(tensors) * len(TAUS)}
    counts = {"wrong in float32": 0, "wrong and settled": 0, "unsettled": 0, "wrong at last": 0}
    for name, weight in tensors.items():
        exact = np.searchsorted(lapack_ratio(weight), TAUS) + 1
        wrong = _widths(first[name]) != exact
        settled = np.array([first[name].certified(explained_variance=tau) for tau in TAUS])
        counts["wrong in float32"] += int(wrong.sum())
        counts["wrong and settled"] += int((wrong & settled).sum())
        counts["unsettled"] += int((~settled).sum())
        counts["wrong at last"] += int((_widths(both[name]) != exact).sum())
    return found | counts


def _widths(spectrum: Spectrum) -> NDArray[np.int64]:
    return np.array([spectrum.width(explained_variance=tau) for tau in TAUS])


def table(result: Mapping[str, Any]) -> str:
    """One line a file, and what the columns are."""
    lines = [
        "| weights | layers | pairs | wrong in float32 | second looks | wrong after them |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result.get("files", {}).items():
        share = row["unsettled"] / row["pairs"]
        lines.append(
            f"| {name} | {row['layers']} | {row['pairs']:,} | {row['wrong in float32']:,} | {share:.2%} | "
            f"{row['wrong at last']} |"
        )
    if len(lines) == 2:
        return "not measured\n"
    return "\n".join(lines) + "\n"


TABLES = (Table("widths-real", ("widths.json",), table),)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the files named and writes the result, which keeps the files measured before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops.widths", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"files": {}}
    for path in options.files:
        result["files"][path.stem] = compare(path)
        print(path.stem, result["files"][path.stem], flush=True)
    result["stamp"] = stamp("cpu")
    with atomic_path(RESULT) as temporary:
        Path(temporary).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
