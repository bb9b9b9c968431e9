"""Reading ahead: while one batch of tensors is computed on, a thread brings the next from the disk.

The bytes go to the operating system's page cache, not to this process: the tensors of
:mod:`slimfast.storage.weights` are maps of their files, and find them there.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from slimfast.storage.atomic import cannot_read
from slimfast.storage.weights import Extent, Weights

T = TypeVar("T")

_CHUNK = 4 << 20
# Files that together exceed this share of the machine's memory leave the page cache behind the reader, which
# would only push other things out of it; smaller ones stay for the next look at them.
_CACHED_SHARE = 0.5


def read_ahead(
    items: Sequence[T],
    weights: Weights,
    names_of: Callable[[T], Iterable[str]],
    *,
    seen: dict[str, str] | None = None,
) -> Iterator[T]:
    """Yield the items in order, each once the bytes of its tensors are in memory; those of the next are then
    on their way.

    ``names_of`` gives the names of an item's tensors. ``seen`` receives the :func:`fingerprint` of every
    tensor before the item that needs it is given out. Raises :class:`SlimfastError` naming the file that
    cannot be read, or ends before its tensors do.
    """
    if seen is None and not weights.extents:
        yield from items
        return
    stop = threading.Event()
    drop = _exceeds_cache(weights)

    def fetch(item: T) -> dict[str, str]:
        names = list(dict.fromkeys(names_of(item)))
        if seen is not None:
            return {name: fingerprint(weights, name, stop) for name in names if name not in seen}
        for name in names:
            if name in weights.extents:
                for _ in _chunks(weights.extents[name], stop):
                    pass
        return {}

    with ThreadPoolExecutor(1, thread_name_prefix="slimfast-read-ahead") as pool:
        coming: Future[dict[str, str]] | None = pool.submit(fetch, items[0]) if items else None
        try:
            for i, item in enumerate(items):
                assert coming is not None, "submitted one item earlier"
                found = coming.result()
                if seen is not None:
                    seen.update(found)
                coming = pool.submit(fetch, items[i + 1]) if i + 1 < len(items) else None
                yield item
                if drop:
                    for name in names_of(item):
                        if name in weights.extents:
                            _forget(weights.extents[name])
        finally:
            stop.set()


def fingerprint(weights: Weights, name: str, stop: threading.Event | None = None) -> str:
    """Hash a tensor's elements in order with SHA-256, as they lie in a file; the same wherever the tensor
    comes from.
    """
    digest = hashlib.sha256()
    if name in weights.extents:
        for chunk in _chunks(weights.extents[name], stop):
            digest.update(chunk)
    else:
        elements = weights.load(name).detach().reshape(-1)
        step = max(1, _CHUNK // max(elements.element_size(), 1))
        for start in range(0, elements.numel(), step):
            part = elements[start : start + step].cpu().contiguous()
            digest.update(part.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _chunks(extent: Extent, stop: threading.Event | None) -> Iterator[memoryview]:
    """Read the bytes of an extent, a buffer at a time; nothing more once ``stop`` is set."""
    buffer = memoryview(bytearray(min(_CHUNK, max(extent.stop - extent.start, 1))))
    at = extent.start
    try:
        with extent.path.open("rb", buffering=0) as stream:
            stream.seek(at)
            while at < extent.stop and not (stop is not None and stop.is_set()):
                got = stream.readinto(buffer[: extent.stop - at])
                if not got:
                    raise cannot_read(extent.path, f"it ends at byte {at}, expected {extent.stop}")
                at += got
                yield buffer[:got]
    except OSError as error:
        raise cannot_read(extent.path, error) from None


def _exceeds_cache(weights: Weights) -> bool:
    if not hasattr(os, "posix_fadvise"):
        return False
    total = sum(extent.stop - extent.start for extent in weights.extents.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total > _CACHED_SHARE * memory


def _forget(extent: Extent) -> None:
    with extent.path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), extent.start, extent.stop - extent.start, os.POSIX_FADV_DONTNEED)
