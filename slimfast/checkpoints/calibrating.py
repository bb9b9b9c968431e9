"""Calibration of models that do not fit in memory, into a folder, from the shards of their weights."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from slimfast.arrays import Progress
from slimfast.calibration.data import Calibration
from slimfast.calibration.masks import MaskOption
from slimfast.calibration.together import calibrate_together
from slimfast.checkpoints.shard_folder import alone, as_they_are
from slimfast.checkpoints.streamed import MEMORY, WEIGHTS, streamed_copy
from slimfast.graph.channel_graph import ChannelGraph
from slimfast.storage.atomic import output_folder
from slimfast.storage.stored_tensors import Shelf
from slimfast.storage.weights import Source, open_weights
from slimfast.wrappers import unwrapped


def calibrate_checkpoint(
    source: Source,
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    folder: str | os.PathLike[str],
    *,
    samples: int = 512,
    mask: MaskOption = "attention_mask",
    dtype: torch.dtype | None = None,
    memory: int = MEMORY,
    backend: str = "auto",
    progress: Progress | None = None,
) -> Calibration:
    """Measure what the layers of a model read whose weights stay in ``source``, one layer at a time.

    The moments are those of :func:`slimfast.calibrate` with the same ``memory``, bit for bit (to rounding for
    a layer that a forward calls several times), and stay in the files of ``folder``, one for each layer. All
    samples go through the model side by side, from one layer to the next, so that each weight is read once;
    what they hold meanwhile is in a temporary file in ``folder``. In memory are the weight of a layer, its
    moments and at most 1 GiB; of an embedding or a head, whose weight is longer than that of any layer
    between them, some rows at a time, and no scores of tokens.

    A run that was stopped is started again with the same arguments: the samples go through the model again,
    and the layers that were measured are not measured again.

    Args:
        source: A file or folder of weights, a mapping of tensors or a module.
        model: The network. Its parameters may be on the meta device, and are computed with in the dtypes that
            they have there; buffers that no checkpoint holds need their values
            (:func:`slimfast.without_weights`).
        graph: Its groups, from :func:`slimfast.trace_channels`.
        batches: As for :func:`slimfast.calibrate`; a run that goes on needs the same ones.
        folder: Where to write; one of other weights, samples or options is refused.
        samples: How many samples to measure, at most.
        mask: Which argument says which positions are no padding, as for :func:`slimfast.calibrate`.
        dtype: float32 or float64, of the products.
        memory: Bytes of activations that a forward may hold.
        backend: The kernels to use.
        progress: Called with the layers done and of all; what it raises (:class:`slimfast.Cancelled`) ends
            the work, which can be gone on with.

    Returns:
        The calibration, whose moments are read from the folder when they are asked for.
        :func:`slimfast.load_calibration` opens it again.

    Raises:
        SlimfastError: As :func:`slimfast.calibrate` does, and for weights that are not the model's.

    Example:
        graph = slimfast.trace_channels(model, tokens)
        found = slimfast.calibrate_checkpoint("model.safetensors.index.json", model, graph, batches, "state")
        plan = slimfast.plan_checkpoint("model.safetensors.index.json", model, tokens, macs=0.5,
                                        calibration=found)
    """
    weights = open_weights(source)
    network = streamed_copy(unwrapped(model), weights, Shelf(WEIGHTS))
    target = output_folder(folder)
    with alone(target):
        return calibrate_together(
            network,
            graph,
            batches,
            target,
            as_they_are(weights),
            samples=samples,
            mask=mask,
            dtype=dtype,
            memory=memory,
            backend=backend,
            progress=progress,
        )
