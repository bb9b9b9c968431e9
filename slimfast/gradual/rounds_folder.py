"""The folder of a gradual pruning, from which a run that was stopped goes on."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimfast.checkpoints.thin_files import load, save
from slimfast.errors import SlimfastError, one_line
from slimfast.plans import Plan
from slimfast.storage.atomic import atomic_path, cannot_read, output_folder
from slimfast.storage.documents import parse_object, read_text

KIND, SCHEMA = "slimfast.rounds", 1
INDEX = "rounds.json"
_STATES, _KINDS = ("cut", "trained"), ("safetensors", "pt")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: ``cuts`` were made, the last one at the network in ``model``; ``whole`` is what
    the first network costs under each limit. ``trained``: the network is that after its training.
    """

    cuts: int
    whole: Mapping[str, float]
    model: str
    training: str
    trained: bool


class RoundsFolder:
    """The files of one run: an index, the plan of each round, and the network and the training at the last.

    The index is replaced after what it names is whole, so that it never names half a round.
    """

    def __init__(self, folder: str | os.PathLike[str], request: str, first: str | None) -> None:
        """``request`` says what was asked for, and ``first`` is the fingerprint of the first network."""
        self._folder = output_folder(folder)
        self._request, self._first = request, first or ""

    def found(self) -> Progress | None:
        """Read how far an earlier run has come; None where there was none.

        Raises :class:`SlimfastError` for a damaged folder, and for one of another run.
        """
        path = self._folder / INDEX
        if not os.path.lexists(path):
            return None
        fields = parse_object(read_text(path), os.fspath(path))
        fields.schema(KIND, SCHEMA)
        for what, wanted in (("request", self._request), ("first", self._first)):
            if (got := fields.string(what)) != wanted:
                of = "another network" if what == "first" else f"another request ({got})"
                raise SlimfastError(
                    f"rounds: {self._folder} holds rounds of {of}: name another folder, or ask for the same"
                )
        costs = fields.object("whole")
        progress = Progress(
            cuts=fields.integer("cuts", low=1),
            whole={name: costs.number(name, 0.0, float("inf")) for name in costs.names()},
            model=_name(fields.string("model"), path),
            training=_name(fields.string("training"), path),
            trained=fields.boolean("trained"),
        )
        fields.done()
        return progress

    def plans(self, cuts: int) -> list[Plan]:
        """Read the plans of the first rounds."""
        return [Plan.load(self._folder / _plan_name(number)) for number in range(1, cuts + 1)]

    def load(self, progress: Progress, wide: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        """Load the network of a run, from a copy of the wide one, and the states of its training."""
        thin = load(self._folder / progress.model, wide)
        path = self._folder / progress.training
        try:
            states = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise cannot_read(path, error) from error
        # Damage shows as any of a dozen types, from seek errors to unpickling errors.
        except Exception as error:
            found = f"{type(error).__name__}: {one_line(error).partition('. ')[0]}"
            reason = f"it is damaged, or holds more than tensors and plain values ({found})"
            raise cannot_read(path, reason) from error
        if not isinstance(states, dict):
            raise cannot_read(path, "it is no training of a gradual pruning")
        return thin.train(wide.training), states

    def write(
        self,
        cuts: int,
        whole: Mapping[str, float],
        model: nn.Module,
        states: Mapping[str, Any],
        *,
        plan: Plan | None,
    ) -> None:
        """Write a round: just cut by ``plan``, or trained where that is None; what it replaces goes."""
        trained = plan is None
        files = [f"round-{cuts}-{_STATES[trained]}.{kind}" for kind in _KINDS]
        if plan is not None:
            plan.save(self._folder / _plan_name(cuts))
        save(model, self._folder / files[0])
        with atomic_path(self._folder / files[1]) as temporary:
            torch.save(dict(states), temporary)
        index = {
            "kind": KIND, "schema": SCHEMA, "request": self._request, "first": self._first, "cuts": cuts,
            "whole": dict(whole), "model": files[0], "training": files[1], "trained": trained,
        }  # fmt: skip
        with atomic_path(self._folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        for number in range(1, cuts + 1):
            for old in (f"round-{number}-{state}.{kind}" for state in _STATES for kind in _KINDS):
                if old not in files:
                    with suppress(FileNotFoundError):
                        (self._folder / old).unlink()


def check_states(states: Mapping[str, Any]) -> None:
    """Refuse states of a training that a folder could not give back: they are read as tensors and plain
    values alone.
    """
    for name, state in states.items():
        written = io.BytesIO()
        try:
            torch.save(_without_tensors(state), written)
            written.seek(0)
            torch.load(written, map_location="cpu", weights_only=True)
        # What cannot be pickled shows as any of several types.
        except Exception as error:
            found = f"{type(error).__name__}: {one_line(error).partition('. ')[0]}"
            raise SlimfastError(
                f"rounds: the state_dict of the {name} holds more than tensors and plain values, which the "
                f"folder could not give back ({found}); give no folder, or a {name} whose state is plain"
            ) from error


def _without_tensors(state: Any) -> Any:
    """Leave the tensors out of a state, which can be large and are always read."""
    if isinstance(state, torch.Tensor):
        return None
    if isinstance(state, Mapping):
        return {name: _without_tensors(value) for name, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_without_tensors(value) for value in state)
    return state


def _plan_name(number: int) -> str:
    return f"plan-{number}.json"


def _name(name: str, index: Path) -> str:
    """Refuse names that lead out of the folder."""
    if Path(name).name != name:
        raise cannot_read(index, f"expected files of its own folder, got {name!r}")
    return name
