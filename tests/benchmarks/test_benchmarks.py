"""The benchmark harness: shapes of real networks, bounds, timing, and runs that write results."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import nn

from benchmarks import run, tables, timing
from benchmarks.ops import cases, cusolver, eigvalsh, gather
from benchmarks.roofline import Roofline
from slimfast.checkpoints.torchvision_ops import prepare_torchvision

RATES = Roofline({"float32": 1e9, "float64": 1e9, "bfloat16": 1e9}, 1e9)
TIMM = {
    "VGG-16": "vgg16",
    "ResNet-50": "resnet50",
    "MobileNetV3-L": "mobilenetv3_large_100",
    "ConvNeXt-T": "convnext_tiny",
    "ConvNeXt-L": "convnext_large",
    "ViT-B": "vit_base_patch16_224",
    "ViT-L": "vit_large_patch16_224",
    "Swin-L": "swin_large_patch4_window7_224",
}


def layers_of(model: nn.Module) -> list[tuple[int, int]]:
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sorted((w.shape[0], w.numel() // w.shape[0]) for w in weights)


@pytest.mark.parametrize("name", TIMM)
def test_layers_are_those_of_the_published_network(name):
    prepare_torchvision()
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(TIMM[name])
    assert sorted(cases.network(name).layers) == layers_of(model)


def test_decoder_layers_are_those_of_llama_3_8b():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
        num_hidden_layers=2, vocab_size=16,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaModel(config)
    assert sorted(cases.network(cases.DECODER, blocks=2).layers) == layers_of(model)
    assert sum(n * d for n, d in cases.network(cases.DECODER).layers) == 6_979_321_856


def test_tensors_are_cut_to_half_and_image_channels_are_not():
    found, keeps = cases.tensors(cases.network("ResNet-50"))
    assert len(found) == 54 * 5
    assert {dim: len(index) for dim, index in keeps[0].items()} == {0: 32}
    assert [len(index) for keep in keeps[1:5] for index in keep.values()] == [32] * 4
    last = cases.network("ResNet-50").weights[-1]
    assert found[-5].shape == last
    assert {dim: len(index) for dim, index in keeps[-5].items()} == {0: 500, 1: 1024}


def test_quantiles_are_interpolated():
    assert timing.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert timing.quantile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert timing.quantile([0.0, 10.0, 20.0, 30.0, 40.0, 50.0], 0.2) == 10.0
    assert timing.quantile([7.0], 0.8) == 7.0
    assert timing.summarise([5.0, 1.0, 3.0]) == timing.Timing(3.0, pytest.approx(1.8), pytest.approx(4.2), 3)


class Clock:
    """A clock that only its runs move."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def __call__(self):
        return self.now

    def run(self, name, *durations):
        durations = itertools.cycle(durations)

        def go():
            self.order.append(name)
            self.now += next(durations)

        return go


def test_variants_are_timed_in_turn():
    clock = Clock()
    runs = {"a": clock.run("a", 1.0), "b": clock.run("b", 2.0, 4.0, 3.0)}
    found = timing.time_in_turn(runs, seconds=9.0, clock=clock)
    assert found["a"] == timing.Timing(1.0, 1.0, 1.0, 3)
    assert found["b"] == timing.Timing(3.0, pytest.approx(2.4), pytest.approx(3.6), 3)
    # Every round begins with another one, after the first look at each.
    assert clock.order == ["a", "b", "a", "b", "b", "a"]


def test_fast_variants_are_repeated_within_a_sample():
    clock = Clock()
    found = timing.time_in_turn({"a": clock.run("a", 1e-4)}, seconds=0.0, clock=clock)
    assert found["a"].median == pytest.approx(1e-4)
    assert len(clock.order) == 1 + 20 * found["a"].rounds


def test_preparing_is_not_on_the_clock():
    clock = Clock()
    prepared = timing.Prepared(clock.run("prepare", 5.0), lambda made: clock.run("run", 1.0)())
    found = timing.time_in_turn({"a": prepared}, seconds=3.0, clock=clock)
    assert found["a"].median == 1.0
    assert clock.order == ["prepare", "run"] * 3


