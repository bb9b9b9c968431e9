"""The page of the public API says what there is."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import threading
from pathlib import Path

import pytest
from support.paths import ROOT
from support.tools import load_tool

import slimfast

PAGE = ROOT / "docs" / "reference" / "api.md"
api = load_tool("api")


def test_the_page_is_made_from_the_package() -> None:
    assert api.fill(PAGE.read_text()) == PAGE.read_text(), "run: python tools/api.py"


def test_every_public_name_is_there_once_with_a_sentence() -> None:
    listed = re.findall(r"^- `(\w+).*`  \n  (\S.*)$", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(slimfast.__all__)
    assert all(sentence.endswith((".", ":")) for _, sentence in listed)


def test_a_call_is_shown_as_it_is_written() -> None:
    def several(a, b: int, *c: str, d: float | None = None, **e: bool) -> list[int]: ...

    def keywords(a=1, *, b: str = "x", c): ...

    shown = "(a, b: int, *c: str, d: float | None = None, **e: bool) -> list[int]"
    assert api._arguments(several) == shown
    assert api._arguments(keywords) == "(a=1, *, b: str = 'x', c)"


FUNCTIONS = [name for name in slimfast.__all__ if inspect.isfunction(getattr(slimfast, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_verb_says_what_it_returns_and_shows_a_call(name: str) -> None:
    verb = getattr(slimfast, name)
    sections = dict(
        re.findall(r"^(\w+):\n((?:    .*\n|\n)+)", f"{inspect.getdoc(verb)}\n", flags=re.MULTILINE)
    )
    if inspect.signature(verb).return_annotation not in (None, "None"):
        assert sections["Returns"].strip()
    example = ast.parse(textwrap.dedent(sections["Example"]))
    called = [node.func for node in ast.walk(example) if isinstance(node, ast.Call)]
    assert name in {getattr(func, "attr", getattr(func, "id", None)) for func in called}


def test_all_is_sorted_and_typed() -> None:
    assert sorted(slimfast.__all__) == slimfast.__all__
    for name in slimfast.__all__:
        value = getattr(slimfast, name)
        if inspect.isfunction(value):
            assert inspect.signature(value).return_annotation is not inspect.Signature.empty, name
    assert (Path(slimfast.__file__).parent / "py.typed").exists()


def test_links_of_the_page_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target


def test_the_progress_of_the_page_stops_the_work() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    stop = names["stop"]
    assert isinstance(stop, threading.Event)
    stop.set()
    with pytest.raises(slimfast.Cancelled):
        exec(code.rsplit("\n\n", 1)[1], names)
