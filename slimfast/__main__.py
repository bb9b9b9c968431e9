"""``python -m slimfast``: the command line, and without arguments what ``slimfast doctor`` says."""

from __future__ import annotations

import sys

from slimfast.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["doctor"]))
