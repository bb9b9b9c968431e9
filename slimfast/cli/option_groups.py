"""Options that several commands share: groups of them, declared once, each one argument of a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, get_type_hints

import typer
from torch import nn

from slimfast.calibration import Calibration
from slimfast.calibration.folders import load_calibration
from slimfast.cli import options, width_options
from slimfast.cli.console import tell
from slimfast.cli.data import Data, Loading, load_data
from slimfast.errors import SlimfastError
from slimfast.graph.recording.nests import tensors_in
from slimfast.plans import Plan
from slimfast.plans.amounts import time_of
from slimfast.plans.floors import Floors
from slimfast.plans.multiples import Multiples
from slimfast.plans.request import WidthOptions
from slimfast.pruning.prune import prune_channels
from slimfast.pruning.repair.report import found_report
from slimfast.pruning.verification import verification_report


@dataclass(frozen=True, slots=True)
class Widths:
    """Which widths are wanted."""

    macs: width_options.Macs = None
    params: width_options.Params = None
    latency: width_options.Latency = None
    latency_table: width_options.LatencyTable = None
    peak_memory: width_options.PeakMemory = None
    within: width_options.Within = None
    explained_variance: width_options.ExplainedVariance = None
    multiple_of: width_options.MultipleOf = None
    min_width: width_options.MinWidth = None
    include: width_options.Include = None
    exclude: width_options.Exclude = None
    width: width_options.Widths = None

    def request_options(self) -> WidthOptions:
        """Make the keywords of ``plan``; at least one budget, or a width by hand, must be among them."""
        overrides = _widths_by_hand(self.width)
        budgets = {self.macs, self.params, self.latency, self.peak_memory, self.explained_variance}
        if not overrides and budgets == {None}:
            raise SlimfastError(
                "expected a budget: --macs, --params, --latency, --peak-memory or --explained-variance, "
                "got none"
            )
        return {
            "macs": self.macs,
            "params": self.params,
            "latency": _time(self.latency),
            "latency_table": self.latency_table,
            "peak_memory": self.peak_memory,
            "within": self.within or None,
            "explained_variance": self.explained_variance,
            "multiple_of": self.multiples(),
            "min_width": _floors(self.min_width or []),
            "include": self.include or None,
            "exclude": self.exclude or None,
            "overrides": overrides or None,
        }

    def multiples(self) -> Multiples:
        """Read what widths are multiples of: a number without a pattern is that of all groups left."""
        return _multiples(self.multiple_of or [])


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What holds for every one of several plans."""

    latency_table: width_options.LatencyTable = None
    within: width_options.Within = None
    multiple_of: width_options.MultipleOf = None
    min_width: width_options.MinWidth = None
    include: width_options.Include = None
    exclude: width_options.Exclude = None
    width: width_options.Widths = None

    def keywords(self) -> WidthOptions:
        """Make the keywords of ``plan`` besides its budget."""
        return {
            "latency_table": self.latency_table,
            "within": self.within or None,
            "multiple_of": _multiples(self.multiple_of or []),
            "min_width": _floors(self.min_width or []),
            "include": self.include or None,
            "exclude": self.exclude or None,
            "overrides": _widths_by_hand(self.width) or None,
        }


@dataclass(frozen=True, slots=True)
class Cut:
    """How a network is cut."""

    select: options.Select = None
    repair: options.Repair = None
    repair_damping: options.RepairDamping = 0.0
    for_training: options.ForTraining = False
    calibration: options.Calibration = None
    verify: Annotated[bool, typer.Option(help="Run both networks and compare what comes out.")] = True

    def chosen(self) -> dict[str, Any]:
        """Make the keywords of ``prune_channels`` that say what units stay, and how they are repaired."""
        repair = "auto" if self.repair is None else self.repair.value
        return {
            "select": self.select.value if self.select else None,
            "repair": None if repair == "none" else repair,
            "repair_damping": self.repair_damping,
        }

    def before_training(self) -> Cut:
        """Return it with units and repair as a training starts best from them, unless they were chosen."""
        usual = Cut()
        names = ("select", "repair", "repair_damping")
        chosen = any(getattr(self, name) != getattr(usual, name) for name in names)
        return self if chosen else replace(self, for_training=True)

    def load_calibration(self, device: str) -> Calibration | None:
        """Load the calibration that was named."""
        return None if self.calibration is None else load_calibration(self.calibration, device=device)

    def apply(
        self,
        network: nn.Module,
        plan: Plan,
        calibration: Calibration | None,
        backend: str,
        *,
        strict: bool = False,
    ) -> nn.Module:
        """Cut the network to a plan."""
        thin: nn.Module = prune_channels(
            network,
            plan,
            **self.chosen(),
            for_training=self.for_training,
            calibration=calibration,
            verify=self.verify,
            strict=strict,
            backend=backend,
        )
        return thin

    def tell_not_repaired(self, thin: nn.Module) -> None:
        """Say which layers a repair left as they were cut."""
        report = found_report(thin)
        for name, reason in report.left.items() if report is not None else ():
            tell(f"not repaired: {name}: {reason}")

    def tell_verified(self, thin: nn.Module) -> None:
        """Say what was compared, and what was not."""
        if self.verify:
            for line in str(verification_report(thin)).splitlines():
                tell(line)


