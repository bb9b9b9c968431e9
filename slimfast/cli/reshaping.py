"""What ``slim`` does to a network before its widths are cut: layers that go, heads that are rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from slimfast.cli.console import refuse
from slimfast.cli.option_groups import Widths
from slimfast.errors import SlimfastError

Depth = Annotated[
    list[int] | None,
    typer.Option(
        metavar="NUMBER",
        min=0,
        help="So many layers go first, and the widths of the others are cut to what that leaves of --macs or "
        "--params; needs --calibration or --data. Repeat it to try several (--depth 0 --depth 2): the "
        "network nearest to the original is taken.",
    ),
]
RotateHeads = Annotated[
    bool,
    typer.Option(
        "--rotate-heads",
        help="Rotate the dims inside attention heads first, without a change of the output, so that those "
        "that a cut takes matter least: by what the layers read of --calibration or --data, or without "
        "them by the weights.",
    ),
]


@dataclass(frozen=True, slots=True)
class Reshaping:
    """What comes before widths."""

    depth: Depth = None
    rotate_heads: RotateHeads = False

    def numbers(self, widths: Widths, *, calibrated: bool) -> list[int]:
        """List the numbers of layers to try; none where no layer is to go. Other options that do not go with
        them are refused, and a want of samples to choose by.
        """
        numbers = sorted(set(self.depth or ()))
        if not any(numbers):
            return []
        refuse(
            "--depth: expected a budget of --macs or --params alone",
            {
                "latency": widths.latency,
                "latency-table": widths.latency_table,
                "peak-memory": widths.peak_memory is not None,
                "explained-variance": widths.explained_variance is not None,
            },
        )
        if widths.macs is None and widths.params is None:
            raise SlimfastError("--depth: expected a budget of --macs or --params, got none")
        if not calibrated:
            raise SlimfastError(
                "--depth: expected --data, or --calibration, which 'slimfast calibrate' writes, to choose "
                "layers by; got neither"
            )
        return numbers

    def check_rounds(self) -> None:
        """Refuse what rounds do not do."""
        refuse(
            "--rounds: every round cuts widths alone",
            {"depth": any(self.depth or ()), "rotate-heads": self.rotate_heads},
        )
