"""Tensors of every layout and element size, and what is kept of each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def gather_cases() -> list[tuple[Tensor, Mapping[int, Tensor]]]:
    """(tensor, what is kept of which dim) for a gather."""

    def keep(size: int, every: int, start: int = 0) -> Tensor:
        return torch.arange(start, size, every)

    conv = torch.arange(64 * 32 * 9, dtype=torch.float32).view(64, 32, 3, 3)
    deep = torch.arange(2 * 3 * 4 * 5 * 6 * 7).view(2, 3, 4, 5, 6, 7)
    wide = torch.arange(7 * 4096, dtype=torch.int16).view(7, 4096)
    found: list[tuple[Tensor, Mapping[int, Tensor]]] = [
        (conv, {0: keep(64, 3), 1: keep(32, 2, 1)}),
        (conv, {0: keep(64, 5)}),
        (conv, {1: keep(32, 7)}),
        (conv, {}),
        (conv.to(memory_format=torch.channels_last), {0: keep(64, 3), 1: keep(32, 2)}),
        (conv.transpose(0, 1), {0: keep(32, 3), 1: keep(64, 4)}),
        (conv[1:, 1:, 1:, 1:], {0: keep(63, 2)}),
        (deep, {1: keep(3, 2), 4: keep(6, 2, 1)}),
        (deep.permute(5, 3, 1, 0, 2, 4), {2: keep(3, 2)}),
        (deep.permute(4, 0, 5, 2, 1, 3)[::2, :, 1:], {}),
        (deep, {5: keep(7, 3), 0: keep(2, 1)}),
        (wide, {0: keep(7, 2), 1: keep(4096, 3)}),
        (wide.to(torch.int8), {1: keep(4096, 5, 2)}),
        (wide[:, 1:], {0: keep(7, 3)}),
        (wide.bfloat16(), {0: torch.tensor([6])}),
        (wide.double(), {1: keep(4096, 2)}),
        (wide.to(torch.complex64), {0: keep(7, 2)}),
        (wide > 5, {1: keep(4096, 9)}),
        (torch.tensor(3.5), {}),
        (torch.arange(10.0), {0: torch.tensor([0, 9])}),
        (torch.arange(10.0), {0: torch.empty(0, dtype=torch.int64)}),
        (torch.empty(0, 4), {1: keep(4, 2)}),
        (torch.ones(3, 1).expand(3, 100), {0: keep(3, 2)}),
    ]
    return found
