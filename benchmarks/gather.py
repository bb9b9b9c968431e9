"""``grouped_gather`` of whole networks at half width."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import cases
from benchmarks.roofline import Roofline
from benchmarks.timing import BOUND, OURS, Case, Row, Run, Target, backend_of
from slimfast.kernels import grouped_gather

OP = "gather"
COLUMNS = {"cpu": ("torch", "best", BOUND), "gpu": ("torch", "best", BOUND)}

# "large": the tensors whose thin copies are at least this big, where bandwidth decides.
LARGE_BYTES = 1 << 20
_CPU: dict[tuple[str, bool], tuple[Target, ...]] = {
    ("ResNet-50", False): (Target("torch", 4.0),),
    ("ResNet-50", True): (Target(BOUND, 0.7),),
    ("MobileNetV3-L", False): (),
    ("ViT-B", False): (),
}
_GPU: dict[tuple[str, bool], tuple[Target, ...]] = {
    ("ResNet-50", False): (Target("torch", 20.0),),
    ("ConvNeXt-L", False): (),
    ("ViT-L", False): (),
    (cases.DECODER, False): (Target(BOUND, 0.8),),
}


def rows(suite: str) -> tuple[Row, ...]:
    """One row for each network."""
    listed, quick = (_CPU, "MobileNetV3-L") if suite == "cpu" else (_GPU, "ResNet-50")
    return tuple(
        Row(f"{name}, large tensors" if large else name, (name, large), targets, quick=name == quick)
        for (name, large), targets in listed.items()
    )


def case(row: Row, device: str, roofline: Roofline) -> Case:
    """Plain: one ``index_select`` a dim. Best: one index of both dims, so one pass over the tensor."""
    name, large = row.parameters
    tensors, keeps = cases.tensors(cases.network(name), device)
    if large:
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
        OURS: lambda: grouped_gather(tensors, keeps),
        "torch": lambda: [_by_index_select(t, keep) for t, keep in pairs],
        "best": lambda: [_by_one_index(t, keep) for t, keep in pairs],
    }
    exact = [_by_index_select(t, keep) for t, keep in pairs]
    thin = sum(t.nbytes for t in exact)
    return Case(
        variants,
        error=lambda thins: float(not all(map(torch.equal, thins, exact))),
        limit=0.0,
        # Each kept element is read once and written once; what else a cache line brings is waste.
        bound=roofline.copy_seconds(2 * thin),
        facts={"thin bytes": thin, "tensors": len(tensors)} | backend_of("gather", tensors),
    )


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
