"""What a plan is asked for: the arguments of ``plan_widths`` checked, and what they mean for each group."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ForwardRef, ParamSpec, TypedDict, TypeVar

import numpy as np

from slimfast.calibration.curves import ErrorCurve
from slimfast.errors import ArgumentError, ArgumentTypeError, SlimfastError, did_you_mean
from slimfast.graph.channel_graph import ChannelGraph, ChannelGroup
from slimfast.latency import LatencyTable
from slimfast.memory import MemoryTable
from slimfast.plans.amounts import share_of
from slimfast.plans.budget import Rounding
from slimfast.plans.floors import Floors, check_floors, floors_of
from slimfast.plans.limits import budget_of
from slimfast.plans.multiples import Multiples, check_multiples, multiples_of, unit_step
from slimfast.plans.plan_data import Chosen
from slimfast.spectra.spectrum import Spectrum, check_tau
from slimfast.spectra.unit_matrices import positions

P = ParamSpec("P")
R = TypeVar("R")


class WidthOptions(TypedDict, total=False):
    """The keywords that say which widths are wanted, as :func:`slimfast.plan_widths` explains them.

    Every verb that plans takes them, by :func:`takes_width_options`.
    """

    explained_variance: float | str | None
    params: float | str | Mapping[str, float | str] | None
    macs: float | str | Mapping[str, float | str] | None
    latency: float | str | None
    latency_table: LatencyTable | str | os.PathLike[str] | None
    peak_memory: float | str | None
    memory_table: MemoryTable | None
    within: str | Iterable[str] | None
    multiple_of: int | Mapping[str, int]
    min_width: int | float | Mapping[str, int | float]
    overrides: Mapping[str, int | float] | None
    include: Iterable[str] | None
    exclude: Iterable[str] | None


# The others are None where they are not given.
_DEFAULTS = WidthOptions(multiple_of=1, min_width=1)


def takes_width_options(verb: Callable[P, R]) -> Callable[P, R]:
    """List the width options one by one in the signature of a verb of ``**options: Unpack[WidthOptions]``.

    Called with any other keyword, the verb raises the ``TypeError`` that Python would.
    """
    declared = inspect.signature(verb)
    own = [p for p in declared.parameters.values() if p.kind is not p.VAR_KEYWORD]
    first_keyword = sum(p.kind is not p.KEYWORD_ONLY for p in own)
    own[first_keyword:first_keyword] = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_DEFAULTS.get(name),
            annotation=hint.__forward_arg__ if isinstance(hint, ForwardRef) else hint,
        )
        for name, hint in WidthOptions.__annotations__.items()
    ]
    signature = declared.replace(parameters=own)

    @functools.wraps(verb)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in signature.parameters:
                hint = did_you_mean(name, signature.parameters)
                raise ArgumentTypeError(
                    f"{verb.__name__}() got an unexpected keyword argument {name!r}{hint}"
                )
        return verb(*args, **kwargs)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked


@dataclass(frozen=True, slots=True)
class Request:
    """Width options that were checked; ``budget`` has the given ones of ``params``, ``macs``, ``latency`` and
    ``peak_memory``, by the names of :func:`slimfast.plans.limits.budget_of`. ``latency_factor`` and
    ``memory_factor``: what thin networks were found to take beside what the tables predict.
    """

    explained_variance: float | None
    budget: Mapping[str, float]
    multiple_of: Multiples
    min_width: Floors
    overrides: Mapping[str, int | float]
    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    latency_table: LatencyTable | None = None
    latency_factor: float = 1.0
    memory_table: MemoryTable | None = None
    memory_factor: float = 1.0

    def asked(self) -> dict[str, float]:
        """Return what was asked for, as a plan keeps it."""
        if self.explained_variance is not None:
            return {"explained_variance": self.explained_variance}
        return dict(self.budget)


@dataclass(frozen=True, slots=True)
class Choice:
    """How a group gets its width: by tau or gain, or it is ``width`` by hand or because it is left alone."""

    chosen: Chosen
    width: int


def check_request(options: WidthOptions) -> Request:
    """Check the options, and make the request of them; ``ValueError`` for what cannot be meant."""
    tau, overrides = options.get("explained_variance"), options.get("overrides")
    explained_variance = None if tau is None else share_of("explained_variance", tau)
    multiple_of = options.get("multiple_of", _DEFAULTS["multiple_of"])
    min_width = options.get("min_width", _DEFAULTS["min_width"])
    include, exclude = options.get("include"), options.get("exclude")
    budget = budget_of(options)
    if explained_variance is not None:
        check_tau("plan", explained_variance)
        if budget:
            raise ArgumentError(
                f"plan: expected explained_variance or a budget, got both it and {', '.join(budget)}"
            )
    elif not budget and not overrides:
        raise ArgumentError(
            "plan: expected explained_variance, params, macs, latency or peak_memory, got none of them"
        )
    for name, globs in {"include": include, "exclude": exclude}.items():
        if isinstance(globs, str):
            raise ArgumentError(f"plan: expected {name} to be a list of globs, got the string {globs!r}")
    return Request(
        explained_variance=explained_variance,
        budget=budget,
        multiple_of=check_multiples(multiple_of),
        min_width=check_floors(min_width),
        overrides=dict(overrides or {}),
        include=None if include is None else tuple(include),
        exclude=tuple(exclude or ()),
        latency_table=None if (table := options.get("latency_table")) is None else LatencyTable.of(table),
        memory_table=_checked_table(options.get("memory_table")),
    )


def _checked_table(table: object) -> MemoryTable | None:
    if table is not None and not isinstance(table, MemoryTable):
        raise ArgumentTypeError(
            f"plan: expected memory_table to be a MemoryTable, got {type(table).__name__}"
        )
    return table


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def choose(
    graph: ChannelGraph,
    spectra: Mapping[str, Spectrum],
    request: Request,
    curves: Mapping[str, ErrorCurve] | None = None,
) -> list[Choice]:
    """Decide how each group gets its width, in the order of the graph; the spectra of those that tau decides
    are checked, and so are the error curves, where the budget is spent by them.

    ``ValueError`` for a glob that matches no group and a width by hand that a group cannot have.
    """
    named = _Named.of(graph, request)
    choices = []
    for group in graph.groups:
        d = positions(group, graph)
        by: Chosen = "gain" if curves is not None else "tau"
        decided = group.name in curves if curves is not None else d > 1
        choices.append(_choice(group, by if decided else "excluded", request, named))
        if choices[-1].chosen == by:
            if curves is None:
                _check_spectrum(group, d, spectra)
            elif curves[group.name].n != group.n:
                raise SlimfastError(
                    f"error curve: expected {group.n} units, got {curves[group.name].n} ({group.name})"
                )
    return choices


@dataclass(frozen=True, slots=True)
class _Named:
    """The groups that the globs of a request mean; those of overrides in their order, with their values."""

    by_hand: Sequence[tuple[frozenset[str], int | float]]
    included: frozenset[str] | None
    excluded: frozenset[str]

    @classmethod
    def of(cls, graph: ChannelGraph, request: Request) -> _Named:
        """Look the globs up; ``ValueError`` for one that means no group, and for a layer that stands for
        several where a width is given.
        """
        names = graph.names()

        def meant(what: str, globs: Iterable[str]) -> frozenset[str]:
            return frozenset().union(*(names.meant_by(glob, f"plan: {what}") for glob in globs))

        by_hand = [(meant("overrides", [glob]), value) for glob, value in request.overrides.items()]
        for (groups, _), glob in zip(by_hand, request.overrides, strict=True):
            if len(groups) > 1 and glob in names.makes:
                which = ", ".join(sorted(groups))
                raise ArgumentError(
                    f"plan: overrides: {glob} has a part in several groups, name one: {which}"
                )
        included = None if request.include is None else meant("include", request.include)
        return cls(by_hand, included, meant("exclude", request.exclude))


def _choice(group: ChannelGroup, by: Chosen, request: Request, named: _Named) -> Choice:
    for groups, value in named.by_hand:
        if group.name in groups:
            return Choice("override", _width_by_hand(group, value))
    included = named.included is None or group.name in named.included
    asked = request.explained_variance is not None or bool(request.budget)
    if included and asked and group.name not in named.excluded:
        return Choice(by, group.n)
    return Choice("excluded", group.n)


def _width_by_hand(group: ChannelGroup, value: int | float) -> int:
    if _is_integer(value) and 1 <= value <= group.n:
        return int(value)
    if isinstance(value, float) and 0.0 < value <= 1.0:
        return max(1, round(value * group.n))
    raise ArgumentError(
        f"plan: overrides: expected 1 to {group.n} units or a share as a float, got {value!r} ({group.name})"
    )


def _check_spectrum(group: ChannelGroup, d: int, spectra: Mapping[str, Spectrum]) -> None:
    if group.name not in spectra:
        raise SlimfastError(f"spectra: none for group {group.name}{did_you_mean(group.name, spectra)}")
    spectrum = spectra[group.name]
    if (spectrum.n, spectrum.d) != (group.n, d):
        raise SlimfastError(
            f"spectra: expected {group.n} units over {d} positions, got {spectrum.n} over {spectrum.d} "
            f"({group.name})"
        )


def rounding_of(graph: ChannelGraph, groups: Sequence[ChannelGroup], request: Request) -> Rounding:
    """Say what the widths of these groups of a graph may be."""
    multiples = multiples_of(graph, request.multiple_of)
    floors = floors_of(graph, request.min_width)
    return Rounding(
        full=np.array([group.n for group in groups], dtype=np.int64),
        step=np.array([unit_step(group, multiples[group.name]) for group in groups], dtype=np.int64),
        minimum=np.array([floors[group.name] for group in groups], dtype=np.int64),
    )
