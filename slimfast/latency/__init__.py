"""Latency: how long a network takes, measured, and predicted at any widths from its measured pieces."""

from slimfast.latency.table import LatencyTable
from slimfast.latency.tabulate import latency_table
from slimfast.latency.timing import Latency, measure_latency

__all__ = ["Latency", "LatencyTable", "latency_table", "measure_latency"]
