"""``grouped_gather`` of whole networks at half width."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.ops import cases
from benchmarks.roofline import Roofline
from benchmarks.timing import BOUND, OURS, Case, Row, Run, Target, backend_of
from slimfast.kernels import grouped_gather, prepare_gather

OP = "gather"
COLUMNS = {"cpu": ("torch", "best", BOUND), "gpu": ("torch", "best", "cuda", "triton", BOUND)}

# "large": the tensors whose thin copies are at least this big, where bandwidth decides.
LARGE_BYTES = 1 << 20
# "made ready": only the launch, as a graph repeats it, into the same results.
LARGE, READY = "large tensors", "made ready"
_CPU: dict[tuple[str, str], tuple[Target, ...]] = {
    ("ResNet-50", ""): (Target("torch", 4.0),),
    ("ResNet-50", LARGE): (Target(BOUND, 0.7),),
    ("MobileNetV3-L", ""): (),
    ("ViT-B", ""): (),
}
_GPU: dict[tuple[str, str], tuple[Target, ...]] = {
    ("ResNet-50", ""): (Target("torch", 20.0),),
    ("ResNet-50", READY): (Target("torch", 20.0),),
    ("ConvNeXt-L", ""): (),
    ("ViT-L", ""): (),
    (cases.DECODER, ""): (Target(BOUND, 0.8),),
    (cases.DECODER, READY): (Target(BOUND, 0.8),),
}
# Memory is read so many bytes at a time: a GPU's sectors, a CPU's cache lines.
SECTORS = {"cuda": 32, "cpu": 64}


def rows(suite: str) -> tuple[Row, ...]:
    """One row for each network."""
    listed, quick = (_CPU, "MobileNetV3-L") if suite == "cpu" else (_GPU, "ResNet-50")
    return tuple(
        Row(f"{name}, {what}" if what else name, (name, what), targets, quick=name == quick)
        for (name, what), targets in listed.items()
    )


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """Plain: one ``index_select`` a dim. Best: one index of both dims, so one pass over the tensor."""
    name, what = row.parameters
    tensors, keeps = cases.tensors(cases.network(name), device)
    if what == LARGE:
        chosen = [
            i
            for i, (t, keep) in enumerate(zip(tensors, keeps, strict=True))
            if _thin_bytes(t, keep) >= LARGE_BYTES
        ]
        tensors, keeps = [tensors[i] for i in chosen], [keeps[i] for i in chosen]
    moved = {id(index): index.to(device) for keep in keeps for index in keep.values()}
    on_device = [{dim: moved[id(index)] for dim, index in keep.items()} for keep in keeps]
    pairs = list(zip(tensors, on_device, strict=True))
    variants: dict[str, Run | str] = {
        OURS: _ours(tensors, keeps, "auto", what),
        "torch": lambda: [_by_index_select(t, keep) for t, keep in pairs],
        "best": lambda: [_by_one_index(t, keep) for t, keep in pairs],
    }
    if device == "cuda":
        variants |= {name: _ours(tensors, keeps, name, what) for name in ("cuda", "triton")}
    exact = [_by_index_select(t, keep) for t, keep in pairs]
    thin = sum(t.nbytes for t in exact)
    read = sum(_sector_bytes(t, keep, SECTORS[device]) for t, keep in zip(tensors, keeps, strict=True))
    return Case(
        variants,
        error=lambda thins: float(not all(map(torch.equal, thins, exact))),
        limit=0.0,
        bound=roofline.copy_seconds(read + thin),
        facts={"thin bytes": thin, "bytes read": read, "tensors": len(tensors)}
        | backend_of("gather", tensors),
    )


def _ours(tensors: list[Tensor], keeps: list[dict[int, Tensor]], backend: str, what: str) -> Run:
    if what != READY:
        return lambda: grouped_gather(tensors, keeps, backend=backend)
    # At the first run, which is looked at and not timed.
    ready = functools.cache(lambda: prepare_gather(tensors, keeps, backend=backend))

    def launch() -> list[Tensor]:
        call = ready()
        call.launch()
        return call.results

    return launch


def _sector_bytes(tensor: Tensor, keep: dict[int, Tensor], sector: int) -> int:
    """Bytes of the sectors that hold a kept element, in a contiguous tensor that begins at one."""
    if tensor.ndim == 1:
        tensor, keep = tensor[None], {dim + 1: index for dim, index in keep.items()}
    row_bytes = tensor.element_size() * tensor[0].numel()
    rows, alike = keep.get(0, torch.arange(tensor.shape[0])), 1
    if row_bytes % sector == 0:
        rows, alike = torch.zeros(1, dtype=torch.int64), len(rows)
    run = row_bytes // tensor.shape[1] if 1 in keep else row_bytes
    first = (rows[:, None] * row_bytes + run * keep.get(1, torch.zeros(1, dtype=torch.int64))).flatten()
    last = first + run - 1
    # +1 where a run's first sector begins, -1 behind its last.
    edges = torch.zeros(tensor.nbytes // sector + 2, dtype=torch.int64)
    edges.index_add_(0, first // sector, torch.ones_like(first))
    edges.index_add_(0, last // sector + 1, -torch.ones_like(first))
    return alike * int((edges.cumsum(0) > 0).sum()) * sector


def _thin_bytes(tensor: Tensor, keep: dict[int, Tensor]) -> float:
    size = float(tensor.nbytes)
    for dim, index in keep.items():
        size *= len(index) / tensor.shape[dim]
    return size


def _by_index_select(tensor: Tensor, keep: dict[int, Tensor]) -> Tensor:
    for dim, index in keep.items():
        tensor = tensor.index_select(dim, index)
    return tensor


def _by_one_index(tensor: Tensor, keep: dict[int, Tensor]) -> Tensor:
    if set(keep) == {0, 1}:
        return tensor[keep[0][:, None], keep[1]]
    return _by_index_select(tensor, keep)
