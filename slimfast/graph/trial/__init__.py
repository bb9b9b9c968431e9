"""One cut tried without data: which numbers in a module's Python have to change with the widths."""
