"""Count rooms, imports and lines of a checkout: ``python tools/house.py [FOLDER] [--json]``.

A room is a package or a module right in ``slimfast/``, or right in ``slimfast/graph/``; an arrow says that
some file of one room imports from another. ``FLOORS`` and ``GRAPH_FLOORS`` are the order that
``tests/test_imports.py`` holds the rooms to. A checkout whose rooms have no place there, as those of an
earlier commit, is counted all the same; rooms that import each other in a circle need no table to be seen.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "slimfast"

# A room imports from itself and from the floors below its own; rooms of one floor do not know each other.
FLOORS = (
    ("errors", "arrays", "interrupts"),
    ("wrappers",),
    ("distributed", "kernels", "graph"),
    ("storage", "diagnostics"),
    ("spectra", "calibration", "latency", "memory"),
    ("plans",),
    ("pruning",),
    ("checkpoints", "huggingface", "distillation"),
    ("gradual", "studies"),
    ("reports",),
    ("cli",),
    ("__init__", "__main__"),
)
GRAPH_FLOORS = (
    ("axes", "computed_weights", "group_names"),
    ("channel_graph",),
    ("recording",),
    ("propagation", "cutting"),
    ("trial",),
    ("trace",),
    ("__init__",),
)
PYTHON, CPP = (".py",), (".cpp", ".hpp", ".cu", ".cuh", ".def")
FOLDERS = ("slimfast", "csrc", "tests", "benchmarks", "tools")
LONGEST = 10

Floors: TypeAlias = Sequence[Sequence[str]]
Arrows: TypeAlias = Mapping[tuple[str, str], Sequence[str]]
"""(room, the room it imports from): the imports, in words."""


def module_of(path: Path, root: Path = ROOT) -> str:
    """Name the module of a file of the package, dotted."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path = ROOT) -> set[str]:
    """List the modules of slimfast that a file imports, wherever in it, in full."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}:{node.lineno}: expected imports by full name, got a relative one")
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in submodules if is_module(name, root)}
            modules |= known
            if len(known) < len(submodules):
                modules.add(str(node.module))
    return {name for name in modules if name.partition(".")[0] == PACKAGE}


def is_module(name: str, root: Path = ROOT) -> bool:
    """Say whether a dotted name is a package or a module, and not a name inside one."""
    path = root / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def rooms_of(folder: Path) -> set[str]:
    """Name the packages and modules right in a folder."""
    inside = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return {path.stem for path in inside}


def room_of(module: str, package: str = PACKAGE) -> str | None:
    """Name the room of ``package`` that a dotted module is in; None for what is outside of the package."""
    if module == package:
        return "__init__"
    return module.removeprefix(f"{package}.").partition(".")[0] if module.startswith(f"{package}.") else None


def arrows_of(folder: Path, root: Path = ROOT) -> dict[tuple[str, str], list[str]]:
    """Find the imports from room to room of the package in ``folder``."""
    package = ".".join(folder.relative_to(root).parts)
    arrows: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        module = module_of(path, root)
        room = room_of(module, package)
        for name in sorted(imports_of(path, root)):
            other = room_of(name, package)
            if room is not None and other is not None and room != other:
                arrows.setdefault((room, other), []).append(f"{module} imports {name}")
    return arrows


def against_the_flow(arrows: Arrows, floors: Floors) -> list[str]:
    """List the imports of a room on the same floor or on one above."""
    floor = {room: height for height, rooms in enumerate(floors) for room in rooms}
    wrong = [words for (room, other), words in arrows.items() if floor[other] >= floor[room]]
    return sorted(word for words in wrong for word in words)


def in_circles(arrows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """List the arrows that some way of arrows leads back from."""
    below: dict[str, set[str]] = {}
    for room, other in arrows:
        below.setdefault(room, set()).add(other)

    def reached(start: str) -> set[str]:
        rooms: set[str] = set()
        waiting = [start]
        while waiting:
            new = below.get(waiting.pop(), set()) - rooms
            rooms |= new
            waiting += new
        return rooms

    return sorted(
        (room, other) for room, others in below.items() for other in others if room in reached(other)
    )


def floors_of(arrows: Iterable[tuple[str, str]]) -> int:
    """Count the rooms on the longest way of arrows, which must not lead in a circle."""
    waiting = set(arrows)
    floors = 1
    while waiting:
        importing = {room for room, _ in waiting}
        waiting = {(room, other) for room, other in waiting if other in importing}
        floors += 1
    return floors


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the functions of a Python file by name and their lines, docstring and signature included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def count_rooms(folder: Path, floors: Floors, root: Path) -> dict[str, Any]:
    """Count the rooms of a package and their arrows, without its ``__init__`` and ``__main__``.

    ``floors`` is the number of rooms on the longest way of arrows. ``against`` is None where some rooms have
    no place in the order that is held: without one nothing can be against it.
    """
    rooms, arrows = rooms_of(folder), arrows_of(folder, root)
    placed = {room for floor in floors for room in floor}
    doors = {"__init__", "__main__"}
    inside = {key: words for key, words in arrows.items() if key[0] not in doors}
    circles = in_circles(inside)
    return {
        "rooms": len(rooms - doors),
        "floors": None if circles else floors_of(inside),
        "arrows": len(inside),
        "in_circles": len(circles),
        "against": len(against_the_flow(arrows, floors)) if rooms <= placed else None,
    }


def count_lines(folder: Path) -> dict[str, dict[str, int]]:
    """Count files and lines below a folder, Python's and those of C++ and CUDA."""
    counted = {}
    for language, endings in (("python", PYTHON), ("cpp", CPP)):
        lines = [lines_of(path) for path in sorted(folder.rglob("*")) if path.suffix in endings]
        counted[language] = {"files": len(lines), "lines": sum(lines)}
    return counted


