"""WikiText-2 (Merity et al. 2016), raw: validation to calibrate and to choose on, test for the tables alone.

Read from ``wikitext2/wiki.{valid,test}.raw`` in the folder ``SLIMFAST_DATA``, by default ``../shared/data``
beside the repository. These are the files of ``wikitext-2-raw-v1``: an article begins with a line
``= Title =``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.data.cifar10_data import data_folder
from slimfast.errors import SlimfastError

Split: TypeAlias = Literal["valid", "test"]
Encode: TypeAlias = Callable[[str], list[int]]

_TITLE = re.compile(r"^ = [^=].*[^=] = $", re.MULTILINE)


def load_text(split: Split, folder: Path | None = None) -> str:
    """Read a split as it is; :class:`SlimfastError` where it is missing, or not what ``SHA256SUMS`` says."""
    place = (data_folder() if folder is None else folder) / "wikitext2"
    path, sums = place / f"wiki.{split}.raw", place / "SHA256SUMS"
    try:
        found = path.read_bytes()
        known = dict(line.split()[::-1] for line in sums.read_text().splitlines()) if sums.exists() else {}
        text = found.decode("utf-8")
    except (OSError, ValueError) as error:
        raise SlimfastError(
            f"cannot read WikiText-2 from {path}: {type(error).__name__}: {error}; set SLIMFAST_DATA to the "
            f"folder with wikitext2/wiki.{split}.raw"
        ) from error
    digest = hashlib.sha256(found).hexdigest()
    if known.get(path.name, digest) != digest:
        raise SlimfastError(f"{path} has sha256 {digest}, {sums.name} says {known[path.name]}")
    return text


def articles(text: str) -> list[str]:
    """Cut a split into its articles, each from its title to the next one."""
    starts = [found.start() for found in _TITLE.finditer(text)]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def windows(ids: list[int], length: int, most: int | None = None) -> Tensor:
    """Cut tokens into rows of one length, (rows, length), without overlap; the rest is left out."""
    rows = len(ids) // length if most is None else min(most, len(ids) // length)
    if not rows:
        raise SlimfastError(f"expected a text of at least {length} tokens, got {len(ids)}")
    return torch.tensor(ids[: rows * length], dtype=torch.int64).view(rows, length)


def drawn(texts: list[str], encode: Encode, rows: int, length: int, seed: int) -> Tensor:
    """Draw ``rows`` windows (rows, length), each from the articles in an order of their own for each seed:
    the first window of an article, then the second of each, and so on.
    """
    cut = [ids[: len(ids) // length * length] for ids in map(encode, texts)]
    order = np.random.default_rng(seed).permutation(len(cut))
    deepest = max((len(ids) // length for ids in cut), default=0)
    found = [
        cut[i][at * length : (at + 1) * length]
        for at in range(deepest)
        for i in order
        if len(cut[i]) >= (at + 1) * length
    ]
    if len(found) < rows:
        raise SlimfastError(f"expected {rows} windows of {length} tokens in the articles, got {len(found)}")
    return torch.tensor(found[:rows], dtype=torch.int64)
