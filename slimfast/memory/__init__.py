"""Memory: how many bytes a forward holds at once, measured, and predicted at any widths."""

from slimfast.memory.measuring import PeakMemory, peak_memory
from slimfast.memory.table import MemoryTable
from slimfast.memory.tabulate import memory_table

__all__ = ["MemoryTable", "PeakMemory", "memory_table", "peak_memory"]
