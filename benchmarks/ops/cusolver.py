"""cuSOLVER's XsyevBatched, values only: the vendor's own batched eigenvalue solver, called through ctypes.

PyTorch calls it for tiny matrices alone. Function and constants as in the cuSOLVER manual (since CUDA 12.6
update 2).
"""

from __future__ import annotations

import ctypes
import functools
import site
from collections.abc import Iterator
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import torch
from torch import Tensor

_SONAMES = ("libcusolver.so.12", "libcusolver.so.11", "libcusolver.so")
_NO_VECTORS, _LOWER = 0, 0
_TYPES = {torch.float32: 0, torch.float64: 1}


@functools.cache
def why_not() -> str | None:
    """Why there is no XsyevBatched here; None where there is."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        _library().cusolverDnXsyevBatched  # noqa: B018
    except (OSError, AttributeError) as error:
        return f"cuSOLVER has no XsyevBatched: {error}"
    return None


@functools.cache
def _library() -> ctypes.CDLL:
    """The library that PyTorch has loaded, or one beside it."""
    for name in (*_SONAMES, *map(str, _beside_torch())):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError(f"none of {', '.join(_SONAMES)} loads")


def _beside_torch() -> Iterator[Path]:
    for folder in (*site.getsitepackages(), site.getusersitepackages()):
        yield from Path(folder).glob("nvidia/**/libcusolver.so*")


@functools.cache
def _handle() -> tuple[c_void_p, c_void_p]:
    handle, params = c_void_p(), c_void_p()
    _check(_library().cusolverDnCreate(byref(handle)))
    _check(_library().cusolverDnCreateParams(byref(params)))
    return handle, params


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuSOLVER: status {status}")


def eigvalsh(stack: Tensor) -> Tensor:
    """Eigenvalues (b, m), ascending, of a contiguous stack (b, m, m), which is overwritten."""
    batch, m, _ = stack.shape
    handle, params = _handle()
    library, kind = _library(), _TYPES[stack.dtype]
    values = torch.empty(batch, m, dtype=stack.dtype, device=stack.device)
    info = torch.empty(batch, dtype=torch.int32, device=stack.device)
    _check(library.cusolverDnSetStream(handle, c_void_p(torch.cuda.current_stream().cuda_stream)))
    problem = (
        *(handle, params, c_int(_NO_VECTORS), c_int(_LOWER), c_int64(m), c_int(kind)),
        *(c_void_p(stack.data_ptr()), c_int64(m), c_int(kind), c_void_p(values.data_ptr()), c_int(kind)),
    )
    on_device, on_host = c_size_t(), c_size_t()
    _check(
        library.cusolverDnXsyevBatched_bufferSize(*problem, byref(on_device), byref(on_host), c_int64(batch))
    )
    workspace = torch.empty(max(on_device.value, 1), dtype=torch.uint8, device=stack.device)
    host = ctypes.create_string_buffer(max(on_host.value, 1))
    _check(
        library.cusolverDnXsyevBatched(
            *(*problem, c_void_p(workspace.data_ptr()), on_device, host, on_host),
            *(c_void_p(info.data_ptr()), c_int64(batch)),
        )
    )
    return values
