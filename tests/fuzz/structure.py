"""Targets of structure: sound documents with a few wrong places; tensors of any layout for the kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import slimfast

from . import files

Target = tuple[Callable[[Any], None], st.SearchStrategy[Any]]

_NUMBERS = [
    0,
    -1,
    1,
    2,
    7,
    63,
    2**31,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**40,
    1e308,
    5e-324,
    -0.0,
    0.5,
]
_TEXTS = [
    "",
    "\0",
    "\n",
    "\ud800",
    "0",
    "weight",
    "float32",
    "__class__",
    "../x",
    "x" * 300,
    "é",
    "value",
    "tensor",
]
_LEAVES = (
    st.sampled_from([*_NUMBERS, *_TEXTS, None, True, False, float("nan"), float("inf")])
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)

# Made here and not in a strategy, which must draw its randomness from hypothesis alone.
_SOUND = files.documents()


@st.composite
def _edited(draw: st.DrawFn, kind: str) -> str:
    """A document of that kind with one to three values replaced, removed or doubled."""
    document: Any = json.loads(_SOUND[kind])
    for _ in range(draw(st.integers(1, 3))):
        at: Any = document
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], (dict, list)) and draw(st.integers(0, 5)):
                at = at[key]
                continue
            change = draw(st.sampled_from(["replace", "replace", "remove", "double"]))
            if change == "replace":
                at[key] = draw(_VALUES)
            elif change == "remove":
                del at[key]
            elif isinstance(at, list):
                at.insert(key, at[key])
            else:
                at[draw(st.sampled_from(_TEXTS) | st.text(max_size=3))] = at[key]
            break
    return json.dumps(document)


def _reader(kind: str) -> Callable[[str], None]:
    read = {"plan": files.plan, "manifest": files.checkpoint, "spectra": files.spectra}.get(
        kind, files.calibration
    )
    return lambda text: read(files.with_document(kind, text))


_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@st.composite
def _tensors(draw: st.DrawFn, *, square: bool = False, dims: tuple[int, int] = (2, 2)) -> Tensor:
    """A tensor of any strides: a transposed, stepped or repeated piece of a larger one."""
    ndim = draw(st.integers(*dims))
    shape = [draw(st.integers(0, 3) | st.integers(1, 40)) for _ in range(ndim)]
    if square and len(shape) == 2 and draw(st.integers(0, 9)):
        shape[1] = shape[0]
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in shape]
    offsets = [draw(st.sampled_from([0, 0, 1, 5])) for _ in shape]
    dtype = draw(st.sampled_from([*_DTYPES, torch.float32, torch.float32, torch.int64, torch.int8]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    whole = torch.randn(
        [o + n * s for o, n, s in zip(offsets, shape, steps, strict=True)], generator=generator
    )
    x = (whole * draw(st.sampled_from([1.0, 1.0, 1e-30, 1e30, 0.0]))).to(dtype)
    for dim, (offset, length, step) in enumerate(zip(offsets, shape, steps, strict=True)):
        x = x.narrow(dim, offset, length * step)[(slice(None),) * dim + (slice(None, None, step),)]
    if x.numel() and x.is_floating_point() and draw(st.integers(0, 9)) == 0:
        x[(0,) * x.ndim] = draw(st.sampled_from([float("nan"), float("inf")]))
    if ndim == 2 and draw(st.booleans()):
        x = x.T
    if x.ndim and x.shape[0] and draw(st.integers(0, 9)) == 0:
        x = x[:1].expand(x.shape)
    return x


def _covariance(arguments: tuple[list[Tensor], str, Any]) -> None:
    xs, side, dtype = arguments
    with suppress(ValueError, TypeError):
        for x, matrix in zip(
            xs, slimfast.grouped_covariance(xs, side=side, dtype=dtype, backend="cpu").matrices, strict=True
        ):
            assert matrix.shape[0] == matrix.shape[1] and matrix.shape[0] in x.shape  # noqa: PT018


def _eigvalsh(mats: list[Tensor]) -> None:
    with suppress(ValueError, TypeError):
        for mat, values in zip(mats, slimfast.grouped_eigvalsh(mats, backend="cpu"), strict=True):
            assert values.shape == mat.shape[:1]
            assert bool((values[1:] >= values[:-1]).all())


def _pivoted_cholesky(arguments: tuple[list[Tensor], list[int]]) -> None:
    mats, ranks = arguments
    with suppress(ValueError, TypeError):
        # Any square matrix at all: what is not positive semidefinite must end too.
        for rank, found in zip(
            ranks, slimfast.grouped_pivoted_cholesky(mats, ranks, backend="cpu"), strict=True
        ):
            assert len(set(found.order.tolist())) == len(found.order) <= rank


@st.composite
def _gathers(draw: st.DrawFn) -> tuple[list[Tensor], list[dict[int, Tensor]]]:
    tensors = draw(st.lists(_tensors(dims=(0, 4)), max_size=3))
    keeps = []
    for tensor in tensors:
        keep: dict[int, Tensor] = {}
        for dim in draw(st.lists(st.integers(-1, 4), max_size=3)):
            length = tensor.shape[dim] if 0 <= dim < tensor.ndim else 3
            sound = st.sets(st.integers(0, max(length - 1, 0))).map(sorted)
            keep[dim] = torch.tensor(draw(sound | st.lists(st.integers(-2, length + 1))), dtype=torch.int64)
        keeps.append(keep)
    return tensors, keeps


def _gather(arguments: tuple[list[Tensor], list[dict[int, Tensor]]]) -> None:
    tensors, keeps = arguments
    with suppress(ValueError, TypeError):
        for tensor, keep, thin in zip(
            tensors, keeps, slimfast.grouped_gather(tensors, keeps, backend="cpu"), strict=True
        ):
            expected = tensor
            for dim, index in keep.items():
                expected = expected.index_select(dim, index)
            assert torch.equal(thin.nan_to_num(), expected.nan_to_num())


_RANKS = st.integers(-1, 42)

TARGETS: dict[str, Target] = {
    **{f"{kind}-fields": (_reader(kind), _edited(kind)) for kind in _SOUND},
    "covariance": (
        _covariance,
        st.tuples(
            st.lists(_tensors(), max_size=3),
            st.sampled_from(["auto", "rows", "both"]),
            st.sampled_from([None, torch.float64, torch.float16]),
        ),
    ),
    "eigvalsh": (_eigvalsh, st.lists(_tensors(square=True), max_size=3)),
    "pivoted-cholesky": (
        _pivoted_cholesky,
        st.lists(st.tuples(_tensors(square=True), _RANKS), max_size=3).map(
            lambda pairs: ([mat for mat, _ in pairs], [rank for _, rank in pairs])
        ),
    ),
    "gather": (_gather, _gathers()),
}
