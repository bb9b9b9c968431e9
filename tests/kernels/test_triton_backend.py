"""What the Triton backend says where it cannot run, and that nothing loads Triton before it is needed."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch
from support.paths import ROOT

from slimfast.errors import BackendUnavailable
from slimfast.kernels import grouped_eigvalsh, grouped_pivoted_cholesky
from slimfast.kernels.backends import triton as backend

FLAG = "TRITON_INTERPRET"


def test_why_not_tells_every_reason(monkeypatch):
    monkeypatch.delenv(FLAG, raising=False)
    x = torch.zeros(2, 2)
    assert backend.why_not("eigvalsh", [x]) == ["there is no Triton kernel for eigvalsh"]
    assert "tensors are on cpu, expected cuda" in backend.why_not("covariance", [x])
    assert "elements of 16 bytes, expected 1, 2, 4 or 8" in backend.why_not(
        "gather", [x.to(torch.complex128)]
    )
    monkeypatch.setenv(FLAG, "1")
    assert "tensors are on meta, expected cpu (TRITON_INTERPRET=1)" in backend.why_not(
        "gather", [x.to("meta")]
    )


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, "triton does not load: import of triton halted; None in sys.modules"),
        (types.SimpleNamespace(__version__="3.3.1"), "triton 3.3.1 is older than 3.4"),
        (types.SimpleNamespace(__version__="3.10.0+git"), None),
    ],
)
def test_why_not_looks_at_triton_itself(module, reason, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", module)
    monkeypatch.setenv(FLAG, "1")
    backend._why_no_triton.cache_clear()
    try:
        assert backend.why_not("covariance", [torch.zeros(2, 2)]) == ([reason] if reason else [])
    finally:
        backend._why_no_triton.cache_clear()


def test_what_triton_has_no_kernel_for_is_refused():
    mat = torch.eye(3)
    with pytest.raises(BackendUnavailable, match="there is no Triton kernel for eigvalsh"):
        grouped_eigvalsh([mat], backend="triton")
    with pytest.raises(BackendUnavailable, match="there is no Triton kernel for pivoted_cholesky"):
        grouped_pivoted_cholesky([mat], [1], backend="triton")
    with pytest.raises(BackendUnavailable, match="eigvalsh: backend 'triton' cannot run"):
        backend.eigvalsh([mat])
    with pytest.raises(BackendUnavailable, match="pivoted_cholesky: backend 'triton' cannot run"):
        backend.pivoted_cholesky([mat], [1])


def test_package_does_not_load_triton_in_a_process():
    code = "import slimfast, slimfast.kernels.backends.triton, sys; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
