"""Which backend runs an op: preference, names, reasons, and never a silent fallback."""

from __future__ import annotations

import pytest
import torch

from slimfast.errors import BackendUnavailable
from slimfast.kernels import dispatch, native
from slimfast.kernels.backends.contract import Backend
from slimfast.kernels.ops import grouped_covariance, grouped_eigvalsh, grouped_gather


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIMFAST_BACKEND", raising=False)


@pytest.fixture
def cpu_module_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        native, "cpu", lambda: native.Native(None, "slimfast._cpu does not load: no such file")
    )


@pytest.mark.parametrize("op", dispatch.OPS)
def test_auto_takes_the_compiled_backend_on_the_cpu(op: str) -> None:
    assert dispatch.select_backend(op, [torch.eye(2)]) is dispatch.backend_module("cpu")
    assert dispatch.why_not(op, [torch.eye(2)], "cpu") == []


@pytest.mark.parametrize("name", dispatch.BACKENDS)
def test_every_backend_has_the_same_functions(name: str) -> None:
    module = dispatch.backend_module(name)
    assert isinstance(module, Backend)
    assert all(callable(getattr(module, op)) for op in dispatch.OPS)
    assert set(module.PREPARE) <= set(dispatch.OPS)


def test_auto_goes_on_to_the_reference_and_a_name_does_not(cpu_module_missing: None) -> None:
    assert dispatch.select_backend("eigvalsh", [torch.eye(2)]) is dispatch.backend_module("reference")
    message = "eigvalsh: backend 'cpu' cannot run: slimfast._cpu does not load: no such file"
    with pytest.raises(BackendUnavailable, match=message):
        grouped_eigvalsh([torch.eye(2)], backend="cpu")


def test_float64_covariances_prefer_cuda_to_triton_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    xs = [torch.randn(3, 5), torch.randn(4, 6, dtype=torch.float64), torch.randn(5, 7).bfloat16()]
    asked = []
    for name in ("triton", "cuda"):
        module = dispatch.backend_module(name)
        monkeypatch.setattr(module, "why_not", lambda op, inputs: [])

        def covariance(xs, rows, dtypes, name=name):
            asked.append((name, [x.dtype for x in xs]))
            return dispatch.backend_module("reference").covariance(xs, rows, dtypes)

        monkeypatch.setattr(module, "covariance", covariance)
    monkeypatch.setattr(dispatch.backend_module("cpu"), "why_not", lambda op, inputs: ["tensors on cuda"])
    found = grouped_covariance(xs)
    assert sorted(asked) == [("cuda", [torch.float64]), ("triton", [torch.float32, torch.bfloat16])]
    for x, matrix, trace in zip(xs, found.matrices, found.traces, strict=True):
        exact = torch.cov(x.double())
        assert torch.allclose(matrix.double(), exact, atol=1e-6)
        assert torch.isclose(trace, exact.trace())
    asked.clear()
    grouped_covariance(xs, dtype=torch.float64)
    assert [name for name, _ in asked] == ["cuda"]


def test_the_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFAST_BACKEND", "reference")
    assert dispatch.select_backend("gather", [torch.eye(2)]) is dispatch.backend_module("reference")
    assert dispatch.select_backend("gather", [torch.eye(2)], "cpu") is dispatch.backend_module("cpu")
    monkeypatch.setenv("SLIMFAST_BACKEND", "fortran")
    with pytest.raises(
        ValueError, match=r"expected one of auto, cpu, cuda, triton, reference, got 'fortran'$"
    ):
        dispatch.select_backend("gather", [torch.eye(2)])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backend: expected one of auto, .* got 'gpu'"):
        grouped_eigvalsh([torch.eye(2)], backend="gpu")
    with pytest.raises(
        ValueError, match=r"op: expected one of covariance, .* got 'eigvals' \(did you mean 'eigvalsh'"
    ):
        dispatch.why_not("eigvals", [], "cpu")


def test_the_cpu_backend_tells_every_reason(cpu_module_missing: None) -> None:
    inputs = [torch.empty(2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex128)]
    assert dispatch.why_not("gather", inputs, "cpu") == [
        "slimfast._cpu does not load: no such file",
        "tensors on meta, not on the CPU",
        "tensors of layout torch.sparse_coo",
        "elements of torch.complex128",
    ]


def test_what_one_backend_cannot_move_another_does() -> None:
    wide = torch.arange(6).to(torch.complex128)
    (thin,) = grouped_gather([wide], [{0: torch.tensor([1, 4])}])
    assert thin.tolist() == [1, 4]
    with pytest.raises(BackendUnavailable, match=r"elements of torch.complex128"):
        grouped_gather([wide], [{0: torch.tensor([1, 4])}], backend="cpu")
