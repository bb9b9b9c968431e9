"""The demo, shortened: the networks it compares, what it writes, and that the files hold what it says."""

import glob
import io
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console

from slimfast.checkpoints.thin_files import load
from slimfast.cli.digits import DigitNet, Scans, load_scans
from slimfast.cli.digits_demo import MACS, Demo, demo_table, run_demo
from slimfast.distillation import accuracy
from slimfast.errors import SlimfastError
from slimfast.graph import trace_channels
from slimfast.plans import Plan, plan
from slimfast.plans.controls import uniform_like
from slimfast.plans.costs import count_module
from slimfast.spectra import measure_spectra

# The machine that runs the tests may be busy.
pytestmark = pytest.mark.filterwarnings("default:latency. the samples spread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new" / "folder"


@pytest.fixture(scope="module")
def demo(folder: Path) -> Demo:
    return run_demo(folder, teacher_epochs=2, epochs=2, progress=False)


def test_the_networks_compared(demo: Demo) -> None:
    names = ["teacher", "thin, pruned", "thin, distilled", "uniform, pruned", "uniform, distilled"]
    assert [row.name for row in demo.rows] == names
    teacher, thin, distilled, uniform, control = demo.rows
    assert (thin.params, thin.macs) == (distilled.params, distilled.macs)
    assert (uniform.params, uniform.macs) == (control.params, control.macs)
    # Two epochs are enough to beat chance (0.1) by far, on scans never trained on; cutting alone is not.
    assert teacher.accuracy > 0.5
    # The calibration keeps what the teacher knows; weights alone do not.
    assert thin.accuracy > 0.8 * teacher.accuracy > uniform.accuracy + 0.2
    assert distilled.accuracy > 0.8 * teacher.accuracy
    assert control.accuracy > uniform.accuracy + 0.2
    assert all(row.milliseconds > 0 for row in demo.rows)


def test_the_budget_is_met_and_the_control_costs_the_same(demo: Demo) -> None:
    whole = demo.rows[0].macs
    assert whole == count_module(DigitNet(), torch.zeros(1, 1, 8, 8)).macs
    # The dearest unit is one of the first stage: in and out of six convolutions, 2.1 % of the whole.
    for row in demo.rows[1:]:
        assert MACS - 0.025 < row.macs / whole <= MACS


def test_the_files_hold_what_was_measured(demo: Demo, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "plan.json", "thin.safetensors", "thin.onnx", "plan.png", "demo.json"
    }  # fmt: skip
    _, _, test = load_scans()
    thin = load(folder / "thin.safetensors", DigitNet()).eval()
    assert accuracy(thin, test) == demo.rows[2].accuracy
    assert count_module(thin, test.images[:1]).macs == demo.rows[2].macs
    assert Plan.load(folder / "plan.json").cost_after.macs == demo.rows[2].macs
    session = onnxruntime.InferenceSession(folder / "thin.onnx")
    images = test.images[:5]
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, thin(images).numpy(), rtol=1e-4, atol=1e-4)
    written = json.loads((folder / "demo.json").read_text())
    assert written["rows"][2]["accuracy"] == demo.rows[2].accuracy
    assert written["settings"]["seed"] == 0
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_fits_a_plain_terminal(demo: Demo) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(demo_table(demo))
    text = console.export_text()
    for row in demo.rows:
        assert f"{100 * row.accuracy:.1f} %" in text
        assert row.name in text
    assert "(100.0%)" in text
    assert "…" not in text


def test_the_scans_are_divided_once_and_for_all() -> None:
    train, validation, test = load_scans()
    assert [len(part.digits) for part in (train, validation, test)] == [1000, 297, 500]
    images = torch.cat([part.images for part in (train, validation, test)])
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (-1, 1)
    rows = {image.numpy().tobytes() for image in images}
    # No scan is in two parts; scikit-learn's set has no two equal ones.
    assert len(rows) == 1797
    assert torch.equal(train.images, load_scans()[0].images)
    # Known from the data set: the first scan is a 0 and the counts of the ten digits.
    counts = torch.bincount(torch.cat([part.digits for part in (train, validation, test)]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_training_scans_are_shuffled_and_shifted() -> None:
    images = torch.rand(10, 1, 8, 8)
    scans = Scans(images, torch.arange(10), batch=4, shift=1)
    torch.manual_seed(0)
    batches = [list(scans) for _ in range(8)]
    assert all(len(batch) == len(scans) == 2 for batch in batches)
    shifts = set()
    for x, digits in (pair for batch in batches for pair in batch):
        padded = torch.full((4, 1, 10, 10), -1.0)
        padded[:, :, 1:9, 1:9] = images[digits]
        found = [
            (i, j) for i in range(3) for j in range(3) if torch.equal(padded[:, :, i : i + 8, j : j + 8], x)
        ]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 4
    assert len({tuple(batch[0][1].tolist()) for batch in batches}) > 4
    plain = Scans(images, torch.arange(10), batch=4)
    assert len(plain) == 3
    assert torch.equal(torch.cat([x for x, _ in plain]), images)


def test_the_uniform_control_takes_the_same_share_everywhere() -> None:
    torch.manual_seed(0)
    model, example = DigitNet(), torch.zeros(1, 1, 8, 8)
    graph = trace_channels(model, example)
    spectra = measure_spectra(model, graph)
    ours = plan(model, example, macs=0.5, spectra=spectra, exclude=[glob.escape(graph.groups[0].name)])
    uniform = uniform_like(ours, graph, spectra)
    assert uniform.groups[0].width == uniform.groups[0].n
    shares = [group.width / group.n for group in uniform.groups[1:]]
    # All within one unit of the smallest group, 1/16, of each other.
    assert max(shares) - min(shares) <= 1 / 16 + 1e-9
    assert uniform.cost_after.macs <= ours.cost_after.macs
    # One more unit in the first group that would be next does not fit.
    nxt = min(uniform.groups[1:], key=lambda group: (group.width + 1) / group.n)
    more = {group.name: group.width + (group is nxt) for group in uniform.groups}
    from slimfast.plans.costs import count

    assert count(graph, more).macs > ours.cost_after.macs


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SlimfastError, match="cannot make the folder"):
        run_demo(tmp_path / "file" / "demo")
