"""Where Triton's kernels run in a test: on a GPU, or under its interpreter.

The interpreter has to be asked for before Triton is first imported. Where something in this process imported
Triton without it, the tests that run kernels do so in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from support.paths import ROOT

FLAG = "TRITON_INTERPRET"


def plain_triton_is_loaded() -> bool:
    """Whether Triton's own device functions, decorated when it is imported, are not the interpreter's."""
    return "triton" in sys.modules and not hasattr(sys.modules["triton.language"].cdiv, "rewrite")


def triton_device() -> Iterator[str]:
    """Where kernels run in this process, as long as a fixture lives."""
    if torch.cuda.is_available():
        yield "cuda"
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FLAG, "1")
        pytest.importorskip("triton")
        if plain_triton_is_loaded():
            pytest.skip("triton is loaded without its interpreter: these tests run in a process of their own")
        yield "cpu"


def run_where_triton_is_not_loaded(tests: str) -> None:
    """Run the file ``tests``, all but its "process" tests, in a process of its own where it has to be."""
    if torch.cuda.is_available() or not plain_triton_is_loaded():
        pytest.skip("the kernels run in this process")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", "not process"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {FLAG: "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
