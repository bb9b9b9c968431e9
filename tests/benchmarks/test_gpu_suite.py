"""``benchmarks.run --suite gpu`` on CPU tensors and small shapes: it must not die on a GPU's first minute."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import prod
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import run, timing
from benchmarks.ops import cases, covariance, eigvalsh, gather, pivoted_cholesky, spectra
from benchmarks.roofline import Roofline
from slimfast.kernels import Prepared, grouped_gather

RATES = Roofline({"float32": 1e9, "float64": 1e9, "bfloat16": 1e9}, 1e9)
# Without the pipeline: it takes models of timm at full size.
OPS = ("spectra", "eigvalsh", "covariance", "gather", "pivoted_cholesky")


def shrink_rows(monkeypatch: pytest.MonkeyPatch, op: ModuleType, small: Callable[..., Any]) -> None:
    """Give each row of an op the parameters that ``small`` makes of its own."""
    rows = [replace(row, parameters=small(*row.parameters)) for row in op.rows("gpu")]
    monkeypatch.setattr(op, "rows", lambda suite: rows)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of the suite with shapes that take milliseconds, on the CPU; as on a GPU otherwise."""
    network = cases.network

    def shrunk(name: str, *, blocks: int = 32) -> cases.Network:
        net = network(name, blocks=min(blocks, spectra.DECODER_DEPTH))
        weights = tuple(tuple(max(n // 64, 2) for n in shape[:2]) + shape[2:] for shape in net.weights)
        return cases.Network(name, weights, min(net.vectors, 1), net.dtype)

    monkeypatch.setitem(run.DEVICES, "gpu", "cpu")
    monkeypatch.setattr(run, "measure_roofline", lambda device, quick: RATES)
    monkeypatch.setitem(run.ROW_SECONDS, "gpu", 0.0)
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 1e-9)
    monkeypatch.setattr(cases, "network", shrunk)
    monkeypatch.setattr(spectra, "DECODER_DEPTH", 4)
    monkeypatch.setattr(spectra, "_peak", lambda name, xs, device: {timing.PEAK: 1})
    shrink_rows(monkeypatch, covariance, lambda dtype, n, d, count: (dtype, n // 64, d // 64, count))
    shrink_rows(monkeypatch, eigvalsh, lambda dtype, m, count, of_torch: (dtype, max(m // 32, 2), 4, 2))
    shrink_rows(monkeypatch, pivoted_cholesky, lambda n, count: (n // 16, 2))
    # Calls made ready are a GPU's.
    monkeypatch.setattr(
        gather, "prepare_gather", lambda ts, keeps, backend: Prepared(grouped_gather(ts, keeps), lambda: None)
    )


def test_every_row_of_every_op_is_measured(small: None, tmp_path) -> None:
    arguments = ["--suite", "gpu", "--json-dir", str(tmp_path), "--ops", *OPS]
    assert run.main(arguments) == 0
    for op in OPS:
        result = json.loads((tmp_path / f"gpu-{op}.json").read_text())
        assert [row["name"] for row in result["rows"]] == [row.name for row in run.OPS[op].rows("gpu")]
        for row in result["rows"]:
            variants = row["variants"]
            for name in (timing.OURS, "torch"):
                assert variants[name].get("seconds", 0) > 0, (row["name"], variants[name])
            assert row["bound"] > 0


def test_a_run_that_was_cut_off_goes_on_where_it_was(
    small: None, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    case = gather.case

    def cut_off(row, device, roofline):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(row.name)
        return case(row, device, roofline)

    monkeypatch.setattr(gather, "case", cut_off)
    names = [row.name for row in gather.rows("gpu")]
    arguments = ["--suite", "gpu", "--json-dir", str(tmp_path), "--ops", "gather", "--resume"]
    with pytest.raises(KeyboardInterrupt):
        run.main(arguments)
    path = tmp_path / "gpu-gather.json"
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == names[:2]
    monkeypatch.setattr(gather, "case", lambda *given: measured.append(given[0].name) or case(*given))
    assert run.main(arguments) == 0
    assert measured == names
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == names
    # Another commit's figures are not its own.
    monkeypatch.setattr(
        run, "stamp", lambda device: json.loads(path.read_text())["stamp"] | {"commit": "other"}
    )
    assert run.main(arguments) == 0
    assert measured == [*names, *names]


def test_a_machine_without_a_profiler_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_profiler(ours):
        raise RuntimeError("CUPTI does not load\nand more")

    monkeypatch.setattr(run, "kernel_times", no_profiler)
    assert run._profiled(lambda: None) == {"failed": "RuntimeError: CUPTI does not load"}


def test_a_saturated_batch_has_a_matrix_for_every_multiprocessor() -> None:
    assert all(row.parameters[2] >= 132 for row in eigvalsh.rows("gpu"))


def test_the_plain_loop_of_one_layer_of_each_shape_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # A layer's time is its number of units here.
    monkeypatch.setattr(spectra, "_seconds", lambda x: float(x.shape[0]))
    shapes = ((4, 6), (8, 3), (4, 6), (4, 6), (8, 3))
    net = cases.Network("net", shapes, 0)
    monkeypatch.setattr(cases, "network", lambda name, blocks: net)
    monkeypatch.setattr(spectra, "_peak", lambda name, xs, device: {})
    monkeypatch.setattr(cases, "matrices", lambda net, device: [torch.randn(shape) for shape in net.weights])
    row = timing.Row("net", ("net",))
    made = spectra.case(row, "cuda", RATES)
    assert made.share["torch"] == pytest.approx((4 + 8) / (3 * 4 + 2 * 8))
    assert sorted(made.variants["torch"]()) == [0, 1]
    assert spectra.case(row, "cpu", RATES).share["torch"] == 1.0


@pytest.mark.parametrize(
    ("shape", "dtype", "keep"),
    [
        ((6, 40), torch.bfloat16, {0: torch.tensor([1, 4]), 1: torch.tensor([0, 15, 16, 39])}),
        ((6, 40), torch.float32, {1: torch.tensor([0, 7, 8, 20])}),
        ((6, 16, 3, 3), torch.float32, {0: torch.tensor([0, 5]), 1: torch.tensor([0, 3, 4, 15])}),
        ((6, 24), torch.float32, {0: torch.tensor([2])}),
        ((50,), torch.float32, {0: torch.arange(3)}),
        ((9, 3, 3, 3), torch.float32, {0: torch.tensor([1, 2, 8])}),
        ((9, 5, 3, 3), torch.float32, {0: torch.tensor([0, 7]), 1: torch.tensor([1, 4])}),
    ],
)
@pytest.mark.parametrize("sector", [32, 64])
def test_sectors_are_counted_as_memory_is_read(shape, dtype, keep, sector) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    offsets = torch.arange(prod(shape)).view(shape)
    for dim, index in keep.items():
        offsets = offsets.index_select(dim, index)
    sectors = {o * tensor.element_size() // sector for o in offsets.flatten().tolist()}
    assert gather._sector_bytes(tensor, keep, sector) == len(sectors) * sector
