"""Run the tests of every kind that docs/developer/kinds.md names: ``python tools/kinds.py``.

Further arguments go to pytest.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "developer" / "kinds.md"


def tests_named(text: str) -> list[str]:
    """List the tests that a page names, each once; those of a file that is named whole are the file's."""
    found = dict.fromkeys(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", text))
    return [name for name in found if "::" not in name or name.partition("::")[0] not in found]


def main(arguments: list[str]) -> int:
    """Run them."""
    command = [sys.executable, "-m", "pytest", *tests_named(PAGE.read_text()), *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
