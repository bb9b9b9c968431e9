"""The page of the command line, made from the commands themselves: ``python tools/cli_page.py [--check]``."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import typer.main

from slimfast.cli import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"
HEAD = """# Command line

Made by `python tools/cli_page.py`. Results go to stdout, all the rest to stderr. Exit status: 0; 2 and one
line for wrong input; 130 for Ctrl-C; 1 for a fault of slimfast, whose traceback `--debug` shows.
"""


def page() -> str:
    """Write the page: each command with its arguments and options."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join([HEAD, *(_command(name, commands[name]) for name in sorted(commands))])


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([f"slimfast {name}", *(a.metavar or a.name.upper() for a in arguments), "[OPTIONS]"])
    lines = [f"## {name}", "", f"    {usage}", "", inspect.cleandoc(command.help), ""]
    lines += ["| | | default |", "| --- | --- | --- |"]
    lines += [_row(a.metavar or a.name.upper(), a.help, None) for a in arguments]
    lines += [_row(", ".join((*o.opts, *o.secondary_opts)), o.help, _default(o)) for o in options]
    return "\n".join([*lines, ""])


def _row(name: str, text: str | None, default: str | None) -> str:
    return f"| `{name}` | {(text or '').replace('|', '/')} | {default or ''} |"


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    value = getattr(option.default, "value", option.default)
    return "" if value is None or isinstance(value, bool) else f"`{value}`"


def main() -> int:
    """Write the page, or with ``--check`` say whether it is old."""
    new = page()
    if PAGE.exists() and PAGE.read_text() == new:
        return 0
    if "--check" in sys.argv[1:]:
        print("docs/reference/cli.md is out of date: python tools/cli_page.py", file=sys.stderr)
        return 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
