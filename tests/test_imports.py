"""Imports flow one way, files stay short, and what a user does not need is not loaded."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from support.paths import ROOT
from support.tools import load_tool

house = load_tool("house")

PACKAGE = ROOT / "slimfast"

# Rooms that know less than their floor would let them.
KNOWS_ONLY = {
    "spectra": {"graph": {"slimfast.graph.channel_graph", "slimfast.graph.computed_weights"}},
    "storage": {"graph": set()},
}

# The most lines that a file of Python, and one of C++ or CUDA, may have.
PYTHON_LINES, CPP_LINES = 300, 400

OPTIONAL = ("accelerate", "matplotlib", "onnx", "onnxruntime", "onnxscript", "sklearn", "timm", "torchvision")


def test_every_room_has_a_floor():
    assert house.rooms_of(PACKAGE) == {room for rooms in house.FLOORS for room in rooms}
    assert house.rooms_of(PACKAGE / "graph") == {room for rooms in house.GRAPH_FLOORS for room in rooms}


def test_imports_flow_one_way():
    assert house.against_the_flow(house.arrows_of(PACKAGE), house.FLOORS) == []


def test_imports_flow_one_way_inside_the_graph():
    assert house.against_the_flow(house.arrows_of(PACKAGE / "graph"), house.GRAPH_FLOORS) == []


@pytest.mark.parametrize("room", KNOWS_ONLY)
def test_a_room_knows_no_more_than_it_should(room):
    wrong = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for other, allowed in KNOWS_ONLY[room].items():
            of_other = {name for name in house.imports_of(path) if house.room_of(name) == other}
            wrong += [f"{house.module_of(path)} imports {name}" for name in sorted(of_other - allowed)]
    assert wrong == []


def test_no_submodule_is_named_like_what_its_package_exports():
    clashes = []
    for init in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(init.read_text())
        names = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom)
                 for alias in node.names if not house.is_module(f"{node.module}.{alias.name}")}  # fmt: skip
        names |= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        clashes += [f"{house.module_of(init)}.{name}" for name in sorted(names & house.rooms_of(init.parent))]
    assert clashes == []


def test_files_can_be_read_in_a_sitting():
    limits = dict.fromkeys(house.PYTHON, PYTHON_LINES) | dict.fromkeys(house.CPP, CPP_LINES)
    long = []
    for folder in house.FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in limits and house.lines_of(path) > limits[path.suffix]:
                long.append(f"{path.relative_to(ROOT)}: {house.lines_of(path)}")
    assert long == []


def test_importing_slimfast_loads_no_optional_package():
    code = f"import sys, slimfast; print([name for name in {OPTIONAL!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.strip() == "[]"
