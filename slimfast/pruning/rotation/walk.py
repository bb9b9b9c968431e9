"""Which rows of which weights meet inside attention heads, read off a recorded forward.

Each row of a linear layer has a number, its code. Operations that only move numbers are replayed on codes, so
that where two tensors are multiplied it is known which rows are summed over, and which pass through.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slimfast.graph.propagation.rules.products import factors
from slimfast.graph.recording.calls import Call, Ref, refs_in
from slimfast.graph.recording.forward import Recording

# Operations whose result is made of elements of their first argument, and of nothing else.
_MOVES = frozenset(
    {"view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "permute", "t", "unsqueeze", "squeeze",
     "expand", "split", "split_with_sizes", "chunk", "unbind", "select", "slice", "narrow", "repeat",
     "movedim", "repeat_interleave", "flatten", "unflatten", "swapaxes"}
)  # fmt: skip
_SAME = frozenset({"clone", "detach", "alias", "contiguous", "_to_copy", "to", "lift_fresh"})
# Of a tensor they take the shape.
_SHAPES = frozenset(
    {"new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like", "full_like"}
)
_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "mm"})


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer: its weight, with the rows along ``dim``, and its bias; ``first``: the code of row 0."""

    weight: str
    bias: str | None
    dim: int
    first: int
    rows: int
    module: str


@dataclass(frozen=True, slots=True, eq=False)
class _Coded:
    """The code of each element of a tensor; ``summed``: it was weighed and summed over positions already."""

    codes: Tensor
    summed: bool = False


