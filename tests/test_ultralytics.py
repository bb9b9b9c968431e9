"""The page about YOLO is right: its blocks run one after the other, and the thin network stays thin."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

import slimfast
from slimfast.checkpoints.torchvision_ops import prepare_torchvision

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "ultralytics.md"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="ultralytics is not installed"
)


@pytest.fixture
def yolo(tmp_path, monkeypatch):
    """Build the network of a description, in a folder where exports may be written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    prepare_torchvision()
    threads = torch.get_num_threads()
    from ultralytics import YOLO

    yield lambda name: YOLO(f"{name}.yaml", verbose=False)
    torch.set_num_threads(threads)
    sys.modules.pop("ultralytics", None)


def _first_tensor(output):
    while not hasattr(output, "shape"):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return torch.as_tensor(output)


# Of each family one, and every task.
FAMILIES = ["yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n"]
TASKS = ["yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolov8n-cls"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [*FAMILIES, *TASKS])
def test_every_family_and_task_is_exported_thin(name, yolo):
    """ultralytics swaps methods and fuses layers to export; what comes out computes what the module does."""
    torch.manual_seed(0)
    side = 224 if name.endswith("-cls") else 128
    detector, example = yolo(name), torch.randn(1, 3, side, side)
    wide = sum(p.numel() for p in detector.model.parameters())
    detector.model = slimfast.slim(detector.model.eval(), example, params=0.5)
    assert sum(p.numel() for p in detector.model.parameters()) <= 0.5 * wide
    with torch.no_grad():
        expected = _first_tensor(detector.model(example))
    script = detector.export(format="torchscript", imgsz=side, verbose=False)
    torch.testing.assert_close(_first_tensor(torch.jit.load(script)(example)), expected, rtol=1e-3, atol=1e-2)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        detector.export(format="onnx", imgsz=side, simplify=False, verbose=False)
    )
    made = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    torch.testing.assert_close(_first_tensor(made), expected, rtol=1e-3, atol=1e-2)


def test_a_file_of_weights_goes_in_and_a_thin_one_comes_out(yolo):
    from ultralytics import YOLO

    yolo("yolov8n").save("own.pt")
    detector, example = YOLO("own.pt"), torch.randn(1, 3, 128, 128)
    with pytest.raises(TypeError, match=r"got YOLO, which runs one: give its \.model \(DetectionModel\)"):
        slimfast.slim(detector, example, params=0.5)
    thin = slimfast.slim(detector.model.eval(), example, params=0.5)
    slimfast.save(thin, "thin.safetensors")
    again = slimfast.load("thin.safetensors", YOLO("own.pt").model).eval()
    with torch.no_grad():
        torch.testing.assert_close(_first_tensor(again(example)), _first_tensor(thin(example)))
    assert Path("thin.safetensors").stat().st_size < 0.6 * 4 * sum(
        p.numel() for p in YOLO("own.pt").model.parameters()
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
