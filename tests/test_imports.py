"""Imports flow one way, and what a user does not need is not loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import slimfast

PACKAGE = Path(slimfast.__file__).parent

# Each room of the house and the rooms right below it; a room may import whatever lies below, and itself.
BELOW = {
    "errors": (),
    "native": (),
    "files": ("errors",),
    "dtensors": ("errors",),
    "kernels": ("files", "native"),
    "weights": ("kernels", "dtensors"),
    "distributed": ("errors",),
    "spectra": ("weights", "distributed"),
    "graph": ("errors",),
    "costs": ("graph",),
    "calibration": ("graph", "kernels"),
    "repair": ("calibration", "spectra"),
    "plans": ("costs", "spectra", "calibration"),
    "controls": ("plans",),
    "selection": ("plans",),
    "verification": ("plans",),
    "pruning": ("repair", "selection", "verification"),
    "checkpoints": ("pruning",),
    "shards": ("checkpoints",),
    "distillation": ("checkpoints",),
    "pretrained": ("checkpoints",),
    "doctor": ("kernels",),
    "models": ("weights",),
    "comparison": ("kernels",),
    "reports": ("distillation", "doctor", "comparison"),
    "demo": ("reports", "controls"),
    "cli": ("demo", "models", "shards", "pretrained"),
    "__main__": ("cli",),
    "__init__": ("distillation", "pretrained", "shards"),
}
# Files that share a room.
ROOM = {
    "_native": "native",
    "_json": "files",
    "_torchvision": "models",
    "manifests": "pruning",
    "onnx_files": "checkpoints",
    "readers": "calibration",
    "calibration_files": "calibration",
    "states": "pruning",
    "uniform": "pretrained",
    "unit_scores": "selection",
    "dcp": "weights",
    "streaming": "weights",
    "tensor_files": "weights",
}
# `spectra` knows no graph beyond the group's member list; a manifest is made of the graph's data.
EXCEPTIONS = {("spectra", "slimfast.graph.groups")}

OPTIONAL = ("accelerate", "matplotlib", "onnx", "onnxruntime", "onnxscript", "sklearn", "timm", "torchvision")


def room_of(module: str) -> str:
    """The room of a dotted module of slimfast (`slimfast` itself: its `__init__`)."""
    first = module.split(".")[1] if "." in module else "__init__"
    return ROOM.get(first, first)


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


def reachable(room: str) -> set[str]:
    """The rooms below a room."""
    found: set[str] = set()
    waiting = list(BELOW[room])
    while waiting:
        below = waiting.pop()
        if below not in found:
            found.add(below)
            waiting += BELOW[below]
    return found


def test_the_order_has_no_circle():
    assert [room for room in BELOW if room in reachable(room)] == []


def test_every_file_has_a_place():
    rooms = {
        room_of(f"slimfast.{path.stem if path.is_file() else path.name}")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - set(BELOW) == set()


def test_imports_flow_one_way():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = ".".join(("slimfast", *path.relative_to(PACKAGE).with_suffix("").parts))
        room = room_of(own)
        allowed = reachable(room) | {room}
        wrong += [
            f"{own} imports {name}"
            for name in sorted(imports_of(path))
            if room_of(name) not in allowed and (room, name) not in EXCEPTIONS
        ]
    assert wrong == []


def test_importing_slimfast_loads_no_optional_package():
    code = f"import sys, slimfast; print([name for name in {OPTIONAL!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.strip() == "[]"