@dataclass(slots=True, eq=False)
class Walk:
    """What a recorded forward does with the rows of its linear layers.

    ``values``: the heads whose rows are summed over positions, tuples of codes; ``scores``: pairs of tuples
    whose products are summed over the head; ``columns``: of each weight that reads summed rows the code of
    every column, and the dim of the columns; ``spoiled``: why a code, or a tensor, has to stay as it is.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    values: set[tuple[int, ...]] = field(default_factory=set)
    scores: set[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=set)
    columns: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    spoiled: dict[int | str, str] = field(default_factory=dict)
    _coded: dict[int, _Coded] = field(default_factory=dict)
    _rows: int = 0

    @classmethod
    def of(cls, recordings: Iterable[Recording]) -> Walk:
        """Go through recordings of one network."""
        walk = cls()
        for recording in recordings:
            walk._coded.clear()
            for call in recording.calls:
                walk._step(call, recording)
            walk._spoil_all(recording.outputs, "the network returns it")
        return walk

    def _step(self, call: Call, recording: Recording) -> None:
        plain = call.op.rpartition(".")[2] if call.op.startswith("aten.") else call.op
        refs = refs_in(call.arguments)
        linear = _linear(plain, call, recording)
        tensors = {recording.names[ref.value] for ref in refs if ref.value in recording.names}
        if linear is not None:
            source, weight, bias, dim = linear
            tensors -= {weight, bias}
            self._read(source, weight, 1 - dim, call)
            self._make(weight, bias, dim, call)
        where = f"{call.op} at {call.module or 'the network itself'}"
        for name in tensors:
            self.spoiled.setdefault(name, f"{where} takes {name}")
        if linear is not None or plain in _SHAPES or not any(ref.value in self._coded for ref in refs):
            return
        coded = self._coded.get(refs[0].value)
        if plain in _SAME or (plain in ("mul", "div") and _is_scaled(call)):
            if coded is not None:
                self._coded[call.outputs[0].value] = coded
        elif plain in _MOVES and coded is not None:
            self._move(plain, call, coded)
        elif plain == "scaled_dot_product_attention":
            self._attend(call, where)
        elif plain in _PRODUCTS:
            self._multiply(call, where)
        else:
            self._spoil_all(refs, f"{where} works on it")
            for ref in call.outputs:
                self._coded.pop(ref.value, None)

    def _make(self, weight: str, bias: str | None, dim: int, call: Call) -> None:
        """Give the rows of a layer their codes, the same ones wherever it runs."""
        out = call.outputs[0]
        layer = self.layers.get(weight)
        if layer is None:
            layer = Layer(weight, bias, dim, self._rows, out.shape[-1], call.module)
            self.layers[weight] = layer
            self._rows += layer.rows
        elif (layer.bias, layer.dim) != (bias, dim):
            self.spoiled.setdefault(weight, f"{weight} is used in two ways")
        codes = torch.arange(layer.first, layer.first + layer.rows, device="cpu")
        self._coded[out.value] = _Coded(codes.expand(out.shape))

    def _read(self, source: Ref, weight: str, dim: int, call: Call) -> None:
        """Note the columns by which a layer reads."""
        coded = self._coded.get(source.value)
        if coded is None:
            if weight in self.columns:
                self.spoiled.setdefault(weight, f"{weight} reads other tensors as well")
            return
        row = _alike(coded.codes, -1)
        if not coded.summed or row is None:
            self._spoil(coded, f"{call.module} reads it directly")
        elif self.columns.setdefault(weight, (dim, row)) != (dim, row):
            self.spoiled.setdefault(weight, f"{weight} reads several orders of it")
            self._spoil(coded, f"{weight} reads several orders of it")

    def _move(self, plain: str, call: Call, coded: _Coded) -> None:
        """Replay an operation on codes."""
        arguments = {k: v for k, v in call.arguments.items() if k not in ("self", "implicit", "input")}
        name = "reshape" if plain in ("view", "_unsafe_view", "_reshape_alias") else plain
        if name == "reshape":
            moved: Any = coded.codes.reshape(call.outputs[0].shape)
        else:
            positional = [v for v in arguments.values() if v is not None]
            moved = getattr(torch.ops.aten, name)(coded.codes, *positional)
        results = [moved] if isinstance(moved, Tensor) else list(moved)
        for ref, codes in zip(call.outputs, results, strict=True):
            self._coded[ref.value] = _Coded(codes, coded.summed)

    def _attend(self, call: Call, where: str) -> None:
        query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
        others = [ref for ref in refs_in(call.arguments) if ref not in (query, key, value)]
        self._spoil_all(others, f"{where} works on it")
        q, k, v = (self._coded.get(ref.value) for ref in (query, key, value))
        times = query.shape[-3] // key.shape[-3] if len(query.shape) > 2 else 1
        k, v = (each if each is None or times == 1 else
                _Coded(each.codes.repeat_interleave(times, -3), each.summed) for each in (k, v))  # fmt: skip
        self._score(q, k, where)
        if v is not None:
            self._sum(v, call.outputs[0], where)

    def _multiply(self, call: Call, where: str) -> None:
        a, b, added = factors(call)
        first, second = self._coded.get(a.value), self._coded.get(b.value)
        if isinstance(added, Ref):
            self._spoil_all([added], f"{where} works on it")
        if second is not None and first is None and len(b.shape) > 1:
            self._sum(second, call.outputs[0], where)
        elif second is not None and len(b.shape) > 1 and len(a.shape) > 1:
            self._score(first, _Coded(second.codes.mT, second.summed), where)
        else:
            self._spoil_all([a, b], f"{where} works on it")

    def _score(self, first: _Coded | None, second: _Coded | None, where: str) -> None:
        """Note which rows are summed over in the product of every query with every key."""
        if first is not None and second is not None and not first.summed and not second.summed:
            queries, keys = _heads(first.codes), _heads(second.codes)
            if queries is not None and keys is not None and len(queries) == len(keys):
                self.scores.update(zip(queries, keys, strict=True))
                return
        for coded in (first, second):
            if coded is not None:
                self._spoil(coded, f"{where} multiplies it by what no linear layer has made, as it is")

    def _sum(self, coded: _Coded, out: Ref, where: str) -> None:
        """Note which rows are summed over positions, each by itself."""
        rows = None if coded.summed else _heads(coded.codes)
        if rows is None:
            self._spoil(coded, f"{where} multiplies it by what no linear layer has made, as it is")
            return
        self.values.update(rows)
        self._coded[out.value] = _Coded(coded.codes[..., :1, :].expand(out.shape), summed=True)

    def _spoil(self, coded: _Coded, why: str) -> None:
        for code in set(coded.codes.flatten().tolist()):
            self.spoiled.setdefault(code, why)

    def _spoil_all(self, refs: Iterable[Ref], why: str) -> None:
        for ref in refs:
            if (coded := self._coded.get(ref.value)) is not None:
                self._spoil(coded, why)


def _linear(plain: str, call: Call, recording: Recording) -> tuple[Ref, str, str | None, int] | None:
    """Find what a linear layer reads, its weight, bias, and the dim of its rows; None for other calls."""
    if plain == "linear":
        source, weight, bias, dim = *(call.arguments.get(n) for n in ("input", "weight", "bias")), 0
    elif plain in ("addmm", "mm"):
        added = call.arguments.get("self") if plain == "addmm" else None
        left = call.arguments["mat1"] if plain == "addmm" else call.arguments["self"]
        source, weight, bias, dim = left, call.arguments["mat2"], added, 1
        if plain == "addmm" and (call.arguments.get("beta", 1), call.arguments.get("alpha", 1)) != (1, 1):
            return None
    else:
        return None
    if not isinstance(source, Ref) or not isinstance(weight, Ref) or len(weight.shape) != 2:
        return None
    name = recording.names.get(weight.value)
    if name is None or source.value in recording.names:
        return None
    if bias is None:
        return source, name, None, dim
    known = recording.names.get(bias.value) if isinstance(bias, Ref) and len(bias.shape) == 1 else None
    return None if known is None else (source, name, known, dim)


def _is_scaled(call: Call) -> bool:
    """Say whether a tensor is multiplied or divided by one number that is no tensor of the model's."""
    return not isinstance(call.arguments.get("other"), Ref) and call.arguments.get("rounding_mode") is None


def _alike(codes: Tensor, dim: int) -> tuple[int, ...] | None:
    """List the codes along the last dim, None where other positions have others."""
    rows = codes.reshape(-1, codes.shape[-1])
    if not len(rows) or not bool((rows == rows[:1]).all()):
        return None
    return tuple(rows[0].tolist())


def _heads(codes: Tensor) -> list[tuple[int, ...]] | None:
    """List the codes of each head of (..., positions, head dims); None where positions have others."""
    if codes.dim() < 2 or not codes.numel() or not bool((codes == codes[..., :1, :]).all()):
        return None
    return [tuple(row) for row in codes[..., 0, :].reshape(-1, codes.shape[-1]).tolist()]
