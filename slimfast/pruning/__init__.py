"""Pruning: which units stay, the physically smaller network, its repair, and the proof that it is the cut."""

from slimfast.pruning.depth.drop import drop_layers
from slimfast.pruning.depth.report import DepthReport, depth_report
from slimfast.pruning.manifests import Manifest, manifest
from slimfast.pruning.one_call import slim
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.repair import RepairReport, repair_report
from slimfast.pruning.rotation.report import RotationReport, rotation_report
from slimfast.pruning.rotation.rotate import rotate_heads
from slimfast.pruning.selection import select
from slimfast.pruning.training_state import prune_state
from slimfast.pruning.verification import Verification, verification_report, verify

__all__ = [
    "DepthReport",
    "Manifest",
    "RepairReport",
    "RotationReport",
    "Verification",
    "depth_report",
    "drop_layers",
    "manifest",
    "prune_channels",
    "prune_state",
    "repair_report",
    "rotate_heads",
    "rotation_report",
    "select",
    "slim",
    "verification_report",
    "verify",
]