@dataclass(frozen=True, slots=True)
class Gradual:
    """In how many rounds a network is cut."""

    rounds: options.Rounds = 1
    schedule: options.Schedule = options.DEFAULT_SCHEDULE


@dataclass(frozen=True, slots=True)
class Batches:
    """How folders and files become batches."""

    batch_size: options.BatchSize = 64
    workers: options.Workers = 0

    def load(self, text: str, model: nn.Module, example: Any, *, seed: int) -> Data:
        """Load the data of that name, images in the size of the model's example."""
        sides = [tensor.shape[-1] for tensor in tensors_in(example) if tensor.ndim == 4]
        return load_data(
            text, model, Loading(self.batch_size, self.workers, seed), sides[0] if sides else None
        )


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Show typer the fields of a command's groups of options, each as an option of the command.

    Typer reads signatures: a group stands there as its fields, and the command gets the group made of them.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            shown.append(parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY))
            continue
        types = get_type_hints(groups[name], include_extras=True)
        shown += [
            inspect.Parameter(
                field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
            )
            for field in fields(groups[name])
        ]

    @functools.wraps(command)
    def grouped(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    grouped.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    grouped.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return grouped


def _time(text: str | None) -> str | None:
    """Check a budget of time."""
    if text is not None:
        time_of("latency", text)
    return text


def _multiples(texts: list[str]) -> Multiples:
    """Parse ``--multiple-of [PATTERN=]NUMBER`` to a number, or to pattern -> number."""
    found: dict[str, int] = {}
    for text in texts:
        pattern, _, number = text.rpartition("=")
        if not number.isdecimal() or (not pattern and "=" in text):
            raise SlimfastError(f"--multiple-of: expected NUMBER or PATTERN=NUMBER, got {text!r}")
        if pattern in found:
            raise SlimfastError(f"--multiple-of: {pattern or 'a number for all groups'} is given twice")
        found[pattern] = int(number)
    rest = found.pop("", 1)
    return {**found, **({"*": rest} if rest != 1 else {})} if found else rest


def _floors(texts: list[str]) -> Floors:
    """Parse ``--min-width [PATTERN=]WIDTH``: an int is a number of units, a float a share of them."""
    found: dict[str, int | float] = {}
    for text in texts:
        pattern, _, width = text.rpartition("=")
        try:
            floor = int(width) if width.isdecimal() else float(width)
        except ValueError:
            floor = 0
        if not floor or (not pattern and "=" in text):
            raise SlimfastError(
                f"--min-width: expected WIDTH or PATTERN=WIDTH, as 16 or layer1.*=0.25, got {text!r}"
            )
        if pattern in found:
            raise SlimfastError(f"--min-width: {pattern or 'a width for all groups'} is given twice")
        found[pattern] = floor
    rest = found.pop("", 1)
    return {**found, **({"*": rest} if rest != 1 else {})} if found else rest


def _widths_by_hand(texts: list[str] | None) -> dict[str, int | float]:
    """Parse ``--width PATTERN=WIDTH`` to pattern -> width: an int is a number of units, a float a share of
    them.
    """
    found: dict[str, int | float] = {}
    for text in texts or []:
        pattern, equals, width = text.rpartition("=")
        try:
            found[pattern] = int(width) if width.isdecimal() else float(width)
        except ValueError:
            equals = ""
        if not (equals and pattern):
            raise SlimfastError(f"--width: expected PATTERN=WIDTH, as in 'layer1.*=16', got {text!r}")
    return found
