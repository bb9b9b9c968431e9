"""The doctor names every backend it does not choose, and why."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from slimfast.diagnostics.doctor import EXTRAS, diagnose, version
from slimfast.kernels import native
from slimfast.kernels.dispatch import BACKENDS, OPS, select_backend, why_not
from slimfast.reports.plots import doctor_report


def shown(renderable) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_every_op_runs_on_the_cpu_by_what_dispatch_chooses():
    found = {op.op: op for op in diagnose().ops if op.device == "cpu"}
    sample = [torch.zeros(2, 2)]
    assert set(found) == set(OPS)
    for name, status in found.items():
        assert select_backend(name, sample).__name__.endswith(f".{status.chosen}")
        assert {b: list(why) for b, why in status.against.items()} == {
            b: why_not(name, sample, b) for b in BACKENDS
        }


def test_a_named_backend_is_chosen(monkeypatch):
    monkeypatch.setenv("SLIMFAST_BACKEND", "reference")
    found = diagnose()
    assert {op.chosen for op in found.ops} == {"reference"}
    assert "SLIMFAST_BACKEND=reference" in found.facts["environment"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CUDA backend runs here")
def test_a_named_backend_that_cannot_run_is_reported_and_not_raised(monkeypatch):
    monkeypatch.setenv("SLIMFAST_BACKEND", "cuda")
    found = diagnose()
    assert {op.chosen for op in found.ops} == {None}
    assert all(op.against["cuda"] for op in found.ops)
    assert "none" in shown(doctor_report(found))


def test_the_report_shows_facts_choices_and_reasons():
    found = diagnose()
    text = shown(doctor_report(found))
    for fact in (torch.__version__, version("numpy"), *EXTRAS):
        assert fact in text
    for op in found.ops:
        assert op.op in text
        for reason in op.against["cuda"]:
            assert reason[:40] in text


@pytest.mark.skipif(native.cpu().module is None, reason="slimfast._cpu is not built")
def test_the_instruction_sets_are_named():
    assert f"running {native.cpu().module.isa()} " in diagnose().facts["cpu kernels"]


def test_an_instruction_set_that_cannot_be_had_is_reported_and_not_raised(monkeypatch):
    reason = "SLIMFAST_ISA: expected baseline or avx2, got 'nonsense'"

    def isa() -> str:
        raise ValueError(reason)

    module = SimpleNamespace(isa=isa, available_isas=lambda: ["baseline", "avx2"])
    monkeypatch.setattr(native, "cpu", lambda: SimpleNamespace(module=module, reason=None))
    assert diagnose().facts["cpu kernels"] == f"built, but {reason}"


def test_kernels_that_do_not_load_say_why(monkeypatch):
    missing = native.Native(None, "slimfast._cpu does not load: for a reason")
    monkeypatch.setattr(native, "cpu", lambda: missing)
    found = diagnose()
    assert found.facts["cpu kernels"] == missing.reason
    assert all(op.against["cpu"] == (missing.reason,) for op in found.ops if op.device == "cpu")


def test_a_device_that_refuses_work_is_reported_and_not_raised(monkeypatch):
    zeros = torch.zeros

    def refuse(*shape: int, device: str) -> torch.Tensor:
        if device != "cpu":
            raise RuntimeError("all devices are busy\nand a page of advice")
        return zeros(*shape)

    monkeypatch.setattr(torch, "zeros", refuse)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    found = diagnose()
    assert found.facts["cuda"] == "CUDA 12.8: H100 (sm_90)"
    refused = [op for op in found.ops if op.device == "cuda:0"]
    assert [(op.chosen, op.against["torch"]) for op in refused] == [(None, ("all devices are busy",))] * len(
        OPS
    )
    assert "all devices are busy" in shown(doctor_report(found))


def test_a_missing_driver_is_told_from_a_build_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert diagnose().facts["cuda"] == "PyTorch is built for CUDA 12.8, but finds no device or driver"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert diagnose().facts["cuda"] == "this PyTorch is built without CUDA"


def test_missing_packages_are_said_to_be_missing(monkeypatch):
    monkeypatch.setitem(EXTRAS, "plot", ("no-such-distribution",))
    assert "no-such-distribution missing" in shown(doctor_report(diagnose()))


def test_json_has_everything():
    found = diagnose()
    read = json.loads(json.dumps(found.to_json()))
    assert read["facts"] == dict(found.facts)
    assert [op["chosen"] for op in read["ops"]] == [op.chosen for op in found.ops]


def test_a_fault_inside_is_not_taken_for_a_missing_backend(monkeypatch):
    def fail(*args):
        raise ValueError("a fault")

    monkeypatch.setattr("slimfast.diagnostics.doctor.select_backend", fail)
    with pytest.raises(ValueError, match=r"^a fault$"):
        diagnose()