def lines_of(path: Path) -> int:
    """Count the lines of a file."""
    return path.read_bytes().count(b"\n")


def count(root: Path = ROOT) -> dict[str, Any]:
    """Count everything of a checkout."""
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in PYTHON + CPP]
    functions = [
        (f"{path.relative_to(root)}:{name}", lines)
        for path in files
        if path.suffix in PYTHON
        for name, lines in functions_of(path)
    ]
    sizes = [(str(path.relative_to(root)), lines_of(path)) for path in files]
    return {
        "rooms": {
            PACKAGE: count_rooms(root / PACKAGE, FLOORS, root),
            f"{PACKAGE}.graph": count_rooms(root / PACKAGE / "graph", GRAPH_FLOORS, root),
        },
        "lines": {folder: count_lines(root / folder) for folder in FOLDERS},
        "longest_files": _longest(sizes),
        "longest_functions": _longest(functions),
    }


def _longest(sizes: Iterable[tuple[str, int]]) -> list[list[Any]]:
    return [list(size) for size in sorted(sizes, key=lambda size: (-size[1], size[0]))[:LONGEST]]


def text_of(counted: Mapping[str, Any]) -> str:
    """Write what was counted as tables."""
    heads = ("", "rooms", "floors", "arrows", "in circles", "against the flow")
    rooms = [
        [package, *("no order" if value is None else str(value) for value in found.values())]
        for package, found in counted["rooms"].items()
    ]
    lines = [
        [
            folder,
            *(str(found[language][what]) for language in ("python", "cpp") for what in ("files", "lines")),
        ]
        for folder, found in counted["lines"].items()
    ]
    longest = [
        _table([["longest functions" if "functions" in key else "longest files", "lines"],
                *([name, str(size)] for name, size in counted[key])])
        for key in ("longest_files", "longest_functions")
    ]  # fmt: skip
    tables = [
        _table([heads, *rooms]),
        _table([("", "Python files", "lines", "C++ and CUDA files", "lines"), *lines]),
        *longest,
    ]
    return "\n\n".join(tables)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Align the rows, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the counts of a checkout."""
    parser = argparse.ArgumentParser(prog="python tools/house.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help="a checkout (default: this one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    if not (folder / PACKAGE / "__init__.py").exists():
        print(f"house: expected a checkout with {PACKAGE}/, got {folder}", file=sys.stderr)
        return 2
    counted = count(folder)
    print(json.dumps(counted, indent=1) if options.json else text_of(counted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
