"""Keeps the rows of :mod:`slimfast.calibration.kept_rows` while a network is calibrated.

Which positions the least squares see follows from how many there will be, which is known beforehand where all
samples are of one shape and no position is padding. Where that is not so, or turns out otherwise, nothing is
kept, and repair runs the network once more, to the same result.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod

import torch
from torch import Tensor, nn

from slimfast.calibration.batch_norms import followed
from slimfast.calibration.consumers import Consumer
from slimfast.calibration.forward import Slice, signature_of, watched
from slimfast.calibration.kept_rows import Chunk, KeptLayer, KeptRows, digest_of
from slimfast.calibration.positions import Picks, rows_at, wanted
from slimfast.calibration.reads import Seen
from slimfast.errors import one_line
from slimfast.graph.recording.module_copies import named_tensors
from slimfast.storage.stored_tensors import shelves_of

_log = logging.getLogger(__name__)
# The file may take so many times what may be held in memory, and this share of what is free on its disk.
_ON_DISK = 4
_SHARE = 0.5


class RowKeeper:
    """Keeps what a network's layers read of some batches; says in the log why, where it does not."""

    def __init__(
        self,
        network: nn.Module,
        consumers: Sequence[Consumer],
        batches: Sequence[Slice],
        memory: int,
        *,
        keeps: bool,
    ) -> None:
        """``batches``: all that will be run, in slices of each; ``memory``: what may be held in memory;
        ``keeps``: whether it was asked for.
        """
        self._network, self._consumers = network, consumers
        self._samples = sum(batch.samples for batch in batches)
        self._kept: KeptRows | None = None
        self._picks = Picks()
        # Of a slice under way: how often layers were called, and who has read the same.
        self._calls: dict[str, int] = {}
        self._seen: Seen[Chunk] = Seen()
        self._sized = self._moments = 0
        self._memory = memory
        self._most = min(_ON_DISK * memory, int(_SHARE * shutil.disk_usage(tempfile.gettempdir()).free))
        if not keeps:
            self._give_up("for_repair=False")
        elif not hasattr(os, "preadv"):
            self._give_up("this system cannot read at a place of a file")
        elif shelves_of(named_tensors(network).values()):
            self._give_up("its weights come from files")
        elif not all(t.device.type == "cpu" for t in named_tensors(network).values()):
            self._give_up("it is on a device that a copy would wait for")
        elif any(batch.mask is not None and not bool(batch.mask.all()) for batch in batches):
            self._give_up("some positions are padding")
        elif any(signature_of(batch) != signature_of(batches[0]) for batch in batches):
            self._give_up("samples are of several shapes")
        else:
            self._kept = KeptRows()

    @contextmanager
    def sizing(self) -> Iterator[None]:
        """Learn, from a forward of one sample, how much there will be."""
        if self._kept is None:
            yield
            return
        seen: Seen[bool] = Seen()
        with ExitStack() as hooks:
            hooks.enter_context(
                watched(self._network, self._consumers, functools.partial(self._size, self._kept, seen))
            )
            hooks.enter_context(followed(self._network, self._consumers, self._kept.followed))
            yield
        if self._kept is not None and self._sized > self._most:
            self._give_up(f"they would take {self._sized:,} bytes, more than {self._most:,}")

    def make_room(self, waiting: float) -> None:
        """Let rows stay in memory, but for the moments and what all samples' forwards hold while they wait in
        a repair: ``waiting`` bytes, which are put away and brought back at every layer where they do not fit.
        """
        if self._kept is not None:
            self._kept.room = max(0, self._memory - self._moments - int(waiting))

    @contextmanager
    def keeping(self, part: Slice) -> Iterator[None]:
        """Keep what is read while this slice runs."""
        if self._kept is None:
            yield
            return
        self._calls, self._seen = {}, Seen()
        with watched(self._network, self._consumers, functools.partial(self._see, part)):
            yield
        if self._kept is not None:
            self._kept.slices.append(part.samples)

    def done(self, model: nn.Module) -> KeptRows | None:
        """Give what was kept of ``model``, None where that is not all of it."""
        kept = self._kept
        if kept is not None and not all(layer.done == layer.total for layer in kept.layers.values()):
            self._give_up("some layers were not called with all samples")
        if self._kept is not None:
            self._kept.digest = digest_of(model)
            _log.info(
                "calibrate: kept for repair is what %d layers read: %s bytes in memory, %s in a file in %s",
                len(self._kept.layers),
                f"{self._kept.held:,}",
                f"{self._kept.bytes:,}",
                tempfile.gettempdir(),
            )
        return self._kept

    def _give_up(self, why: str) -> None:
        self._kept = None
        _log.info("calibrate: what layers read is not kept, repair will run the network again: %s", why)

    def _size(self, kept: KeptRows, seen: Seen[bool], consumer: Consumer, x: Tensor) -> None:
        shape = consumer.laid_out(x).shape[:-1]
        layer = KeptLayer(shape[0], shape[1:], shape.numel() * self._samples, wanted(consumer))
        if kept.layers.setdefault(consumer.weight, layer) is not layer:
            self._give_up(f"{consumer.module} is called several times")
        if seen.look(consumer, x) is None:
            seen.note(consumer, x, True)
            self._sized += consumer.length * min(layer.total, layer.wanted) * x.element_size()
            self._moments += 8 * consumer.length**2

    def _see(self, part: Slice, consumer: Consumer, x: Tensor) -> None:
        weight, kept = consumer.weight, self._kept
        if kept is None:
            return
        self._calls[weight] = self._calls.get(weight, 0) + 1
        layer, shape = kept.layers.get(weight), consumer.laid_out(x).shape[:-1]
        if self._calls[weight] > 1:
            self._give_up(f"{consumer.module} is called several times")
        elif layer is None or shape != torch.Size((layer.lead * part.samples, *layer.rest)):
            self._give_up(f"{consumer.module} reads {tuple(shape)} positions of {part.samples} samples")
        else:
            try:
                layer.chunks.append(self._chunk(kept, layer, part, consumer, x))
            except OSError as error:
                self._give_up(one_line(error))
            layer.done += prod(shape)

    def _chunk(self, kept: KeptRows, layer: KeptLayer, part: Slice, consumer: Consumer, x: Tensor) -> Chunk:
        """Put what is seen of a layer's input into the file, where no other layer has read the same."""
        found = self._seen.look(consumer, x)
        if found is None:
            size = layer.lead * part.samples * layer.rest.numel()
            first, index = self._picks.within(layer.total, layer.wanted, layer.done, size)
            rows, factors = rows_at(consumer, x, index, part.samples, None)
            found = kept.write(rows, first, factors)
            self._seen.note(consumer, x, found)
        return found
