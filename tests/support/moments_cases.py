"""Inputs for streaming moments, and the moments in more digits and as a PyTorch user forms them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slimfast.kernels import Convolution, Moments
from support import kernels_cases as cases

# (shape, dim of the variables): wide, thin and odd; one variable, one position; what linear layers and
# convolutions read; more positions than are centred together.
SHAPES = (
    *(((1, 1), 0), ((1, 7), 0), ((7, 1), 0), ((33, 70), 0), ((130, 65), 0), ((40, 300), 1), ((5, 9000), 0)),
    *(((64, 5001), 0), ((3, 40, 24), -1), ((2, 1, 50, 36), -1), ((3, 12, 9, 9), 1), ((9, 17, 7, 7), 1)),
    *(((2, 65, 30, 31), 1), ((4, 6, 5, 3, 2), 1), ((5,), 0), ((2, 700, 30, 5), 1), ((6000, 3), 1)),
)

# (shape of x, convolution): padding beyond the kernel, strides, dilation, groups, depthwise, one to three
# dims, a kernel as large as its input.
CONVOLUTIONS = (
    ((2, 3, 9, 8), Convolution((3, 3), (1, 1), (1, 1), (1, 1))),
    ((3, 8, 7, 7), Convolution((3, 3), (2, 2), (1, 1), (1, 1))),
    ((2, 4, 12, 10), Convolution((3, 2), (1, 3), (2, 0), (2, 3))),
    ((2, 12, 14, 14), Convolution((3, 3), (1, 1), (1, 1), (1, 1), 4)),
    ((2, 10, 15, 13), Convolution((3, 3), (1, 1), (1, 1), (1, 1), 10)),
    ((2, 6, 11, 11), Convolution((5, 5), (2, 2), (2, 2), (1, 1), 6)),
    ((1, 5, 4, 4), Convolution((1, 1), (1, 1), (0, 0), (1, 1))),
    ((2, 3, 4, 4), Convolution((4, 4), (4, 4), (0, 0), (1, 1))),
    ((1, 2, 2, 2), Convolution((3, 3), (1, 1), (3, 3), (1, 1))),
    ((4, 6, 40), Convolution((5,), (2,), (2,), (1,))),
    ((2, 4, 5, 6, 7), Convolution((2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2), 2)),
    ((2, 40, 16, 16), Convolution((3, 3), (1, 1), (1, 1), (1, 1))),
)


def columns_of(x: Tensor, dim: int, mask: Tensor | None = None) -> Tensor:
    """(variables, positions that count), a copy in x's dtype."""
    view = x.movedim(dim, 0)
    return view.reshape(len(view), -1) if mask is None else view[:, mask]


def exact_moments(columns: Tensor) -> Moments:
    """Of (..., L, s) in extended precision."""
    wide = columns.double().numpy().astype(np.longdouble)
    mean = wide.sum(-1) / max(columns.shape[-1], 1)
    centred = wide - mean[..., None]
    squares = centred @ np.swapaxes(centred, -1, -2)
    found = (torch.from_numpy(np.asarray(part).astype(np.float64)) for part in (mean, squares))
    return Moments(columns.shape[-1], *found)


def plain_squares(columns: Tensor) -> Tensor:
    """What a PyTorch user writes, in the columns' own dtype."""
    centred = columns - columns.mean(-1, keepdim=True)
    return centred @ centred.mT


def assert_accurate(found: Moments, columns: Tensor) -> None:
    """The squares are as good as PyTorch's in the dtype of ``columns`` (..., L, s); the mean is float64."""
    exact = exact_moments(columns)
    assert found.count == exact.count
    plain = plain_squares(columns).reshape(exact.squares.shape)
    cases.assert_as_accurate_as_torch(found.squares.to(columns.dtype), plain, exact.squares)
    size = columns.double().abs().max() if columns.numel() else 0.0
    assert (found.mean - exact.mean).abs().max() <= 4 * torch.finfo(torch.float64).eps * size
    assert torch.equal(found.squares, found.squares.mT)


def patches_of(x: Tensor, conv: Convolution) -> Tensor:
    """(groups, variables of a group, positions), by PyTorch's own convolution with one-hot kernels."""
    spatial = x.ndim - 2
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[spatial - 1]
    one_hot = torch.eye(conv.taps, dtype=x.dtype).reshape(conv.taps, 1, *conv.kernel)
    channels = x.shape[1]
    patches = convolve(
        x,
        one_hot.repeat(channels, *([1] * (spatial + 1))),
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=channels,
    )
    return patches.movedim(0, 2).reshape(conv.groups, channels // conv.groups * conv.taps, -1)
