"""The grouped ops beside plain PyTorch on this machine: a quick look, not a benchmark.

Both run in turn inside one process, so that whatever else the machine does falls on both; what is reported
is the median. The results of both are first compared with float64.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimfast.arrays import Progress
from slimfast.errors import ArgumentError
from slimfast.kernels import grouped_covariance, grouped_eigvalsh, grouped_gather, grouped_spectra
from slimfast.kernels.dispatch import select_backend

# The distinct matrices of a ResNet-18: filters, and the weights of each.
RESNET18 = {
    "conv1": (64, 147),
    "layer1": (64, 576),
    "layer2.0": (128, 576),
    "layer2.1": (128, 1152),
    "layer2.downsample": (128, 64),
    "layer3.0": (256, 1152),
    "layer3.1": (256, 2304),
    "layer3.downsample": (256, 128),
    "layer4.0": (512, 2304),
    "layer4.1": (512, 4608),
    "layer4.downsample": (512, 256),
    "fc": (1000, 512),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One op on all layers: median seconds and error against float64, ours and plain PyTorch's.

    Errors are the largest over all layers of max |difference| / max |exact|; 0 for a copy that is exact.
    """

    op: str
    backend: str
    seconds: float
    torch_seconds: float
    error: float
    torch_error: float


def weight_matrices(model: nn.Module) -> dict[str, Tensor]:
    """The weights of at least two units and two positions, as float32 matrices (units, positions)."""
    matrices = {
        name: weight.detach().flatten(1).float()
        for name, weight in model.named_parameters()
        if weight.ndim >= 2 and weight.is_floating_point()
    }
    return {name: x for name, x in matrices.items() if min(x.shape) >= 2}


def random_layers(shapes: Mapping[str, tuple[int, int]], *, seed: int = 0) -> dict[str, Tensor]:
    """Gaussian matrices (units, positions) of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, device="cpu") for name, shape in shapes.items()}


def compare_ops(
    layers: Mapping[str, Tensor],
    *,
    repeats: int = 5,
    backend: str = "auto",
    progress: Progress | None = None,
) -> list[Comparison]:
    """Every op on all layers (n, d) at once, against one PyTorch call per layer; n, d >= 2.

    Pivoted Cholesky is left out: PyTorch has nothing to put beside it. ``progress`` is called with the number
    of ops done and of all. Raises :class:`BackendUnavailable` where ``backend`` cannot run on the device.
    """
    if not layers:
        raise ArgumentError(
            "compare_ops: expected at least one layer of two units and two positions, got none"
        )
    if repeats < 1:
        raise ArgumentError(f"compare_ops: expected at least one repeat, got {repeats}")
    rows = []
    cases = list(_cases(layers, backend))
    for op, ours, plain, exact, inputs in cases:
        chosen = select_backend(op.removesuffix(" + eigvalsh"), inputs, backend).__name__.rpartition(".")[2]
        error, torch_error = _error(ours(), exact), _error(plain(), exact)
        seconds, torch_seconds = _medians(ours, plain, repeats, inputs[0].is_cuda)
        rows.append(Comparison(op, chosen, seconds, torch_seconds, error, torch_error))
        if progress is not None:
            progress(len(rows), len(cases))
    return rows


_Run = Callable[[], Sequence[Tensor]]
_Case = tuple[str, _Run, _Run, list[Tensor], list[Tensor]]


def _cases(layers: Mapping[str, Tensor], backend: str) -> Iterator[_Case]:
    """(op, ours, plain PyTorch, what float64 says, the op's inputs) for every op."""
    names, xs = list(layers), list(layers.values())
    exact = [torch.cov(x.double()) for x in xs]
    yield (
        "covariance",
        lambda: grouped_covariance(xs, side="rows", names=names, backend=backend).matrices,
        lambda: [torch.cov(x) for x in xs],
        exact,
        xs,
    )
    values = [torch.linalg.eigvalsh(matrix) for matrix in exact]
    matrices = [matrix.float() for matrix in exact]
    yield (
        "eigvalsh",
        lambda: grouped_eigvalsh(matrices, names=names, backend=backend),
        lambda: [torch.linalg.eigvalsh(matrix) for matrix in matrices],
        values,
        matrices,
    )
    yield (
        "covariance + eigvalsh",
        lambda: grouped_spectra(xs, names=names, backend=backend).eigenvalues,
        lambda: [torch.linalg.eigvalsh(torch.cov(x))[-min(x.shape) :] for x in xs],
        [value[-min(x.shape) :] for value, x in zip(values, xs, strict=True)],
        xs,
    )
    # Every other unit and position stays: neither one contiguous block nor the whole.
    keeps = [
        {dim: torch.arange(0, length, 2, device="cpu") for dim, length in enumerate(x.shape)} for x in xs
    ]
    on_device = [[index.to(x.device) for index in keep.values()] for x, keep in zip(xs, keeps, strict=True)]
    yield (
        "gather",
        lambda: grouped_gather(xs, keeps, names=names, backend=backend),
        lambda: [x.index_select(0, a).index_select(1, b) for x, (a, b) in zip(xs, on_device, strict=True)],
        [x[::2, ::2].double() for x in xs],
        xs,
    )


def _error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Largest max |difference| / max |exact| of all layers."""
    pairs = zip(results, exact, strict=True)
    return max(float((r.to(e) - e).abs().max() / e.abs().max().clamp_min(1e-300)) for r, e in pairs)


def _medians(ours: _Run, plain: _Run, repeats: int, on_gpu: bool) -> tuple[float, float]:
    """Median seconds of both, run in turn; the comparison of their results has warmed them up."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, seconds in zip((ours, plain), times, strict=True):
            start = time.perf_counter()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
