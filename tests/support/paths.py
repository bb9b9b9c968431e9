"""Where the repository, its tests and the data beside it are."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
DATA = Path(os.environ.get("SLIMFAST_DATA", ROOT.parent / "shared" / "data"))
