"""Random numbers that two networks draw alike: the thin one gets what is left of the wide one's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slimfast.arrays import IntArray
from slimfast.errors import SlimfastError
from slimfast.graph.channel_graph import Axis
from slimfast.graph.cutting.cut import Cut, select_indices

# Operations that fill a tensor with numbers that depend on nothing else in it, without a trailing underscore.
_NOISE = frozenset({
    "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "random", "uniform",
})  # fmt: skip
# In a graph a dropout is written down as it was called.
_DROPOUT = frozenset({"dropout", "native_dropout", "feature_dropout", "alpha_dropout"})
_SEED = 0


@dataclass(slots=True)
class Draws:
    """The random numbers of one forward, in the order in which they were drawn.

    The wide network's run fills it; the thin network's gets, number by number, the same ones at the indices
    of ``cut`` that are left. ``begin`` comes before each run.
    """

    cut: Cut
    _kept: list[tuple[str, Tensor]] = field(default_factory=list)
    _next: int = 0
    _filling: bool = True

    @property
    def drawn(self) -> int:
        """How many times numbers were drawn."""
        return len(self._kept)

    def begin(self, *, wide: bool) -> None:
        """Begin a run of the wide or of the thin network."""
        self._filling, self._next = wide, 0
        if wide:
            self._kept.clear()

    def run(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run a random operation, or give the thin network the numbers that the wide one drew there."""
        name = func._schema.name.rpartition("::")[2]
        if name.rstrip("_") == "native_dropout":
            return self._dropout(func, name, args, kwargs)
        if name.rstrip("_") == "bernoulli" and _depends(func, args, kwargs):
            return self._chances(name, *args[:2])
        fills = name.rstrip("_") in _NOISE and not _depends(func, args, kwargs)
        return self._drawn(name, lambda: func(*args, **kwargs), fills, args[0] if name[-1] == "_" else None)

    def _dropout(self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        source, share = args[0], 1.0 - args[1]
        ones = torch.ones_like(source)
        mask = self._drawn(name, lambda: func(ones, *args[1:], **kwargs)[1], True, None)
        return source * mask / share if share else torch.zeros_like(source), mask

    def _chances(self, name: str, target: Tensor, chances: Tensor | None = None) -> Tensor:
        """Compare uniform numbers with the probability of each element; in place where they stand beside."""
        given = target if chances is None else chances
        numbers = self._drawn(name, lambda: torch.rand_like(target), True, None)
        happens = (numbers < given).to(target.dtype)
        return happens if chances is None else target.copy_(happens)

    def _drawn(self, name: str, draw: Callable[[], Any], fills: bool, place: Tensor | None) -> Any:
        """Draw, or cut what was drawn; ``place``: the tensor that an operation in place fills."""
        at, self._next = self._next, self._next + 1
        if self._filling or not fills:
            torch.manual_seed(_SEED + at)
            made = draw()
        if self._filling:
            first = made if isinstance(made, Tensor) else made[0]
            self._kept.append((name, first.clone()))
            return made
        if at >= len(self._kept) or self._kept[at][0] != name:
            raise _undecided(name, "draws other numbers than the original")
        wide = self._kept[at][1]
        if not fills:
            if (made if isinstance(made, Tensor) else made[0]).shape != wide.shape:
                raise _undecided(name, "draws numbers of a shape that is cut")
            return made
        return self._cut_draw(name, wide, place, draw)

    def _cut_draw(self, name: str, wide: Tensor, place: Tensor | None, draw: Callable[[], Any]) -> Any:
        target = draw() if place is None else place
        if target.dim() != wide.dim():
            raise _undecided(name, "draws numbers of another rank than the original")
        dims = [d for d in range(wide.dim()) if target.shape[d] != wide.shape[d]]
        kept = {d: self._kept_indices(name, d, wide.shape[d], target.shape[d], tuple(dims)) for d in dims}
        return target.copy_(select_indices(wide, kept))

    def _kept_indices(self, name: str, dim: int, wide: int, thin: int, dims: tuple[int, ...]) -> IntArray:
        """Find which indices are left of a dim: those of the graph's random operations of these lengths."""
        found: list[IntArray] = []
        for axis in self._axes(dim):
            if axis.length == wide:
                kept = self.cut.kept_indices(axis)
                if len(kept) == thin and not any(kept.tobytes() == other.tobytes() for other in found):
                    found.append(kept)
        if len(found) != 1:
            raise _undecided(name, f"draws numbers of which dim {dim} is cut from {wide} to {thin}")
        return found[0]

    def _axes(self, dim: int) -> list[Axis]:
        """List the axes that random operations of the graph have at a dim."""
        names = _NOISE | _DROPOUT
        return [
            operation.outputs[0][dim]
            for operation in self.cut.graph.operations
            if operation.name.removeprefix("aten.").rstrip("_") in names
            and operation.outputs
            and dim < len(operation.outputs[0])
        ]


def is_random(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Say whether an operation draws random numbers, as it is called here."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    schema = func._schema.arguments
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    given |= dict(zip((a.name for a in schema), args, strict=False)) | dict(kwargs)
    shares = [given[name] for name in ("dropout_p", "dropout") if name in given]
    training = given.get("train", given.get("training"))
    return training is not False and (not shares or any(shares))


def _depends(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Say whether the numbers depend on the values of a tensor: a probability, a mean, of each of them."""
    name = func._schema.name.rpartition("::")[2]
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    # what is filled, and what has the shape that is asked for
    shaped = name.endswith(("_", "_like")) or func._overloadname == "p"
    return len(tensors) > int(shaped)


def _undecided(name: str, what: str) -> SlimfastError:
    return SlimfastError(
        f"verify: the forward draws random numbers (aten.{name}), and the thin network {what}, so that two "
        "draws would be compared; leave its groups whole (exclude=...), or check nothing (verify=False)"
    )
