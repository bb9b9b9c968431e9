"""Find the layers of a network that can go whole: residual blocks that stand one behind the other.

A block is an element of a ``ModuleList`` or a ``Sequential``. In the recorded forward its output is followed
back to what it read: through additions whose one side is made from the other (that side is a *branch*, the
other the *stream*), and through what leaves shapes alone and has no weights (a norm, an activation). Where
that way ends at a tensor from outside, without it the block is the identity on its stream, and nothing else
in the network need know that it is gone. Where the way ends elsewhere, or others read of the block too, it
stays, and the reason is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from slimfast.graph.recording.attributes import stack_of
from slimfast.graph.recording.calls import Call, refs_in
from slimfast.graph.recording.forward import Recording
from slimfast.graph.recording.network import Network

# Outputs that are by-products: caches of keys and values, and states on the way, which go with their layer.
_BY_PRODUCTS = ("past_key_values", "hidden_states", "attentions", "cache", "mems", "present")
_VIEWS = ("aten.view", "aten.reshape", "aten._unsafe_view")
_ADDITIONS = ("aten.add", "aten.add_")
# Of zeros they make zeros.
_KEEP_ZEROS = ("dropout", "native_dropout", "view", "reshape", "_unsafe_view", "clone", "contiguous",
               "permute", "transpose", "mul", "alias", "detach", "_to_copy")  # fmt: skip
_PRODUCTS = ("aten.linear", "aten.addmm", "aten.mm")


@dataclass(frozen=True, slots=True)
class Branch:
    """What is added to a stream that it reads: the outermost ``modules`` that compute nothing else, in order.

    ``name``: that of its module with the most parameters. ``alone``: whether it can go while its block stays:
    its last module computes what is added. ``writer``: the module that computes that by a product with its
    weight, None where something else stands last.
    """

    name: str
    modules: tuple[str, ...]
    alone: bool
    writer: str | None


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block: an element of a stack, and its branches in order; ``plain``: nothing but their
    additions stands between what it reads and what it gives.
    """

    name: str
    branches: tuple[Branch, ...]
    plain: bool


@dataclass(frozen=True, slots=True)
class Stack:
    """A list of modules at ``path``: ``blocks`` can go, of the others ``kept`` says why they stay."""

    path: str
    names: tuple[str, ...]
    blocks: Mapping[str, Block]
    kept: Mapping[str, str] = field(default_factory=dict)


class _Stays(Exception):
    """Why a block cannot go."""


def find_stacks(network: Network, recording: Recording) -> list[Stack]:
    """Find the stacks of residual blocks of a recorded network, in the order of its modules.

    The blocks of a stack are of one class, of which it has two at least. Where blocks lie in a larger one, as
    those of a stage, they are the ones.
    """
    flow = _Flow(network, recording)
    found = []
    for path, container in network.modules.items():
        if not isinstance(container, (nn.ModuleList, nn.Sequential)):
            continue
        elements = {f"{path}.{name}".lstrip("."): held for name, held in container._modules.items() if held}
        kinds = Counter(map(type, elements.values()))
        times = Counter(map(id, elements.values()))
        blocks: dict[str, Block] = {}
        kept: dict[str, str] = {}
        for name, element in elements.items():
            if kinds[type(element)] < 2:
                continue
            try:
                if times[id(element)] > 1:
                    raise _Stays("it is the same module as another one of its list")
                block = flow.block(name)
            except _Stays as reason:
                kept[name] = str(reason)
            else:
                if block is not None:
                    blocks[name] = block
        if blocks or kept:
            found.append(Stack(path, tuple(elements), blocks, kept))
    inner = [name for stack in found for name in stack.blocks]
    stages = {name for name in inner if any(other.startswith(f"{name}.") for other in inner)}
    alone = (
        replace(stack, blocks={name: block for name, block in stack.blocks.items() if name not in stages})
        for stack in found
    )
    return [stack for stack in alone if stack.blocks or stack.kept]


