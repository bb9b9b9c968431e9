"""Ctrl-C at the command at any moment from its first import on: one line, and status 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

from slimfast import interrupts
from slimfast.cli import main

SCRIPT = "import sys\nfrom slimfast.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
# Python says on stderr which module it has imported; after these, in their order, Ctrl-C is pressed.
MOMENTS = (
    "slimfast.interrupts",
    "numpy._core._multiarray_umath",
    "torch._C",
    "torch.nn",
    "torch",
    "safetensors",
    "slimfast.kernels",
    "slimfast.plans",
    "typer",
    "slimfast.cli",
)


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Let Ctrl-C mean something in what the tests start, also where they run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_after(module: str, command: list[str], folder: Path) -> tuple[int, list[str]]:
    """Press Ctrl-C when a module is imported; the status, and what the command says."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said, imported, pressed = [], set(), False
    for line in process.stderr:
        if not line.startswith("import time:"):
            said.append(line)
            continue
        imported.add(line.rpartition("|")[2].strip())
        if module in imported and not pressed:
            process.send_signal(signal.SIGINT)
            pressed = True
    process.communicate(timeout=60)
    assert pressed, f"{module} was never imported"
    return process.returncode, said


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script that an installation makes."""
    (tmp_path / "slimfast").write_text(SCRIPT)
    return tmp_path / "slimfast"


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_while_the_command_starts(moment: str, script: Path, tmp_path: Path) -> None:
    status, said = interrupted_after(moment, [str(script), "doctor"], tmp_path)
    assert (status, said) == (130, [interrupts.LINE])


@pytest.mark.parametrize("moment", ["slimfast.interrupts", "torch._C", "slimfast.plans"])
def test_ctrl_c_while_the_module_starts(moment: str, tmp_path: Path) -> None:
    status, said = interrupted_after(moment, ["-m", "slimfast", "doctor"], tmp_path)
    assert (status, said) == (130, [interrupts.LINE])


def test_a_program_that_imports_slimfast_keeps_its_own_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, signal\nimport slimfast, slimfast.cli\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    signal.pause()\n"
        "except KeyboardInterrupt:\n    print('mine')\n"
    )
    done = subprocess.run(
        [sys.executable, "mine.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine\n", "")


def test_only_the_command_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for first, whole, expected in (
        ("/usr/bin/slimfast", ["python3", "/usr/bin/slimfast", "plan"], True),
        ("-m", ["python3", "-m", "slimfast"], True),
        ("/x/slimfast/__main__.py", ["python3", "-m", "slimfast"], True),
        ("-m", ["python3", "-m", "pytest", "slimfast"], False),
        ("/x/slimfast.py", ["python3", "slimfast.py"], False),
        ("-c", ["python3", "-c", "import slimfast"], False),
        ("/usr/bin/slimfast", ["python3", "-c", "...", "--multiprocessing-fork"], False),
        ("", ["python3"], False),
    ):
        monkeypatch.setattr(sys, "argv", [first])
        monkeypatch.setattr(sys, "orig_argv", whole)
        assert interrupts.is_the_command() is expected, (first, whole)


def test_what_the_caller_does_with_ctrl_c_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/slimfast"])
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGINT, handler)
            interrupts.end_in_one_line()
            assert signal.getsignal(signal.SIGINT) is handler
            assert main(["--version"]) == 0
            assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.end_in_one_line()
        while_starting = signal.getsignal(signal.SIGINT)
        assert while_starting is not signal.default_int_handler
        with interrupts.raised():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is while_starting
    finally:
        signal.signal(signal.SIGINT, before)
