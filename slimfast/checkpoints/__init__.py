"""Checkpoints: thin networks on disk, exported for other runtimes, and pruned shard by shard."""

from slimfast.checkpoints.exporting import export
from slimfast.checkpoints.shards import plan_checkpoint, prune_checkpoint
from slimfast.checkpoints.thin_files import load, save
from slimfast.checkpoints.thin_shards import export_dcp, load_checkpoint

__all__ = ["export", "export_dcp", "load", "load_checkpoint", "plan_checkpoint", "prune_checkpoint", "save"]
