"""A training whose batches come from an iterator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.trainer_cases import batches, bits, network
from torch import nn

from slimfast.distillation import distill
from slimfast.errors import SlimfastError


def test_an_iterator_with_steps_is_the_list_it_gives(teacher: nn.Module, tmp_path: Path) -> None:
    def stream() -> Iterator[Any]:
        while True:
            yield from batches()

    results = []
    for train in (batches(), stream()):
        student = network()
        distill(student, teacher=teacher, train=train, steps_per_epoch=6, epochs=3)
        results.append(bits(student))
    assert results[0] == results[1]

    # A resumed one begins where the first stopped.
    class Stop(Exception):
        pass

    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise Stop

    student = network()
    arguments: dict[str, Any] = {"teacher": teacher, "steps_per_epoch": 4, "epochs": 3}
    distill(student, train=stream(), **arguments)
    whole = bits(student)
    with pytest.raises(Stop):
        distill(network(), train=stream(), checkpoint=tmp_path, callback=stop, **arguments)
    student = network()
    distill(student, train=stream(), checkpoint=tmp_path, resume=True, **arguments)
    assert bits(student) == whole


def test_an_iterator_that_ends_too_early(teacher: nn.Module) -> None:
    with pytest.raises(SlimfastError, match="train: 2 batches in epoch 2, expected 4"):
        distill(network(), teacher=teacher, train=iter(batches()), steps_per_epoch=4, epochs=2)
