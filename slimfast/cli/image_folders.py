"""Folders of images: by class, with splits or without, or unlabelled."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
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


@dataclass(frozen=True, slots=True)
class Preparation:
    """How an image becomes a normalised tensor (channels, size, size).

    The shorter side is resized to ``size`` and the middle cut out; with ``flip`` each is mirrored by chance.
    """

    size: int = _SIZE
    mean: Sequence[float] = _MEAN
    std: Sequence[float] = _STD
    flip: bool = False
    channels: int = 3

    def apply(self, image: Any) -> Tensor:
        """Prepare an image of Pillow."""
        from PIL import Image

        image = image.convert("RGB" if self.channels == 3 else "L")
        scale = self.size / min(image.size)
        wide, high = (max(self.size, round(length * scale)) for length in image.size)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        # What is outside the middle is not resized.
        box = (left / scale, top / scale, (left + self.size) / scale, (top + self.size) / scale)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=_inside(box, image.size))
        pixels = torch.from_numpy(np.array(image, dtype=np.float32))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu")[: self.channels, None, None]
            for values in (self.mean, self.std)
        )
        made = (pixels / 255 - mean) / std
        return made.flip(-1) if self.flip and torch.rand((), device="cpu") < 0.5 else made


def preparation_of(what: str, arguments: Mapping[str, Any]) -> Preparation:
    """Make the preparation that arguments describe, None for the usual; errors begin with ``what``."""
    known = [field.name for field in fields(Preparation)]
    for name in arguments:
        if name not in known:
            raise SlimfastError(f"{what}: expected {', '.join(known)}, got {name}{did_you_mean(name, known)}")
    if importlib.util.find_spec("PIL") is None:
        raise SlimfastError(f"{what}: images need pillow (pip install pillow)")
    how = Preparation(**{key: value for key, value in arguments.items() if value is not None})
    if type(how.size) is not int or how.size < 1 or how.channels not in (1, 3):
        raise SlimfastError(
            f"{what}: expected size of at least 1 and 1 or 3 channels, got {how.size} and {how.channels}"
        )
    for name, values in (("mean", how.mean), ("std", how.std)):
        listed = isinstance(values, (list, tuple)) and len(values) >= how.channels
        if not listed or not all(isinstance(value, (int, float)) for value in values):
            raise SlimfastError(f"{what}: expected {name} as [r, g, b], got {values!r}")
    return how


class Images(Dataset[Any]):
    """Images of files as they are prepared, with their class where they have one."""

    def __init__(self, files: Sequence[tuple[Path, int | None]], how: Preparation) -> None:
        self.files = list(files)
        self._how = how

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        path, label = self.files[i]
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as opened:
                image = self._how.apply(opened)
        except (OSError, UnidentifiedImageError) as error:
            raise SlimfastError(f"data: cannot read the image {path}: {error}") from None
        return image if label is None else (image, label)


def open_folder(
    folder: Path, arguments: Mapping[str, Any], train: Sequence[str], evaluate: Sequence[str]
) -> tuple[Images, Images | None]:
    """Open a folder of images: those to train on, and those of its evaluation split, if it has one.

    Its own folders are splits, which hold one folder a class each, or the classes; images right inside have
    no class.
    """
    how = preparation_of(f"data {folder}", arguments)
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
    return Images(files, how), Images(others, replace(how, flip=False))


def _files(folder: Path) -> tuple[list[tuple[Path, int | None]], list[str]]:
    """List the images of a folder with their classes, which are its folders in alphabetical order."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(_images(path)))
    if not classes:
        return [(path, None) for path in _images(folder)], []
    return [(path, i) for i, name in enumerate(classes) for path in _images(folder / name)], classes


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)


def _inside(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    wide, high = size
    return max(0.0, box[0]), max(0.0, box[1]), min(float(wide), box[2]), min(float(high), box[3])
