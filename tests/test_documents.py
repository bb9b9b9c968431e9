"""Files and modules of the repository that the documents name exist."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest
from support.paths import ROOT
from support.tools import load_tool

FOLDERS = ("slimfast", "csrc", "tests", "benchmarks", "tools", "docs")
FILES = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
PAGES.append("benchmarks/README.md")


def is_file(name: str) -> bool:
    """Whether a name or a pattern is that of a file, from the root or from some folder on."""
    return any(fnmatch(file, pattern) for pattern in (name, f"*/{name}") for file in FILES)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("page", PAGES)
def test_source_files_in_backticks_exist(page: str) -> None:
    # An op that is to be added has the files that gather has.
    text = (ROOT / page).read_text().replace("foo", "gather")
    names = re.findall(r"`([\w./*-]+\.(?:py|pyi|cpp|hpp|cu|cuh|def))(?::\w+)?`", text)
    assert [name for name in names if not is_file(name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_tests_and_tools_in_commands_exist(page: str) -> None:
    text = (ROOT / page).read_text().replace("foo", "gather")
    names = re.findall(r"(?<![\w/])((?:tests|tools)/[\w./*-]+\.(?:py|sh))", text)
    assert [name for name in names if not is_file(name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_of_every_page_exist(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    local = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_modules_in_commands_exist(page: str) -> None:
    names = re.findall(r"python -m ((?:slimfast|benchmarks|tests)[\w.]*\w)", (ROOT / page).read_text())
    assert [name for name in names if not is_module(name)] == []


def test_modules_in_the_benchmarks_own_commands_exist() -> None:
    named = [
        (path.relative_to(ROOT), name)
        for path in (ROOT / "benchmarks").rglob("*.py")
        for name in re.findall(r"python -m (benchmarks[\w.]*\w)", path.read_text())
    ]
    assert len(named) > 10
    assert [f"{path}: {name}" for path, name in named if not is_module(name)] == []


def test_the_rooms_of_the_contributing_page_are_those_of_the_house() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    # Without the package's own door.
    floors = load_tool("house").FLOORS[:-1]
    assert rows == [(str(height), room) for height, rooms in enumerate(floors) for room in rooms]
