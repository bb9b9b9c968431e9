"""``grouped_spectra`` of all layers of a network: widths for a whole backbone, and the memory they take.

``python -m benchmarks.ops.spectra NAME`` prints the peak memory of one call above the weights, in bytes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops import cases, cusolver
from benchmarks.roofline import Roofline, covariance_flops, eigvalsh_flops
from benchmarks.stamp import ROOT
from benchmarks.timing import BOUND, OURS, PEAK, Case, Row, Run, Target, backend_of, synchronize
from slimfast.kernels import SpectraValues, grouped_spectra

OP = "spectra"
COLUMNS = {"cpu": ("torch", "best", BOUND, PEAK), "gpu": ("torch", "best", "cusolver", BOUND, PEAK)}

_CPU = ("VGG-16", "ResNet-50", "MobileNetV3-L", "ViT-B", "ConvNeXt-T")
_GPU = ("ResNet-50", "ConvNeXt-L", "ViT-L", "Swin-L")
# Layers above this are compared with float64 by the sum of their eigenvalues alone: the rest takes minutes.
MOST_EXACT = 2048
LIMIT = 1e-4
DECODER_DEPTH = 32


def rows(suite: str) -> tuple[Row, ...]:
    """One row for each network."""
    if suite == "cpu":
        targets: tuple[Target, ...] = (Target("torch", 10.0), Target("best", 4.0))
        return tuple(Row(name, (name,), targets, quick="Mobile" in name) for name in _CPU)
    targets = (Target("torch", 50.0), Target("best", 5.0), Target("cusolver", 5.0))
    found = [Row(name, (name,), targets, quick="ResNet" in name) for name in _GPU]
    return (*found, Row(cases.DECODER, (cases.DECODER,), (Target("torch", 8.0, seconds=10.0),)))


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """Plain: ``torch.cov`` and ``eigvalsh`` a layer. Best: the smaller side, equal sizes in one stack.

    On a GPU, where the plain loop takes minutes, it gets one layer of every shape, and what share that is of
    its whole work is measured first; of the decoder's blocks, which are alike, all others get one.
    """
    (name,) = row.parameters
    net = cases.network(name, blocks=DECODER_DEPTH)
    xs = cases.matrices(net, device)
    of_all = range(len(xs) // DECODER_DEPTH) if name == cases.DECODER else range(len(xs))
    first = {xs[i].shape: i for i in reversed(of_all)}
    counts = Counter(x.shape for x in xs)
    alone = sorted(first.values()) if device == "cuda" else list(of_all)
    exact = {i: _exact(xs[i]) for i in alone}

    def plain() -> dict[int, Tensor]:
        return {i: _plain(xs[i]) for i in alone}

    def stacked(eigvalsh: Callable[[Tensor], Tensor]) -> Run:
        return lambda: dict(enumerate(_stacked([xs[i] for i in of_all], eigvalsh)))

    variants: dict[str, Run | str] = {
        OURS: lambda: grouped_spectra(xs),
        "torch": plain,
        "best": stacked(torch.linalg.eigvalsh),
        "cusolver": cusolver.why_not() or stacked(cusolver.eigvalsh),
    }
    share = len(of_all) / len(xs)
    shares = {"torch": share, "best": share, "cusolver": share}
    if len(alone) < len(of_all):
        seconds = {i: _seconds(xs[i]) for i in alone}
        shares["torch"] = sum(seconds.values()) / sum(t * counts[xs[i].shape] for i, t in seconds.items())
    sizes = [(min(x.shape), max(x.shape)) for x in xs]
    bound = roofline.product_seconds(covariance_flops(sizes), net.dtype)
    bound += roofline.product_seconds(eigvalsh_flops([m for m, _ in sizes]), torch.float32)
    return Case(
        variants,
        error=lambda values: _error(values, exact),
        limit=LIMIT,
        bound=bound,
        share=shares,
        facts={"layers": len(xs), "weights": sum(x.numel() for x in xs)}
        | backend_of("eigvalsh", xs)
        | _peak(name, xs, device),
    )


def _plain(x: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(torch.cov(x.float()))


def _seconds(x: Tensor) -> float:
    """Of the plain way with one layer, once it is warm."""
    for _ in range(2):
        synchronize()
        start = time.perf_counter()
        _plain(x)
        synchronize()
    return time.perf_counter() - start


def _exact(x: Tensor) -> Tensor:
    """(m,) float64 eigenvalues, ascending; (1,) their sum for a layer too large for that."""
    wide = x.double()
    centred = wide - wide.mean(1, keepdim=True)
    if min(x.shape) > MOST_EXACT:
        return (centred.square().sum() / (x.shape[1] - 1)).cpu().reshape(1)
    return torch.linalg.eigvalsh(_gram(centred)).cpu()


def _gram(centred: Tensor) -> Tensor:
    n, d = centred.shape[-2:]
    left = centred if n <= d else centred.mT
    return left @ left.mT / (d - 1)


def _stacked(xs: Sequence[Tensor], eigvalsh: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Products of equal shapes in one stack, then eigenvalues of equal sizes in one stack."""
    shapes = defaultdict(list)
    for i, x in enumerate(xs):
        shapes[x.shape].append(i)
    sizes = defaultdict(list)
    for members in shapes.values():
        stack = torch.stack([xs[i] for i in members]).float()
        grams = _gram(stack - stack.mean(-1, keepdim=True))
        sizes[grams.shape[-1]].append((members, grams))
    values: list[Tensor] = [torch.empty(0)] * len(xs)
    for parts in sizes.values():
        found = eigvalsh(torch.cat([grams for _, grams in parts]))
        for i, value in zip((i for members, _ in parts for i in members), found, strict=True):
            values[i] = value
    return values


def _error(found: SpectraValues | Mapping[int, Tensor], exact: Mapping[int, Tensor]) -> float:
    """Largest over the layers compared of max |difference| / largest eigenvalue, or of the sums."""
    values = found.eigenvalues if isinstance(found, SpectraValues) else found
    worst = 0.0
    for i, target in exact.items():
        wide = values[i].double().cpu()
        if len(target) == 1:
            wide = wide.sum().reshape(1)
        # A full-sized result has its zeros first.
        worst = max(worst, float((wide[-len(target) :] - target).abs().max() / target.abs().max()))
    return worst


def _peak(name: str, xs: Sequence[Tensor], device: str) -> dict[str, Any]:
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        grouped_spectra(xs)
        return {PEAK: torch.cuda.max_memory_allocated() - before}
    command = [sys.executable, "-m", "benchmarks.ops.spectra", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {PEAK: int(done.stdout)}


def peak_bytes(name: str) -> int:
    """What one call takes above the weights at its peak, on the CPU, in a process that does nothing else."""
    xs = cases.matrices(cases.network(name))
    # Threads and buffers that live as long as the process are not the call's.
    grouped_spectra([x[:8, :8] for x in xs[:2]])
    before = high_water(reset=True)
    grouped_spectra(xs)
    return high_water() - before


def high_water(*, reset: bool = False) -> int:
    """The largest resident size so far in bytes, on Linux since the last reset."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    print(peak_bytes(sys.argv[1]))
