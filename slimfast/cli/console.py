"""How the commands print and where they write: results on stdout, all the rest on stderr."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import Progress as Bars

from slimfast.arrays import Progress
from slimfast.errors import SlimfastError
from slimfast.storage.atomic import cannot_write, check_writable

_STDOUT = ("-", "/dev/stdout", "/dev/fd/1")


def show(renderable: RenderableType, *, stderr: bool = False) -> None:
    """Print a table; where that is not to a terminal, it is as wide as it needs to be."""
    console = Console(highlight=False, stderr=stderr)
    if not console.is_terminal:
        console.width = 200
    console.print(renderable)


def show_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def tell(text: str) -> None:
    """Say something that is not a result."""
    print(text, file=sys.stderr)


def tell_written(*paths: Path | None) -> None:
    """Say which files were written."""
    written = [str(path) for path in paths if path is not None and not is_stdout(path)]
    if written:
        tell(f"wrote {', '.join(written)}")


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Print what slimfast warns of in one line each, without the line of code that Python adds."""
    usual = warnings.showwarning

    def shown(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning and f"{Path(__file__).parents[1]}" in filename:
            tell(f"slimfast: warning: {message}")
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = shown
        yield


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """Show a bar on stderr, where that is a terminal, moved by calls of (done, all)."""
    console = Console(stderr=True)
    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def is_stdout(path: Path) -> bool:
    """Say whether a name of a file to write means the standard output."""
    return str(path) in _STDOUT


def check_outputs(*paths: Path | None, suffixes: Collection[str] = ()) -> None:
    """Refuse an output that cannot be written, or whose suffix does not fit what goes in it, before the work
    and not after it.
    """
    for path in paths:
        if path is None or is_stdout(path):
            continue
        if suffixes and path.suffix.lower() not in suffixes:
            wanted = " or ".join(suffixes)
            raise cannot_write(path, f"expected a name ending in {wanted}, got {path.suffix or 'none'}")
        check_writable(path)


@contextmanager
def output(path: Path, suffix: str) -> Iterator[Path]:
    """Yield the file to write a command's output to; where that is the standard output, one that is then
    copied there, alone: what the command prints meanwhile goes to stderr.
    """
    if not is_stdout(path):
        yield path
        return
    real = sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"output{suffix}"
        with redirect_stdout(sys.stderr):
            yield written
        real.flush()
        with written.open("rb") as stream:
            while part := stream.read(1 << 20):
                real.buffer.write(part)
        real.flush()


def refuse(what: str, given: dict[str, Any]) -> None:
    """Raise :class:`SlimfastError` for the first option in ``given`` (name -> value) that was used."""
    for name, value in given.items():
        if value:
            raise SlimfastError(f"{what}, got --{name}")
