"""Checkpoints: thin networks on disk, exported for other runtimes, and pruned shard by shard."""

from slimfast.checkpoints.calibrating import calibrate_checkpoint
from slimfast.checkpoints.exporting import export
from slimfast.checkpoints.shard_plans import plan_checkpoint
from slimfast.checkpoints.shards import prune_checkpoint
from slimfast.checkpoints.streamed import without_weights
from slimfast.checkpoints.thin_files import load, save
from slimfast.checkpoints.thin_shards import export_dcp, load_checkpoint

__all__ = [
    "calibrate_checkpoint",
    "export",
    "export_dcp",
    "load",
    "load_checkpoint",
    "plan_checkpoint",
    "prune_checkpoint",
    "save",
    "without_weights",
]
