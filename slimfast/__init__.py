"""Architecture slimming: widths from the PCA of filters, a thin network, and the original distilled into it.

The short way is :func:`plan` and :func:`slim`; the long way, each stage with data in and data out, is
:func:`trace_channels`, :func:`measure_spectra`, :func:`plan_widths`, :func:`select`, :func:`prune_channels`,
:func:`distill`. Method: Wang et al., arXiv 2202.10461.
"""

import logging

# First: all that follows takes seconds, in which the command can be interrupted.
import slimfast.interrupts  # noqa: F401

# isort: split
from slimfast.calibration import (
    Calibration,
    ErrorCurve,
    calibrate,
    error_curves,
    load_calibration,
    save_calibration,
)
from slimfast.checkpoints import (
    calibrate_checkpoint,
    export,
    export_dcp,
    load,
    load_checkpoint,
    plan_checkpoint,
    prune_checkpoint,
    save,
    without_weights,
)
from slimfast.distillation import DistillationLoss, aligned_hints, distill, perplexity
from slimfast.distributed import join_team
from slimfast.errors import BackendUnavailable, Cancelled, SlimfastError, UnsupportedGraph
from slimfast.gradual import Round, Rounds, lightning_callback, rounds, trainer_callback
from slimfast.graph import ChannelGraph, ChannelGroup, RegisteredRule, register_rule, trace_channels
from slimfast.huggingface import plan_uniform, save_pretrained
from slimfast.kernels import (
    Convolution,
    CrossMoments,
    Moments,
    grouped_cholesky_solve,
    grouped_covariance,
    grouped_cross_covariance,
    grouped_eigvalsh,
    grouped_gather,
    grouped_moments,
    grouped_patch_moments,
    grouped_pivoted_cholesky,
    grouped_spectra,
)
from slimfast.latency import Latency, LatencyTable, latency_table, measure_latency
from slimfast.memory import MemoryTable, PeakMemory, memory_table, peak_memory
from slimfast.plans import Cost, GroupPlan, Plan, count_module, plan, plan_from_masks, plan_widths
from slimfast.pruning import (
    DepthReport,
    Manifest,
    RepairReport,
    RotationReport,
    Verification,
    depth_report,
    drop_layers,
    manifest,
    prune_channels,
    prune_state,
    repair_report,
    rotate_heads,
    rotation_report,
    select,
    slim,
    verification_report,
    verify,
)
from slimfast.reports.figures import report_figures
from slimfast.reports.html import report
from slimfast.reports.plots import plan_figure, save_figure
from slimfast.spectra import Spectrum, load_spectra, measure_spectra, save_spectra
from slimfast.studies import CutAlone, Point, Sensitivities, TradeOff, sensitivity, trade_off

# Silent until the program that embeds it configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.2.0"

__all__ = [
    "BackendUnavailable",
    "Calibration",
    "Cancelled",
    "ChannelGraph",
    "ChannelGroup",
    "Convolution",
    "Cost",
    "CrossMoments",
    "CutAlone",
    "DepthReport",
    "DistillationLoss",
    "ErrorCurve",
    "GroupPlan",
    "Latency",
    "LatencyTable",
    "Manifest",
    "MemoryTable",
    "Moments",
    "PeakMemory",
    "Plan",
    "Point",
    "RegisteredRule",
    "RepairReport",
    "RotationReport",
    "Round",
    "Rounds",
    "Sensitivities",
    "SlimfastError",
    "Spectrum",
    "TradeOff",
    "UnsupportedGraph",
    "Verification",
    "aligned_hints",
    "calibrate",
    "calibrate_checkpoint",
    "count_module",
    "depth_report",
    "distill",
    "drop_layers",
    "error_curves",
    "export",
    "export_dcp",
    "grouped_cholesky_solve",
    "grouped_covariance",
    "grouped_cross_covariance",
    "grouped_eigvalsh",
    "grouped_gather",
    "grouped_moments",
    "grouped_patch_moments",
    "grouped_pivoted_cholesky",
    "grouped_spectra",
    "join_team",
    "latency_table",
    "lightning_callback",
    "load",
    "load_calibration",
    "load_checkpoint",
    "load_spectra",
    "manifest",
    "measure_latency",
    "measure_spectra",
    "memory_table",
    "peak_memory",
    "perplexity",
    "plan",
    "plan_checkpoint",
    "plan_figure",
    "plan_from_masks",
    "plan_uniform",
    "plan_widths",
    "prune_channels",
    "prune_checkpoint",
    "prune_state",
    "register_rule",
    "repair_report",
    "report",
    "report_figures",
    "rotate_heads",
    "rotation_report",
    "rounds",
    "save",
    "save_calibration",
    "save_figure",
    "save_pretrained",
    "save_spectra",
    "select",
    "sensitivity",
    "slim",
    "trace_channels",
    "trade_off",
    "trainer_callback",
    "verification_report",
    "verify",
    "without_weights",
]
