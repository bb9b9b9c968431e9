"""Data sets that Hugging Face's ``datasets`` saved to a folder, as samples for a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from slimfast.cli.console import tell
from slimfast.cli.image_folders import Preparation, preparation_of
from slimfast.cli.specs import call_foreign
from slimfast.errors import SlimfastError

# What losses pass over, and what masks call padding.
_IGNORED, _PADDING = -100, 0
_MASK = "attention_mask"


class Rows(Dataset[dict[str, Any]]):
    """The rows of one split: images prepared, numbers as tensors, and nothing of what is no number.

    ``targets`` are the names of columns that hold what is to be predicted.
    """

    def __init__(self, split: Any, how: Preparation, targets: Sequence[str], what: str) -> None:
        self._how, self._targets, self._what = how, targets, what
        self._columns = [name for name, feature in split.features.items() if _is_number(feature)]
        if not self._columns:
            raise SlimfastError(
                f"{what}: expected columns of numbers or images, got {', '.join(split.features)}"
            )
        for name in self._columns:
            if split.data.column(name).null_count:
                raise SlimfastError(f"{what}: column {name} has rows without a value")
        # Pictures stay those of Pillow; the rest has the dtype that its column states.
        self._images = {name for name in self._columns if type(split.features[name]).__name__ == "Image"}
        self._bytes = {name for name in self._columns if _is_pixels(split.features[name])}
        numbers = [name for name in self._columns if name not in self._images]
        chosen = split.select_columns(self._columns)
        self._split = chosen.with_format("numpy", columns=numbers, output_all_columns=True)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = call_foreign(self._what, self._split.__getitem__, i)
        return {name: self._made(name, value) for name, value in row.items()}

    def _made(self, name: str, value: Any) -> Tensor:
        if name in self._images:
            return self._how.apply(value)
        made = torch.from_numpy(np.array(value))
        if made.dtype == torch.float64:
            return made.float()
        if name in self._targets:
            return made if made.is_floating_point() else made.long()
        # Pixels as bytes lie between 0 and 1.
        return made.float() / 255 if name in self._bytes else made

    def batch(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """Put rows into one batch; sequences of several lengths are padded, and a mask says where."""
        lengths = {name: [len(row[name]) if row[name].ndim else 0 for row in rows] for name in self._columns}
        ragged = [name for name, found in lengths.items() if len(set(found)) > 1]
        if not ragged:
            made: dict[str, Any] = default_collate([dict(row) for row in rows])
            return made
        padded: dict[str, Any] = {
            name: torch.nn.utils.rnn.pad_sequence(
                [row[name] for row in rows],
                batch_first=True,
                padding_value=_IGNORED if name in self._targets else _PADDING,
            )
            if name in ragged
            else torch.stack([row[name] for row in rows])
            for name in self._columns
        }
        if _MASK not in padded:
            first = next((name for name in ragged if name not in self._targets), ragged[0])
            ends = torch.tensor(lengths[first], device="cpu")[:, None]
            padded[_MASK] = (torch.arange(max(lengths[first]), device="cpu") < ends).long()
        return padded


def open_saved(
    folder: str,
    arguments: Mapping[str, Any],
    train: Sequence[str],
    evaluate: Sequence[str],
    targets: Sequence[str],
) -> tuple[Rows, Rows | None]:
    """Open a saved data set: the split to train on, and that of its evaluation, if it has one."""
    import datasets

    what = f"data {folder}"
    how = preparation_of(what, arguments)
    found = call_foreign(what, datasets.load_from_disk, folder)
    splits = found if isinstance(found, Mapping) else {"train": found}
    first = next((splits[name] for name in (*train, *splits) if name in splits), None)
    if first is None:
        raise SlimfastError(f"{what}: expected a split to train on, got none")
    held = next((splits[name] for name in evaluate if name in splits), None)
    words = [name for name, feature in first.features.items() if not _is_number(feature)]
    if words:
        tell(f"{what}: columns of words are passed over: {', '.join(words)}")
    steady = Preparation(how.size, how.mean, how.std, False, how.channels)
    return Rows(first, how, targets, what), None if held is None else Rows(held, steady, targets, what)


def _is_number(feature: Any) -> bool:
    """Whether a column holds images, classes or numbers, alone or in lists."""
    kind = type(feature).__name__
    if kind in ("Image", "ClassLabel"):
        return True
    if kind in ("Array2D", "Array3D", "Array4D", "Array5D", "Value"):
        return not any(
            word in str(feature.dtype) for word in ("string", "binary", "time", "date", "duration")
        )
    inner = getattr(feature, "feature", None)
    return inner is not None and _is_number(inner)


def _is_pixels(feature: Any) -> bool:
    """Whether a column holds arrays of bytes."""
    alone = type(feature).__name__ == "Value"
    while getattr(feature, "feature", None) is not None:
        feature = feature.feature
    return not alone and getattr(feature, "dtype", None) == "uint8"