class _Flow:
    """A recording in which every tensor has one maker: what is written to in place is a new tensor."""

    def __init__(self, network: Network, recording: Recording) -> None:
        self._network = network
        self._calls: Sequence[Call] = recording.calls
        self._shapes: list[tuple[int, ...]] = []
        self._maker: list[int | None] = []
        self._reads: list[tuple[int, ...]] = []
        self._makes: list[tuple[int, ...]] = []
        self._readers: dict[int, list[int]] = {}
        now: dict[int, int] = {}
        weights: set[int] = set()

        def tensor(value: int, shape: tuple[int, ...], maker: int | None) -> int:
            now[value] = len(self._shapes)
            self._shapes.append(shape)
            self._maker.append(maker)
            return now[value]

        for number, call in enumerate(self._calls):
            read = []
            for ref in refs_in(call.arguments):
                if ref.value not in now:
                    weights.update(
                        [tensor(ref.value, ref.shape, None)] if ref.value in recording.names else []
                    )
                read.append(now[ref.value] if ref.value in now else tensor(ref.value, ref.shape, None))
            self._reads.append(tuple(dict.fromkeys(read)))
            for one in self._reads[-1]:
                self._readers.setdefault(one, []).append(number)
            self._makes.append(tuple(tensor(ref.value, ref.shape, number) for ref in call.outputs))
        self._weights = weights
        named = zip(recording.places, recording.outputs, strict=True)
        self._returned = {
            now[ref.value]
            for place, ref in named
            if ref.value in now and not place.split(".")[0].startswith(_BY_PRODUCTS)
        }
        self._inside: dict[str, list[int]] = {}
        for number, call in enumerate(self._calls):
            for around in stack_of(call.module):
                self._inside.setdefault(around, []).append(number)

    def block(self, name: str) -> Block | None:
        """Make the block of an element; None for what has no branches. :class:`_Stays` says why it stays."""
        inside = self._inside.get(name, [])
        if not inside:
            return None
        within = set(inside)
        given = sorted(
            one
            for number in inside
            for one in self._makes[number]
            if one in self._returned or any(reader not in within for reader in self._readers.get(one, ()))
        )
        if not given:
            return None
        branches, stream, plain = self._way_back(given[-1], within)
        if not branches:
            return None
        if stream is None:
            raise _Stays("its shortcut computes, as where a block changes the size of its stream")
        if len(given) > 1:
            raise _Stays(f"{len(given)} tensors of it are read elsewhere")
        self._check_readers(name, given[0])
        self._check_shared(name)
        return Block(name, tuple(self._branch(name, *branch) for branch in reversed(branches)), plain)

    def _check_shared(self, name: str) -> None:
        """See that the weights of a block are its own."""
        for other, first in self._network.tied.items():
            inside = [tensor.startswith(f"{name}.") for tensor in (other, first)]
            if any(inside) and not all(inside):
                raise _Stays(
                    f"it shares {other if inside[0] else first} with {first if inside[0] else other}"
                )

    def _check_readers(self, name: str, given: int) -> None:
        """See that one part of the network reads what a block gives, and not a skip connection as well."""
        readers = [self._calls[number].module for number in self._readers.get(given, ())]
        if len(readers) < 2:
            return
        common = next(path for path in stack_of(readers[0]) if all(path in stack_of(r) for r in readers))
        if common in stack_of(name):
            others = ", ".join(dict.fromkeys(reader or "the model itself" for reader in readers))
            raise _Stays(f"its output is read in several places ({others})")

    def _way_back(self, last: int, within: set[int]) -> tuple[list[tuple[int, int]], int | None, bool]:
        """Follow a block's output back to its stream: [(stream, what is added to it)], what it read, None
        where the way ends inside, and whether there is nothing else on the way.
        """
        branches: list[tuple[int, int]] = []
        at, plain = last, True
        while (maker := self._maker[at]) is not None and maker in within:
            if self._calls[maker].op in _VIEWS:
                at, plain = self._reads[maker][0], False
                continue
            alike = self._alike(maker, self._shapes[at])
            if self._calls[maker].op in _ADDITIONS and len(alike) == 2:
                stream = next((s for s, b in (alike, alike[::-1]) if s in self._behind(b, within)), None)
                if stream is None:
                    # Two ways that both compute: at least one of them is a shortcut with weights.
                    return [(at, at)], None, False
                branches.append((stream, alike[1] if alike[0] == stream else alike[0]))
                at = stream
                continue
            heavy = any(one in self._weights and len(self._shapes[one]) > 1 for one in self._reads[maker])
            if len(alike) != 1 or heavy:
                return branches, None, False
            at, plain = alike[0], False
        return branches, at, plain

    def _alike(self, maker: int, shape: tuple[int, ...]) -> list[int]:
        """List what an operation reads of this shape, weights left out."""
        return [one for one in self._reads[maker] if self._shapes[one] == shape and one not in self._weights]

    def _behind(self, tensor: int, within: set[int], stop: int | None = None) -> set[int]:
        """Collect the tensors that one is made from inside a block, up to ``stop``."""
        found: set[int] = set()
        waiting = [tensor]
        while waiting:
            maker = self._maker[waiting.pop()]
            if maker is None or maker not in within:
                continue
            for one in self._reads[maker]:
                if one not in found and one != stop:
                    found.add(one)
                    waiting.append(one)
                found.update([one] if one == stop else [])
        return found

    def _branch(self, name: str, stream: int, added: int) -> Branch:
        """Describe a branch of a block by the modules that make it."""
        within = set(self._inside[name])
        makers = {self._maker[one] for one in (added, *self._behind(added, within, stop=stream))}
        calls = {number for number in makers if number in within}
        calls.discard(self._maker[stream])
        inner = [
            path for path in self._network.modules if path.startswith(f"{name}.") and path in self._inside
        ]
        own: list[str] = []
        for path in sorted(inner, key=lambda path: (self._inside[path][0], path.count("."))):
            if any(path.startswith(f"{outer}.") for outer in own):
                continue
            numbers = set(self._inside[path])
            if numbers & calls and self._only_for(numbers, calls, added):
                own.append(path)
        last = self._maker[added]
        # What comes after the last module of its own, and of zeros makes zeros.
        while own and last in calls and last not in self._inside[own[-1]] and self._keeps_zeros(last):
            read = [
                one for one in self._reads[last] if one not in self._weights and self._maker[one] in calls
            ]
            last = self._maker[read[0]] if len(read) == 1 else None
        alone = bool(own) and last is not None and last in self._inside[own[-1]]
        sizes = {path: sum(p.numel() for p in self._network.modules[path].parameters()) for path in own}
        largest = max(own, key=lambda path: sizes[path], default=name)
        return Branch(largest, tuple(own), alone, self._writer(added))

    def _keeps_zeros(self, number: int) -> bool:
        return self._calls[number].op.partition(".")[2] in _KEEP_ZEROS

    def _only_for(self, numbers: Iterable[int], calls: set[int], added: int) -> bool:
        """Say whether nobody but a branch reads what these calls make."""
        numbers = set(numbers)
        made = {one for number in numbers for one in self._makes[number]} - {added}
        return all(
            reader in calls or reader in numbers for one in made for reader in self._readers.get(one, ())
        )

    def _writer(self, added: int) -> str | None:
        """Find the module whose product with its weight is what a branch adds, called once."""
        maker = self._maker[added]
        while maker is not None and self._calls[maker].op not in _PRODUCTS:
            op = self._calls[maker].op.partition(".")[2]
            if not self._keeps_zeros(maker) or op in ("mul", "permute", "transpose"):
                return None
            maker = self._maker[self._reads[maker][0]]
        if maker is None:
            return None
        path = self._calls[maker].module
        weight = getattr(self._network.modules.get(path), "weight", None)
        products = [number for number in self._inside[path] if self._calls[number].op in _PRODUCTS]
        return path if isinstance(weight, nn.Parameter) and weight.dim() == 2 and len(products) == 1 else None
