"""The README's code runs, its links exist, and the options in its commands are real."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from slimfast.checkpoints.torchvision_ops import prepare_torchvision
from slimfast.cli import main

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md"]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in that language ("" for none)."""
    text = (ROOT / page).read_text()
    return [body for name, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if name == language]


def commands() -> list[str]:
    """The slimfast commands in the README's shell blocks, without comments."""
    lines = [line for block in blocks("README.md", "") for line in block.splitlines()]
    return [line for line in lines if line.startswith("slimfast ")]


def test_the_quick_start_is_short_and_gives_a_thin_network(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torchvision")
    prepare_torchvision()
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md", "python")
    statements = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 8
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert "explained variance" in capsys.readouterr().out
    assert (tmp_path / "thin.safetensors").stat().st_size > 0
    assert scope["plan"].cost_after.macs <= 0.5 * scope["plan"].cost_before.macs


def test_the_readme_is_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_exist(page):
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_the_readme_shows_commands():
    assert len(commands()) >= 3


@pytest.mark.parametrize("command", commands())
def test_the_options_of_shown_commands_exist(command, capsys):
    words = shlex.split(command, comments=True)[1:]
    assert main([words[0], "--help"]) == 0
    text = capsys.readouterr().out
    assert [word for word in words if word.startswith("-") and word not in text] == []
