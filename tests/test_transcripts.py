"""The sessions of docs/transcripts.md, from an empty folder, command by command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

PAGE = (ROOT / "docs" / "transcripts.md").read_text()
FILES = re.findall(r'^```python title="([\w.]+)"\n(.*?)^```', PAGE, re.M | re.S)
SESSIONS = re.findall(r"^```console\n(.*?)^```", PAGE, re.M | re.S)
# The programs of the user, for each package that they want.
for package in ("accelerate", "onnxscript", "onnxruntime", "PIL", "sklearn", "transformers"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the user's files, and the commands that the sessions type."""
    made = tmp_path_factory.mktemp("session")
    for name, text in FILES:
        (made / name).write_text(text)
    commands = made.with_name("commands")
    commands.mkdir()
    # Where torchvision does not load beside this PyTorch, transformers needs to be told so.
    (commands / "sitecustomize.py").write_text(
        "from slimfast.checkpoints.torchvision_ops import prepare_torchvision\nprepare_torchvision()\n"
    )
    for name, module in (("python", ""), ("slimfast", "-m slimfast")):
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    return made


def pieces(session: str) -> list[tuple[str, list[str]]]:
    """The commands of a session, each with what it is to print."""
    parts = re.split(r"^\$ ", session, flags=re.M)[1:]
    return [(lines[0], lines[1:]) for lines in (part.splitlines() for part in parts)]


def without_numbers(line: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"-{3,}", "---", re.sub(r"\d[\d.,]*[KMG]?", "#", line))).strip()


def missing(wanted: list[str], printed: str) -> list[str]:
    """The wanted lines that are not among the printed ones, in this order."""
    lines = iter(without_numbers(line) for line in printed.splitlines())
    return [line for line in wanted if line != "..." and without_numbers(line) not in lines]


def run(command: str, folder: Path) -> str:
    commands = folder.with_name("commands")
    surroundings = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": f"{commands}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        # Both streams in the order they are written in, as on a terminal.
        "PYTHONUNBUFFERED": "1",
    }
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize("session", range(len(SESSIONS)))
def test_a_session_prints_what_the_page_shows(folder: Path, session: int) -> None:
    if session == 1 and not (folder / "best.ckpt").exists():
        run("python make.py", folder)
    for command, wanted in pieces(SESSIONS[session]):
        printed = run(command, folder)
        assert missing(wanted, printed) == [], printed


def test_a_line_that_is_not_printed_is_found() -> None:
    printed = "wrote a.json\nscore 0.93\nother 3K"
    assert missing(["wrote a.json", "...", "score 0.95", "other 17M"], printed) == []
    assert missing(["score 0.95", "wrote a.json"], printed) == ["wrote a.json"]
    assert missing(["scores 0.95"], printed) == ["scores 0.95"]


def test_there_are_three_sessions() -> None:
    assert [len(pieces(session)) for session in SESSIONS] == [4, 1, 4]
