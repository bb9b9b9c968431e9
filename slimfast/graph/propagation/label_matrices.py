"""Work on label matrices of axes: (n, k) integers, the labels of index i in row i, 0 for none and
zeros last."""

from __future__ import annotations

from enum import IntFlag
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
Hashes = NDArray[np.uint64]

# Longer arrays take longer to copy than numpy takes to begin.
_SHORT = 4096


class Mark(IntFlag):
    """What the labels of a class have met; joined classes have the marks of both."""

    ADDED = 1  # joined with another computed tensor by an addition
    HEAD = 2  # a batch axis of a product of two computed tensors
    HEAD_DIM = 4  # an axis of such a product that lies inside a head
    SCALED = 8  # the default scale of an attention depends on how many there are
    BLOCK = 16  # a group of a grouped convolution or a group norm


def some(array: Labels | Mask) -> bool:
    """Say whether anything in an array is not zero: what ``any`` says, in a fifth of its time on a
    short one."""
    return bool(np.count_nonzero(array))


def everywhere(array: Labels | Mask) -> bool:
    """Say whether nothing in an array is zero."""
    return bool(np.count_nonzero(array) == array.size)


def same(a: Labels, b: Labels) -> bool:
    """Say whether two arrays of one shape are equal: what ``array_equal`` says, in a tenth of its time on a
    short one."""
    return a.tobytes() == b.tobytes() if a.size < _SHORT else bool(np.array_equal(a, b))


def merge(outer: Labels, inner: Labels) -> Labels:
    """Make the label matrix (a * b, ka + kb) of the axis that the axes (a, ka) and (b, kb) are
    reshaped to."""
    return np.concatenate([np.repeat(outer, len(inner), axis=0), np.tile(inner, (len(outer), 1))], axis=1)


def widen(labels: Labels, k: int) -> Labels:
    """Add columns of zeros, up to k columns."""
    missing = k - labels.shape[1]
    return labels if missing == 0 else np.pad(labels, ((0, 0), (0, missing)))


def tidy(labels: Labels) -> Labels:
    """Clear duplicates in each row, move zeros to its end, and drop columns of zeros."""
    k = labels.shape[1]
    if k == 1:
        return labels if some(labels) else labels[:, :0]
    if k > 1:
        alike = [pair for pair in combinations(range(k), 2) if some(labels[:, pair[0]] == labels[:, pair[1]])]
        if not alike and np.count_nonzero(labels) == labels.size:
            return labels
        labels = labels.copy()
        for a, b in alike:
            labels[labels[:, a] == labels[:, b], b] = 0
        empty = labels == 0
        if some(empty[:, :-1] & ~empty[:, 1:]):
            labels = np.take_along_axis(labels, np.argsort(empty, axis=1, kind="stable"), axis=1)
    used = np.array([some(column) for column in labels.T])
    return labels if used.all() else labels[:, used]


def like_first(left: Labels, right: Labels, candidates: Mask) -> Mask:
    """Choose the candidate rows that have as many labels on both sides as the first candidate."""
    sizes = np.stack([(left > 0).sum(1), (right > 0).sum(1)], axis=1)
    like: Mask = candidates & (sizes == sizes[np.argmax(candidates)]).all(1)
    return like


def any_in_row(mask: Mask) -> Mask:
    """Say which rows have anything set."""
    rows: Mask = mask.max(axis=1, initial=False)
    return rows


def remove_common(a: Labels, b: Labels) -> tuple[Labels, Labels]:
    """Clear the labels that a row has on both sides."""
    if a.shape[1] == 0 or b.shape[1] == 0:
        return a, b
    shared = a[:, :, None] == b[:, None, :]
    return tidy(np.where(shared.any(2), 0, a)), tidy(np.where(shared.any(1), 0, b))


def fewest_pairs(left: Labels, right: Labels) -> tuple[int, ...]:
    """Order the columns of ``right`` so that they meet those of ``left`` in the fewest distinct pairs of
    labels."""
    k = left.shape[1]
    if k == 1:
        return (0,)
    span = int(max(left.max(), right.max())) + 1
    pairs = np.array([[len(np.unique(left[:, c] * span + right[:, d])) for d in range(k)] for c in range(k)])
    # beyond four labels on an index an exhaustive search is not worth it, and no network comes near
    orders = permutations(range(k)) if k <= 4 else [tuple(range(k))]
    return min(orders, key=lambda order: sum(pairs[c, d] for c, d in enumerate(order)))


def join_columns(columns: list[Labels], length: int) -> Labels:
    """Put columns (length,) side by side."""
    joined = np.empty((length, len(columns)), dtype=np.int64)
    for c, column in enumerate(columns):
        joined[:, c] = column
    return joined


def mix(x: Hashes) -> Hashes:
    """Spread every bit of a number over all of its bits, by the finaliser of SplitMix64 (Steele, Lea and
    Flood, 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = x ^ (x >> np.uint64(31))
    return mixed
