"""The documents are right: what they name exists, and their programs run."""

from __future__ import annotations

import inspect
import re
import runpy
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support.paths import ROOT
from support.tools import load_tool

import slimfast
from slimfast.checkpoints.torchvision_ops import prepare_torchvision

site = load_tool("site")
FOLDERS = ("slimfast", "csrc", "tests", "benchmarks", "tools", "docs")
FILES = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
PAGES.append("benchmarks/README.md")
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))


def blocks(page: str) -> list[str]:
    """The Python blocks of a page that run in one process on a CPU; the others are marked."""
    return re.findall(r"(?<!-->\n)^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and torchvision and timm made ready where their operators are missing."""
    monkeypatch.chdir(tmp_path)
    prepare_torchvision()


def needed(code: str) -> None:
    """Skip a program that needs a package that is not installed."""
    for package in set(re.findall(r"^(?:import|from) (\w+)", code, re.M)):
        pytest.importorskip(package)


# Another test runs the page about YOLO, whose package changes the process around it.
RUN = [page for page in PAGES if blocks(page) and not page.endswith("ultralytics.md")]


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("page", RUN)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str) -> None:
    scope: dict[str, object] = {}
    for code in blocks(page):
        needed(code)
        exec(compile(code, page, "exec"), scope)


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path, tmp_path: Path) -> None:
    needed(path.read_text())
    needed("import accelerate")
    runpy.run_path(str(path))
    left = [name for name in tmp_path.iterdir() if name.name.startswith(".")]
    assert left == []


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / page).read_text())
    assert [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text()] == []


def test_the_page_of_the_command_line_is_made_from_the_commands() -> None:
    tool = load_tool("cli_page")
    assert tool.page() == tool.PAGE.read_text(), "run: python tools/cli_page.py"


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": ([\w./-]+\.(?:md|py))$", (ROOT / "mkdocs.yml").read_text(), re.M)
    pages = [page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")]
    pages += [f"tutorials/{path.name}" for path in TUTORIALS]
    assert sorted(listed) == sorted(pages)


def test_examples_of_docstrings_are_code_on_the_site() -> None:
    pytest.importorskip("griffe")
    with_code = load_tool("docstring_examples").with_code
    text = "Do it.\n\nArgs:\n    x: One.\n\nExample:\n    y = do(x)\n    if y:\n        print(y)"
    code = "    ```python\n    y = do(x)\n    if y:\n        print(y)\n    ```\n"
    assert with_code(text) == text.partition("    y")[0] + code
    assert with_code("Do it.") == "Do it.\n"


def test_signatures_of_the_site_list_the_width_options_as_the_verbs_do() -> None:
    griffe = pytest.importorskip("griffe")
    extensions = griffe.Extensions(load_tool("width_options").WidthOptions())
    package = griffe.load("slimfast", search_paths=[ROOT], extensions=extensions, allow_inspection=False)
    seen = []
    for name in slimfast.__all__:
        verb = getattr(slimfast, name)
        if inspect.isfunction(verb):
            read = package[f"{verb.__module__}.{name}".removeprefix("slimfast.")].parameters
            signature = inspect.signature(verb).parameters.values()
            assert [p.name for p in read] == [p.name for p in signature], name
            told = {p.name: p.default for p in read if p.name in ("multiple_of", "min_width", "macs")}
            if "min_width" in told:
                seen.append(name)
                assert told.get("multiple_of", "1") == told["min_width"] == "1", name
                assert told["macs"] == "None", name
    assert {"plan", "plan_widths", "plan_checkpoint", "slim", "rounds", "trade_off"} <= set(seen)


def test_links_that_leave_the_pages_go_to_the_repository() -> None:
    text = "[a](../../benchmarks/README.md#x) [b](zoo.md) [c](https://d) ![e](images/f.svg)"
    kept = "[b](zoo.md) [c](https://d) ![e](images/f.svg)"
    assert site.outside_links(text, "evidence/index.md", "") == f"a {kept}"
    there = site.outside_links(text, "evidence/index.md", "https://h/o/r/")
    assert there == f"[a](https://h/o/r/blob/main/benchmarks/README.md) {kept}"


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
