"""The command ``slimfast``: reads arguments, runs a command, and turns what goes wrong into one line.

Exit status: 0; 2 and one line on stderr for bad input; 130 for Ctrl-C; 1 for an error inside slimfast. A
traceback is shown with ``--debug`` only.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from slimfast.cli.calibrating import calibrate
from slimfast.cli.console import warnings_in_a_line
from slimfast.cli.machine import bench, demo, doctor_command
from slimfast.cli.planning import plan, spectra
from slimfast.cli.reading import evaluate, explain, export
from slimfast.cli.studying import report, sweep
from slimfast.cli.thinning import prune, slim
from slimfast.cli.timing import latency
from slimfast.cli.training import distill
from slimfast.diagnostics import doctor
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, one_line
from slimfast.interrupts import LINE, STATUS, raised

app = typer.Typer(
    name="slimfast",
    help="How wide each layer of a trained network needs to be, the network cut to that, and trained back.",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    spectra,
    calibrate,
    latency,
    plan,
    sweep,
    explain,
    report,
    prune,
    distill,
    slim,
    export,
    bench,
    demo,
)
for command in _COMMANDS:
    app.command()(command)
app.command("eval")(evaluate)
app.command("doctor")(doctor_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Taken out here, so that it may stand anywhere.
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"] or ["--help"]
    try:
        with raised(), warnings_in_a_line():
            status = app(args=given, prog_name="slimfast", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = STATUS
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, status = _explained(error)
        if message:
            print(f"slimfast: {message}", file=sys.stderr)
    if status == STATUS:
        print(LINE, end="", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _explained(error: Exception) -> tuple[str, int]:
    """Explain an error in one line, and say the exit status it means."""
    # Typer brings click's exceptions for wrong usage, from click itself or from a copy of its own.
    if hasattr(error, "format_message"):
        return " ".join(error.format_message().split()), 2
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 2
    if isinstance(error, (SlimfastError, ArgumentError, ArgumentTypeError, OSError)):
        return one_line(error), 2
    return f"internal error, {type(error).__name__}: {one_line(error)} (--debug shows where)", 1


def _show_version(asked: bool) -> None:
    if asked:
        print(f"slimfast {doctor.version('slimfast')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Show the options of every command in the help; :func:`main` and the callback act on them."""
