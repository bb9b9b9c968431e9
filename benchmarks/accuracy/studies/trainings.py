"""Where a benchmark keeps a training, so that it goes on only from the network that it began with."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from slimfast.distillation.cached_samples import digest_of


def training_folder(work: Path, name: str, seed: int, network: nn.Module) -> Path:
    """The folder under ``work`` of the training of ``network``, as it is now, by the contender ``name``."""
    began = digest_of(network).hex()[:8]
    return work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}-{began}"
