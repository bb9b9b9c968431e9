"""What the channel groups of a network are called: their names, their kinds, their layers and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from slimfast.errors import ArgumentError, did_you_mean


@dataclass(frozen=True, slots=True)
class GroupNames:
    """What the groups of a network are called, in ``include``, ``exclude`` and ``overrides``.

    ``kinds`` has the kind of each group by its name; ``makes`` and ``reads`` the groups that each layer and
    each tensor has a part in: those whose units it computes or goes along with, and those it only reads.
    """

    kinds: Mapping[str, str]
    makes: Mapping[str, frozenset[str]]
    reads: Mapping[str, frozenset[str]]

    @classmethod
    def of(
        cls,
        kinds: Mapping[str, str],
        slices: Iterable[tuple[str, str, str]],
        tied: Mapping[str, str] | None = None,
    ) -> GroupNames:
        """Collect the names from the (group, tensor, role) of each slice; ``tied``: further tensor names."""
        further: dict[str, list[str]] = {}
        for name, first in (tied or {}).items():
            further.setdefault(first, []).append(name)
        parts: tuple[dict[str, set[str]], dict[str, set[str]]] = ({}, {})
        for group, tensor, role in slices:
            for name in (tensor, *further.get(tensor, ())):
                for called in (name, name.rpartition(".")[0]):
                    parts[role == "consumer"].setdefault(called, set()).add(group)
        makes, reads = ({name: frozenset(groups) for name, groups in part.items()} for part in parts)
        return cls(kinds, makes, reads)

    def meant_by(self, glob: str, where: str) -> frozenset[str]:
        """Find the groups that a name, a kind or a glob means.

        The name of a group as it is printed means that one alone, brackets included:
        ``blocks.0.attn.qkv[head]``. The name of a layer or a tensor means the groups whose units it computes.

        Raises ``ValueError`` where there is none; ``where`` begins its message.
        """
        if glob in self.kinds:
            return frozenset([glob])
        found = {
            name
            for name, kind in self.kinds.items()
            if glob == kind or fnmatchcase(name, glob) or fnmatchcase(kind, glob)
        }
        for called, groups in self.makes.items():
            if called and (called == glob or fnmatchcase(called, glob)):
                found |= groups
        if not found:
            raise ArgumentError(f"{where}: no group matches {glob!r}{self._hint(glob)}")
        return frozenset(found)

    def _hint(self, glob: str) -> str:
        if glob in self.reads:
            return f", which only reads {', '.join(sorted(self.reads[glob]))}"
        if any(name.startswith(f"{glob}.") for name in self.makes):
            return f" (did you mean {f'{glob}.*'!r}?)"
        return did_you_mean(
            glob, dict.fromkeys([*self.kinds, *self.kinds.values(), *filter(None, self.makes)])
        )
