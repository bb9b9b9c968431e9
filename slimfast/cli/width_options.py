"""The arguments that say which widths are wanted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from slimfast.errors import ArgumentError
from slimfast.plans.amounts import amount_of, bytes_of


def _amount(name: str, text: str) -> float:
    """Parse a budget as the option of that name has it."""
    try:
        return amount_of(name, text)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from None


def _bytes(text: str) -> float:
    """Parse a budget of bytes."""
    try:
        return bytes_of("peak_memory", text)
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from None


Macs = Annotated[
    float | None,
    typer.Option(
        parser=partial(_amount, "macs"),
        metavar="NUMBER",
        help="Budget of multiply-adds: a share (0.5, 50%) or a number (2e9, 2G).",
    ),
]
Params = Annotated[
    float | None,
    typer.Option(
        parser=partial(_amount, "params"),
        metavar="NUMBER",
        help="Budget of parameters: a share (0.5, 50%) or a number (2e6, 2M).",
    ),
]
Latency = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Budget of the time of one forward: a share (0.5, 50%) or a time (12ms, 0.5s). The thin network "
        "is measured.",
    ),
]
LatencyTable = Annotated[
    Path | None,
    typer.Option(help="What 'slimfast latency' wrote, for --latency; measured anew without it."),
]
PeakMemory = Annotated[
    float | None,
    typer.Option(
        parser=_bytes,
        metavar="BYTES",
        help="Budget of the bytes that one forward holds at once: a share (0.5, 50%) or bytes (512MiB, "
        "1.5GB). The thin network is measured.",
    ),
]
ExplainedVariance = Annotated[
    float | None, typer.Option(help="Share of the variance that every group keeps, in (0, 1].")
]
MultipleOf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[PATTERN=]NUMBER",
        help="Widths are multiples of this, or whole: of groups that a pattern matches (layer4.*=64), or of "
        "all others; repeat it for more.",
    ),
]
MinWidth = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[PATTERN=]WIDTH",
        help="The smallest width, units (16) or a share (0.25): of groups that a pattern matches, or of all "
        "others; repeat it for more.",
    ),
]
Within = Annotated[
    list[str] | None,
    typer.Option(help="The budget counts the layers and tensors that this pattern matches alone."),
]
Include = Annotated[list[str] | None, typer.Option(help="Only groups whose name matches this pattern.")]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Leave groups whose name matches this pattern alone.")
]
Widths = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN=WIDTH", help="Width of groups by hand: units (64) or a share (0.5)."),
]
