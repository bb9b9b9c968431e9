"""Rules for operations that PyTorch does not have: of extensions, of :mod:`torch.library`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from slimfast.errors import ArgumentError, ArgumentTypeError
from slimfast.graph.propagation.axis_labels import Axes
from slimfast.graph.propagation.flow import Propagation
from slimfast.graph.propagation.rules import Rule
from slimfast.graph.propagation.rules.pointwise import elementwise
from slimfast.graph.propagation.zeros import ZeroTracker, all_nonzero, by_outcome, handed_on
from slimfast.graph.recording.calls import Call
from slimfast.graph.recording.op_registry import OpEntry, entry_of, put_entry
from slimfast.graph.recording.operators import operator_of


class RegisteredRule:
    """A rule that was registered; :meth:`remove` puts back what was there before, as leaving a ``with`` does.

    Example:
        with slimfast.register_rule("mylib::gate", like="aten.mul"):
            graph = slimfast.trace_channels(model, example)
    """

    def __init__(self, operation: str, before: OpEntry | None) -> None:
        self.operation = operation
        self._before = before
        self._removed = False

    def remove(self) -> None:
        """Put back what was there before; further calls do nothing."""
        if not self._removed:
            self._removed = True
            _put(self.operation, self._before)

    def __enter__(self) -> RegisteredRule:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def register_rule(
    operation: str, rule: Rule | None = None, *, like: str | None = None, replace: bool = False
) -> RegisteredRule:
    """Say how channels pass through an operation that slimfast does not know.

    Without a rule, an operation freezes all that it touches.

    Args:
        operation: Its name, as ``mylib::gate`` or ``mylib.gate``; it must be loaded.
        rule: A function of the propagation and the call that joins the labels of axes which can only be cut
            together, and returns the axes of each result: ``docs/graph.md`` shows one.
        like: An ATen operation that treats axes the same, as ``aten.relu``, instead of a rule; the
            arguments of the two correspond in their order.
        replace: Replaces a rule that is there.

    Returns:
        What takes the rule back: ``remove()``, or the end of a ``with``.

    Raises:
        ValueError: For an operation that is not loaded or has a rule, and for a ``like`` that has none or
            takes more arguments.

    Example:
        slimfast.register_rule("mylib::gate", like="aten.mul")
    """
    if (rule is None) == (like is None):
        raise ArgumentError(
            f"register_rule: expected a rule or like=, got {'neither' if rule is None else 'both'}"
        )
    if rule is not None and not callable(rule):
        raise ArgumentTypeError(f"register_rule: expected a function, got {type(rule).__name__}")
    name, parameters = _loaded(operation)
    if _is_known(name) and not replace:
        raise ArgumentError(f"register_rule: {name} has a rule; replace=True replaces it")
    # A composite operation is written down as it was called, or its rule would never be asked.
    entry = (
        OpEntry(rule=rule, zeros=all_nonzero, whole=True) if like is None else _like(name, parameters, like)
    )
    before = put_entry(name, None)
    _put(name, entry)
    return RegisteredRule(name, before)


def _put(name: str, entry: OpEntry | None) -> None:
    put_entry(name, entry)
    operator_of.cache_clear()


def _loaded(operation: str) -> tuple[str, dict[str, bool]]:
    """Find an operation: its name as recordings have it, and for each parameter whether it has a default."""
    namespace, _, own = operation.replace("::", ".").partition(".")
    packet = getattr(getattr(torch.ops, namespace), own, None) if namespace and own.isidentifier() else None
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        raise ArgumentError(
            f"register_rule: expected an operation that is loaded, as 'mylib::gate', got {operation!r}"
        )
    overloads = packet.overloads()  # type: ignore[no-untyped-call]
    schema = getattr(packet, "default" if "default" in overloads else overloads[0])._schema
    return f"{namespace}.{own}", {p.name: p.has_default_value() for p in schema.arguments}


def _is_known(name: str) -> bool:
    """Say whether an operation has a rule, be it that of all that work element by element."""
    packet = getattr(getattr(torch.ops, name.partition(".")[0]), name.partition(".")[2])
    pointwise = any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())
    return entry_of(name).rule is not None or pointwise


def _like(name: str, parameters: dict[str, bool], like: str) -> OpEntry:
    """Make the entry of an operation that treats axes as another one does."""
    model, theirs = _loaded(like)
    entry = entry_of(model)
    if not _is_known(model):
        raise ArgumentError(f"register_rule: expected like= an operation that has a rule, got {like!r}")
    needed = sum(not has_default for has_default in theirs.values())
    if len(parameters) < needed:
        raise ArgumentError(
            f"register_rule: expected {name} to take at least the {needed} arguments of {model}, got "
            f"{len(parameters)}"
        )
    names = dict(zip(parameters, theirs, strict=False))
    followed, zeros = entry.rule or elementwise, entry.zeros or (handed_on if entry.rule else by_outcome)

    def translated(call: Call) -> Call:
        arguments = {names.get(own, own): value for own, value in call.arguments.items()}
        return dataclasses.replace(call, op=model, arguments=arguments)

    def rule(flow: Propagation, call: Call) -> list[Axes]:
        return followed(flow, translated(call))

    def zeros_of(tracker: ZeroTracker, call: Call, axes: Axes) -> Any:
        return zeros(tracker, translated(call), axes)

    return OpEntry(
        rule=rule,
        zeros=zeros_of,
        selects=entry.selects,
        meta_shape=_renamed(entry.meta_shape, names),
        whole=True,
        certain=entry.certain,
    )


def _renamed(
    meta_shape: Callable[..., Any] | None, names: dict[str, str]
) -> Callable[[Any], Tensor | None] | None:
    """Ask what knows the shape by the names of its own operation."""
    if meta_shape is None:
        return None
    return lambda given: meta_shape({names.get(own, own): value for own, value in given.items()})
