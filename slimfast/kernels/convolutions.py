"""What a convolution reads: the shape of its patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Convolution(NamedTuple):
    """How a convolution of one to three spatial dims lays its patches, padded with zeros.

    All but ``groups`` have a number for each spatial dim, as those of :class:`torch.nn.Conv2d` have.

    Example:
        slimfast.Convolution(kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=1)
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def taps(self) -> int:
        """The positions of a patch, over all spatial dims."""
        return math.prod(self.kernel)

    def outputs(self, sizes: Sequence[int]) -> list[int]:
        """Count the patches along each spatial dim of an input of these ``sizes``."""
        return [
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(sizes, *self[:4], strict=True)
        ]
