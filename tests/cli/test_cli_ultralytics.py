"""Networks of ultralytics by name; a package of that name stands in for it where it is not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from support.cli_cases import NETS

from slimfast.cli import main
from slimfast.cli.inputs import default_inputs
from slimfast.cli.models import build, build_model
from slimfast.errors import SlimfastError

pytestmark = pytest.mark.usefixtures("workshop")

STAND_IN = f"""
import torch
from {NETS} import Net

class YOLO:
    def __init__(self, file, verbose=True):
        self.model = Net() if file.endswith(".yaml") else torch.load(file, weights_only=False)
        self.model.args, self.model.yaml = {{"imgsz": 6}}, {{}}
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "packages" / "ultralytics"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ultralytics", raising=False)
    yield
    sys.modules.pop("ultralytics", None)


@pytest.mark.usefixtures("stand_in")
def test_a_description_is_built_and_states_its_input(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["plan", "ultralytics:small.yaml", "--macs", "0.5"]
    assert main(plan) == 2
    assert "expected --weights, for its own are random" in capsys.readouterr().err
    assert main([*plan, "--random-weights"]) == 0
    assert default_inputs(build_model("ultralytics:small.yaml"), "small") == ("3x6x6",)


@pytest.mark.usefixtures("stand_in")
def test_a_pickle_is_read_where_the_user_trusts_it_alone() -> None:
    saved = build_model("ultralytics:small.yaml", seed=3)
    torch.save(saved, "best.pt")
    with pytest.raises(SlimfastError, match=r"pickle, which runs the code in it; add \?trust=true"):
        build("ultralytics:best.pt")
    for untrue in ("1", "yes", "false"):
        with pytest.raises(SlimfastError, match="trust=true"):
            build(f"ultralytics:best.pt?trust={untrue}")
    model = build("ultralytics:best.pt?trust=true&verbose=false").model
    assert torch.equal(model.conv1.weight, saved.conv1.weight)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ultralytics:none.pt?trust=true", "no such file is here, and nothing is downloaded"),
        ("ultralytics:yolov8n", r"expected NAME.yaml or FILE.pt, got 'yolov8n'"),
        ("ultralytics:a.yaml?wide=1", "unexpected keyword argument 'wide'"),
    ],
)
def test_what_is_no_network_gets_a_line(name: str, line: str) -> None:
    with pytest.raises(SlimfastError, match=line):
        build(name, random_weights=True)


@pytest.mark.skipif(importlib.util.find_spec("ultralytics") is not None, reason="ultralytics is installed")
def test_without_the_package_the_line_says_what_to_install() -> None:
    with pytest.raises(SlimfastError, match=r"ultralytics is not installed \(pip install ultralytics\)"):
        build("ultralytics:a.yaml", random_weights=True)


@pytest.mark.skipif(importlib.util.find_spec("ultralytics") is None, reason="ultralytics is not installed")
def test_the_real_package_all_the_way() -> None:
    name = "ultralytics:yolov8n.yaml"
    plan = ["plan", name, "--random-weights", "--input", "3x64x64", "--macs", "0.5", "-o", "plan.json"]
    assert main(plan) == 0
    assert main(["prune", name, "plan.json", "--random-weights", "-o", "thin.safetensors"]) == 0
    assert main(["export", "thin.safetensors", name, "--input", "3x64x64", "-o", "thin.onnx"]) == 0
