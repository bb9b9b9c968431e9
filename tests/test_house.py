"""The count of rooms, imports and lines, on a small checkout made by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from support.tools import load_tool

house = load_tool("house")

FILES = {
    "slimfast/__init__.py": "from slimfast.plans import plan\n",
    "slimfast/errors.py": "class Wrong(Exception):\n    pass\n",
    "slimfast/plans/__init__.py": "from slimfast.plans.planning import plan\n",
    "slimfast/plans/planning.py": (
        "import slimfast.errors\nfrom slimfast.graph import trace\n\n\ndef plan():\n    return trace\n"
    ),
    "slimfast/graph/__init__.py": "from slimfast.graph.tracing import trace\n",
    "slimfast/graph/tracing.py": "from slimfast.errors import Wrong\n\ntrace = Wrong\n",
    "csrc/cpu/one.cpp": "int one() { return 1; }\n",
    "csrc/cpu/one.hpp": "int one();\n",
    "tests/test_one.py": "def test():\n    def inner():\n        pass\n\n    inner()\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in house.FOLDERS:
        (tmp_path / folder).mkdir()
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_arrows_are_between_rooms_and_name_their_imports(checkout: Path) -> None:
    assert house.arrows_of(checkout / "slimfast", checkout) == {
        ("__init__", "plans"): ["slimfast imports slimfast.plans"],
        ("plans", "errors"): ["slimfast.plans.planning imports slimfast.errors"],
        ("plans", "graph"): ["slimfast.plans.planning imports slimfast.graph"],
        ("graph", "errors"): ["slimfast.graph.tracing imports slimfast.errors"],
    }
    assert house.arrows_of(checkout / "slimfast" / "graph", checkout) == {
        ("__init__", "tracing"): ["slimfast.graph imports slimfast.graph.tracing"]
    }


def test_an_import_of_the_same_floor_or_one_above_is_against_the_flow() -> None:
    arrows = {
        ("low", "high"): ["a imports b"],
        ("high", "low"): ["c imports d"],
        ("low", "even"): ["e imports f"],
    }
    assert house.against_the_flow(arrows, (("low", "even"), ("high",))) == ["a imports b", "e imports f"]


def test_rooms_in_a_circle_are_seen_without_a_table() -> None:
    circle = [("a", "b"), ("b", "c"), ("c", "a")]
    assert house.in_circles([*circle, ("c", "d"), ("e", "a")]) == circle
    assert house.in_circles([("a", "b"), ("a", "c"), ("b", "c")]) == []


def test_the_floors_are_the_rooms_on_the_longest_way() -> None:
    assert house.floors_of([("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")]) == 3
    assert house.floors_of([]) == 1


def test_a_relative_import_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("\nfrom . import b\n")
    with pytest.raises(ValueError, match=r"a\.py:2: expected imports by full name"):
        house.imports_of(tmp_path / "a.py", tmp_path)


def test_everything_of_a_checkout_is_counted(checkout: Path) -> None:
    counted = house.count(checkout)
    rooms = {"rooms": 3, "floors": 3, "arrows": 3, "in_circles": 0, "against": 0}
    assert counted["rooms"]["slimfast"] == rooms
    # The room of the graph has no place in the order that is held.
    assert counted["rooms"]["slimfast.graph"] == rooms | {
        "rooms": 1,
        "floors": 1,
        "arrows": 0,
        "against": None,
    }
    assert counted["lines"]["csrc"] == {"python": {"files": 0, "lines": 0}, "cpp": {"files": 2, "lines": 2}}
    assert counted["lines"]["slimfast"]["python"] == {"files": 6, "lines": 14}
    assert counted["longest_files"][:2] == [["slimfast/plans/planning.py", 6], ["tests/test_one.py", 5]]
    assert counted["longest_functions"] == [
        ["tests/test_one.py:test", 5],
        ["slimfast/plans/planning.py:plan", 2],
        ["tests/test_one.py:inner", 2],
    ]


def test_the_program_prints_a_table_or_json_of_the_checkout_it_is_given(checkout: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / "house.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert json.loads(run(str(checkout), "--json").stdout) == house.count(checkout)
    table = [line.split() for line in run(str(checkout)).stdout.splitlines()]
    assert ["slimfast", "3", "3", "3", "0", "0"] in table
    assert ["slimfast.graph", "1", "1", "0", "0", "no", "order"] in table
    assert ["slimfast/plans/planning.py:plan", "2"] in table
    empty = run(str(checkout / "csrc"))
    assert (empty.returncode, empty.stdout) == (2, "")
    assert empty.stderr == f"house: expected a checkout with slimfast/, got {checkout / 'csrc'}\n"