def test_what_is_wrong_or_fails_is_not_timed():
    def fails():
        raise RuntimeError("no such thing\nat all")

    case = timing.Case(
        {timing.OURS: lambda: 0.0, "torch": lambda: 1.0, "best": fails, "cusolver": "no CUDA device"},
        error=lambda result: result,
        limit=0.5,
        bound=1.0,
        share={timing.OURS: 0.25},
    )
    found = timing.measure(timing.Row("row", ()), case, seconds=0.0)
    variants = found["variants"]
    assert variants["torch"] == {"error": 1.0, "wrong": "error 1.0e+00, at most 5e-01 is right"}
    assert variants["best"] == {"failed": "RuntimeError: no such thing"}
    assert variants["cusolver"] == {"not measured": "no CUDA device"}
    ours = variants[timing.OURS]
    assert ours["p20"] <= ours["seconds"] <= ours["p80"]
    assert ours["measured share of the work"] == 0.25


def test_a_run_writes_results_that_a_table_is_made_from(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "measure_roofline", lambda device, quick: RATES)
    assert run.main(["--quick", "--ops", "eigvalsh", "--json-dir", str(tmp_path)]) == 0
    assert "float32, m = 64, 32 matrices" in capsys.readouterr().out
    result = json.loads((tmp_path / "cpu-eigvalsh.json").read_text())
    assert result["stamp"]["machine"]["threads"] == torch.get_num_threads()
    quick = [row.name for row in eigvalsh.rows("cpu") if row.quick]
    assert [row["name"] for row in result["rows"]] == quick
    for row in result["rows"]:
        for name in (timing.OURS, "torch"):
            assert row["variants"][name]["seconds"] > 0
            assert row["variants"][name]["error"] < 1e-5
    text = tables.fill("<!-- table:cpu-eigvalsh -->\nold\n<!-- /table -->", tmp_path)
    assert "old" not in text
    assert text.count("\n| ") == len(eigvalsh.rows("cpu")) + 2
    assert "| float32, m = 16, 1000 matrices | not measured | not measured | not measured | 6 x" in text


def test_a_wrong_result_of_ours_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure_roofline", lambda device, quick: RATES)
    monkeypatch.setattr(eigvalsh, "grouped_eigvalsh", lambda mats: [torch.zeros(len(mat)) for mat in mats])
    assert run.main(["--quick", "--ops", "eigvalsh", "--json-dir", str(tmp_path)]) == 1


def test_rows_that_no_time_is_left_for_are_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure_roofline", lambda device, quick: RATES)
    assert run.main(["--minutes", "0", "--ops", "gather", "--json-dir", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "cpu-gather.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [row.name for row in gather.rows("cpu")]
    assert all(row["variants"] == {timing.OURS: {"not measured": "out of time"}} for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_suite_without_a_gpu_is_refused(tmp_path, capsys):
    assert run.main(["--suite", "gpu", "--json-dir", str(tmp_path / "results")]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "needs a CUDA device" in told.err
    assert not (tmp_path / "results").exists()
    assert cusolver.why_not() == "no CUDA device"


def test_products_of_16_bits_are_bounded_by_those_of_float32_where_these_are_faster():
    slow = Roofline({"float32": 1e9, "float64": 5e8, "bfloat16": 1e7}, 1e9)
    fast = Roofline({"float32": 1e9, "float64": 5e8, "bfloat16": 2e9}, 1e9)
    assert slow.product_seconds(2e9, torch.bfloat16) == 2.0
    assert fast.product_seconds(2e9, torch.bfloat16) == 1.0
    assert slow.product_seconds(2e9, torch.float32) == 2.0
    assert slow.product_seconds(2e9, torch.float64) == 4.0


@pytest.mark.parametrize("suite", run.SUITES)
@pytest.mark.parametrize("op", run.OPS)
def test_rows_have_names_of_their_own_and_targets_a_column(op, suite):
    module = run.OPS[op]
    rows = module.rows(suite)
    assert len({row.name for row in rows}) == len(rows)
    assert {target.against for row in rows for target in row.targets} <= set(module.COLUMNS[suite])
    assert any(row.quick for row in rows)
