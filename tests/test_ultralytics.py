"""The page about YOLO is right: its blocks run one after the other, and the thin network stays thin."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from slimfast.checkpoints.torchvision_ops import prepare_torchvision

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "ultralytics.md"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="ultralytics is not installed"
)


@pytest.mark.filterwarnings("default")
def test_the_blocks_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    prepare_torchvision()
    threads = torch.get_num_threads()
    scope: dict[str, object] = {}
    try:
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S):
            exec(compile(block, PAGE.name, "exec"), scope)
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("ultralytics", None)
    wide, left = scope["wide"], scope["left"]
    assert left < 0.8 * wide
    for name in ("thin", "again"):
        assert sum(p.numel() for p in scope[name].parameters()) == left
    assert sum(p.numel() for p in scope["detector"].model.parameters()) <= left
    assert list(tmp_path.glob("**/*.onnx"))
