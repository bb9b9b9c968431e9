"""One cut tried without data: which numbers in a module's Python must change with the widths."""
