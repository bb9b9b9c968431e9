"""Imports flow one way, and what a user does not need is not loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "slimfast"

# A room imports from itself and from the floors below its own; rooms of one floor do not know each other.
FLOORS = (
    ("errors", "arrays"),
    ("distributed", "kernels", "graph"),
    ("storage", "diagnostics"),
    ("spectra", "calibration"),
    ("plans",),
    ("pruning",),
    ("checkpoints", "huggingface", "distillation"),
    ("reports",),
    ("cli",),
    ("__init__", "__main__"),
)
GRAPH_FLOORS = (
    ("channel_graph",),
    ("recording",),
    ("propagation", "cutting"),
    ("trial",),
    ("trace",),
    ("__init__",),
)
# Rooms that know less than their floor would let them.
KNOWS_ONLY = {
    "spectra": {"graph": {"slimfast.graph.channel_graph"}},
    "storage": {"graph": set()},
}

OPTIONAL = ("accelerate", "matplotlib", "onnx", "onnxruntime", "onnxscript", "sklearn", "timm", "torchvision")


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(path: Path) -> set[str]:
    """The modules of slimfast that a file imports, wherever in it, in full."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in submodules if exists(name)}
            found |= known
            if len(known) < len(submodules):
                found.add(node.module)
    return {name for name in found if name.partition(".")[0] == "slimfast"}


def exists(module: str) -> bool:
    path = PACKAGE.parent / module.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def room_of(module: str, depth: int) -> str:
    """The part of a dotted name that says its room; ``__init__`` for the package that holds the rooms."""
    parts = module.split(".")
    return parts[depth] if len(parts) > depth else "__init__"


def against_the_flow(folder: Path, floors: tuple[tuple[str, ...], ...], depth: int) -> list[str]:
    """The imports within ``folder`` of a room on the same floor or on one above."""
    floor = {room: i for i, rooms in enumerate(floors) for room in rooms}
    prefix = module_of(folder / "__init__.py") if depth > 1 else "slimfast"
    wrong = []
    for path in sorted(folder.rglob("*.py")):
        own = module_of(path)
        room = room_of(own, depth)
        for name in sorted(imports_of(path)):
            if name != prefix and not name.startswith(f"{prefix}."):
                continue
            other = room_of(name, depth)
            if other != room and floor[other] >= floor[room]:
                wrong.append(f"{own} imports {name}")
    return wrong


def rooms_of(folder: Path) -> set[str]:
    """The packages and modules right in a folder."""
    inside = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return {path.stem for path in inside}


def test_every_room_has_a_floor():
    assert rooms_of(PACKAGE) == {room for rooms in FLOORS for room in rooms}
    assert rooms_of(PACKAGE / "graph") == {room for rooms in GRAPH_FLOORS for room in rooms}


def test_imports_flow_one_way():
    assert against_the_flow(PACKAGE, FLOORS, 1) == []


def test_imports_flow_one_way_inside_the_graph():
    assert against_the_flow(PACKAGE / "graph", GRAPH_FLOORS, 2) == []


@pytest.mark.parametrize("room", KNOWS_ONLY)
def test_a_room_knows_no_more_than_it_should(room):
    wrong = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for other, allowed in KNOWS_ONLY[room].items():
            of_other = {name for name in imports_of(path) if room_of(name, 1) == other}
            wrong += [f"{module_of(path)} imports {name}" for name in sorted(of_other - allowed)]
    assert wrong == []


def test_no_submodule_is_named_like_what_its_package_exports():
    clashes = []
    for init in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(init.read_text())
        names = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom)
                 for alias in node.names if not exists(f"{node.module}.{alias.name}")}  # fmt: skip
        names |= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        clashes += [f"{module_of(init)}.{name}" for name in sorted(names & rooms_of(init.parent))]
    assert clashes == []


def test_importing_slimfast_loads_no_optional_package():
    code = f"import sys, slimfast; print([name for name in {OPTIONAL!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.strip() == "[]"
