"""CIFAR-10 (Krizhevsky 2009) in memory: read, checked, normalised and augmented. Nothing is written.

Read from the folder ``SLIMFAST_DATA``, by default ``../shared/data`` beside the repository, in one of two
forms:

- ``cifar10/``: lossless mosaics ``cifar10_{train,test}_NN.webp`` of 25 rows of 40 tiles of 32 x 32 RGB, row
by
  row, labels in ``cifar10_{train,test}_labels.npy``, checksums of the decoded arrays in the manifest;
- ``cifar-10-batches-bin/``: the data set's own binary version, records of a label byte and 3072 pixel bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.accuracy.networks.resnet_cifar import MEAN, STD
from benchmarks.stamp import ROOT
from slimfast.errors import SlimfastError

Bytes: TypeAlias = NDArray[np.uint8]

ROWS, COLUMNS, SIDE = 25, 40, 32
PADDING = 4
"""Pixels of zeros around an image before a random crop, as in He et al. 2016, section 4.2."""


def data_folder() -> Path:
    """``SLIMFAST_DATA``, or ``shared/data`` beside the repository."""
    beside = ROOT.parent / "shared" / "data"
    return Path(os.environ.get("SLIMFAST_DATA", beside))


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """N images: ``pixels`` uint8 (N, 3, 32, 32) and ``labels`` int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, span: slice) -> Images:
        return Images(self.pixels[span], self.labels[span])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Normalised batches in order, for evaluation: float32 (n, 3, 32, 32) with labels (n,)."""
        spans = range(0, len(self), size)
        return [(normalised(self.pixels[i : i + size]), self.labels[i : i + size]) for i in spans]


def load_split(split: Literal["train", "test"], *, folder: Path | None = None) -> Images:
    """All images of a split. In the mosaics every 1000 images hold 100 of each class, in no meaningful order.

    Raises:
        SlimfastError: a file is missing, damaged or not what the manifest says.
    """
    folder = data_folder() if folder is None else folder
    if (folder / "cifar10").is_dir():
        nhwc, labels = _read_mosaics(folder / "cifar10", split)
        return Images(_tensor(nhwc.transpose(0, 3, 1, 2)), _tensor(labels).long())
    if (folder / "cifar-10-batches-bin").is_dir():
        nchw, labels = _read_binary(folder / "cifar-10-batches-bin", split)
        return Images(_tensor(nchw), _tensor(labels).long())
    raise SlimfastError(
        f"no cifar10 or cifar-10-batches-bin in {folder}: set SLIMFAST_DATA to the folder with one"
    )


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) as float32 with the means and deviations that the public ResNets were trained on."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


class AugmentedBatches:
    """Shuffled training batches: each image flipped with chance 1/2 and cropped at random from a padded copy.

    A new order and new crops at each pass, from torch's global generator. The incomplete last batch is left
    out.
    """

    def __init__(self, images: Images, size: int) -> None:
        self._images = images
        self._size = size

    def __len__(self) -> int:
        return len(self._images) // self._size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._images))
        for step in range(len(self)):
            chosen = order[step * self._size : (step + 1) * self._size]
            pixels = augmented(normalised(self._images.pixels[chosen]))
            yield pixels.contiguous(memory_format=torch.channels_last), self._images.labels[chosen]


def augmented(images: Tensor) -> Tensor:
    """Each of (N, C, H, W) mirrored or not and shifted by up to ``PADDING`` pixels, zeros coming in."""
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    top, left = torch.randint(2 * PADDING + 1, (2, n))
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns) + left[:, None]
    rows = torch.arange(height).expand(n, height) + top[:, None]
    image = torch.arange(n)[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _tensor(array: Bytes) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _read_mosaics(folder: Path, split: str) -> tuple[Bytes, Bytes]:
    """Pixels (N, 32, 32, 3) and labels (N,)."""
    path = folder / "cifar10_manifest.json"
    try:
        entry = json.loads(path.read_text())[split]
        total, pixel_sum, label_sum = int(entry["n"]), entry["sha256_uint8_nhwc"], entry["sha256_labels"]
        mosaics = range(total // (ROWS * COLUMNS))
        pixels = np.concatenate([_read_mosaic(folder / f"cifar10_{split}_{i:02d}.webp") for i in mosaics])
        labels: Bytes = np.load(folder / f"cifar10_{split}_labels.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SlimfastError(f"cannot read CIFAR-10 from {folder}: {type(error).__name__}: {error}") from error
    for what, array, expected in (("images", pixels, pixel_sum), ("labels", labels, label_sum)):
        found = hashlib.sha256(array.tobytes()).hexdigest()
        if found != expected:
            raise SlimfastError(
                f"{folder}: the {split} {what} have sha256 {found}, the manifest says {expected}"
            )
    return pixels, labels


def _read_mosaic(path: Path) -> Bytes:
    """The tiles of one mosaic, (1000, 32, 32, 3)."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    tiles = pixels.reshape(ROWS, SIDE, COLUMNS, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(tiles.reshape(ROWS * COLUMNS, SIDE, SIDE, 3))


def _read_binary(folder: Path, split: str) -> tuple[Bytes, Bytes]:
    """Pixels (N, 3, 32, 32) and labels (N,)."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    try:
        records = np.concatenate([np.fromfile(folder / name, np.uint8).reshape(-1, 3073) for name in names])
    except (OSError, ValueError) as error:
        raise SlimfastError(f"cannot read CIFAR-10 from {folder}: {error}") from error
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), records[:, 0]
