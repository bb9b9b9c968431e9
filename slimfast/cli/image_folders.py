"""Folders of images: by class, with splits or without, or unlabelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slimfast.errors import SlimfastError, did_you_mean

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_SIZE = 224
# The statistics of ImageNet's training images, which the libraries' weights expect.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ARGUMENTS = ("size", "mean", "std", "flip", "channels")


class Images(Dataset[Any]):
    """Images as normalised tensors (channels, size, size), with their class where they have one.

    The shorter side is resized to ``size`` and the middle cut out; with ``flip`` each is mirrored by chance.
    """

    def __init__(self, files: Sequence[tuple[Path, int | None]], how: Mapping[str, Any]) -> None:
        self.files = list(files)
        self._size, self._flip, self._channels = how["size"], how["flip"], how["channels"]
        self._mean = torch.tensor(how["mean"], dtype=torch.float32, device="cpu")[
            : how["channels"], None, None
        ]
        self._std = torch.tensor(how["std"], dtype=torch.float32, device="cpu")[: how["channels"], None, None]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        path, label = self.files[i]
        image = self._read(path)
        if self._flip and torch.rand((), device="cpu") < 0.5:
            image = image.flip(-1)
        return image if label is None else (image, label)

    def _read(self, path: Path) -> Tensor:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB" if self._channels == 3 else "L")
        except (OSError, UnidentifiedImageError) as error:
            raise SlimfastError(f"data: cannot read the image {path}: {error}") from None
        scale = self._size / min(image.size)
        wide, high = (max(self._size, round(length * scale)) for length in image.size)
        left, top = (wide - self._size) // 2, (high - self._size) // 2
        # What is outside the middle is not resized.
        box = (left / scale, top / scale, (left + self._size) / scale, (top + self._size) / scale)
        image = image.resize(
            (self._size, self._size), Image.Resampling.BILINEAR, box=_inside(box, image.size)
        )
        pixels = torch.from_numpy(np.array(image, dtype=np.float32))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return (pixels / 255 - self._mean) / self._std


def open_folder(
    folder: Path, arguments: Mapping[str, Any], train: Sequence[str], evaluate: Sequence[str]
) -> tuple[Images, Images | None]:
    """Open a folder of images: those to train on, and those of its evaluation split, if it has one.

    Its own folders are splits, which hold one folder a class each, or the classes; images right inside have
    no class.
    """
    for name in arguments:
        if name not in _ARGUMENTS:
            raise SlimfastError(
                f"data {folder}: expected {', '.join(_ARGUMENTS)}, got {name}{did_you_mean(name, _ARGUMENTS)}"
            )
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise SlimfastError(f"data {folder}: images need pillow (pip install pillow)") from error
    given = {key: value for key, value in arguments.items() if value is not None}
    how = {"size": _SIZE, "mean": _MEAN, "std": _STD, "flip": False, "channels": 3} | given
    _check(folder, how)
    inside = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    first = next((inside[name] for name in train if name in inside), folder)
    files, classes = _files(first)
    if not files:
        raise SlimfastError(
            f"data {folder}: expected images in folders named by class (train/CLASS/*.jpg or CLASS/*.jpg), "
            "got none"
        )
    held = next((inside[name] for name in evaluate if name in inside), None) if first != folder else None
    if held is None:
        return Images(files, how), None
    others, found = _files(held)
    if found != classes:
        differing = sorted(set(found) ^ set(classes))[:3]
        raise SlimfastError(
            f"data {folder}: expected the same classes in {first.name} and {held.name}, only one has "
            f"{', '.join(differing)}"
        )
    return Images(files, how), Images(others, {**how, "flip": False})


def _files(folder: Path) -> tuple[list[tuple[Path, int | None]], list[str]]:
    """List the images of a folder with their classes, which are its folders in alphabetical order."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(_images(path)))
    if not classes:
        return [(path, None) for path in _images(folder)], []
    return [(path, i) for i, name in enumerate(classes) for path in _images(folder / name)], classes


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)


def _check(folder: Path, how: Mapping[str, Any]) -> None:
    if type(how["size"]) is not int or how["size"] < 1 or how["channels"] not in (1, 3):
        raise SlimfastError(
            f"data {folder}: expected size of at least 1 and 1 or 3 channels, got {how['size']} and "
            f"{how['channels']}"
        )
    for name in ("mean", "std"):
        values = how[name]
        listed = isinstance(values, (list, tuple)) and len(values) >= how["channels"]
        if not listed or not all(isinstance(value, (int, float)) for value in values):
            raise SlimfastError(f"data {folder}: expected {name} as [r, g, b], got {values!r}")


def _inside(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    wide, high = size
    return max(0.0, box[0]), max(0.0, box[1]), min(float(wide), box[2]), min(float(high), box[3])
