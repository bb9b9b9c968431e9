"""The programs in ``tools/``, which is no package, as modules."""

from __future__ import annotations

import importlib.util
from typing import Any

from support.paths import ROOT


def load_tool(name: str) -> Any:
    """Load ``tools/NAME.py`` as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
