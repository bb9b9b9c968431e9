"""Functions that a backend may have because it does them faster; here is what the others get instead."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor


def joint_covariance(
    module: ModuleType, layers: list[list[Tensor]], rows: list[bool], dtypes: list[torch.dtype]
) -> tuple[list[Tensor], Tensor]:
    """Return covariances of layers of members; one member after another where the backend takes one at a
    time.
    """
    found: tuple[list[Tensor], Tensor]
    if all(len(members) == 1 for members in layers):
        found = module.covariance([x for (x,) in layers], rows, dtypes)
        return found
    if hasattr(module, "joint_covariance"):
        found = module.joint_covariance(layers, rows, dtypes)
        return found
    matrices: list[Tensor] = [torch.empty(0, device="cpu")] * len(layers)
    traces: list[Tensor] = list(matrices)
    # One turn's matrices beside the sums are all that is alive.
    for turn in range(max(len(members) for members in layers)):
        left = [i for i, members in enumerate(layers) if len(members) > turn]
        terms, term_traces = module.covariance(
            [layers[i][turn] for i in left], [rows[i] for i in left], [dtypes[i] for i in left]
        )
        for i, term, trace in zip(left, terms, term_traces.unbind(), strict=True):
            d = sum(x.shape[1] for x in layers[i])
            share = max(layers[i][turn].shape[1] - 1, 1) / max(d - 1, 1)
            matrices[i] = term.mul_(share) if turn == 0 else matrices[i].add_(term, alpha=share)
            traces[i] = trace * share if turn == 0 else traces[i] + trace * share
    return matrices, torch.stack(traces)


def eigvalsh_stacked(module: ModuleType, mats: Tensor) -> Tensor:
    """Return the eigenvalues (b, m) of a stack (b, m, m); one matrix after another where the backend takes
    lists.
    """
    if hasattr(module, "eigvalsh_stacked"):
        values: Tensor = module.eigvalsh_stacked(mats)
        return values
    return torch.stack(module.eigvalsh(list(mats)))
