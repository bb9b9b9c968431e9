"""Forwards in turns: they stop and go on, what they raise arrives, and none is left behind."""

from __future__ import annotations

import threading

import pytest
import torch

from slimfast.calibration.pausing import Pausable, closing


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "slimfast-forward"]


def test_turns_come_one_after_another() -> None:
    said: list[str] = []

    def work(name: str) -> Pausable[str]:
        def steps() -> None:
            for step in range(3):
                said.append(f"{name}{step}")
                made.pause(f"{name} after {step}")

        made: Pausable[str] = Pausable(steps)
        return made

    both = [work("a"), work("b")]
    with closing(both):
        assert [forward.resume() for forward in both] == ["a after 0", "b after 0"]
        assert [forward.resume() for forward in reversed(both)] == ["b after 1", "a after 1"]
        assert both[0].resume() == "a after 2"
        assert both[0].resume() is None
    assert said == ["a0", "b0", "b1", "a1", "a2"]
    assert ours() == []


def test_what_it_raises_arrives_and_what_is_left_is_unwound() -> None:
    unwound: list[str] = []

    def fails() -> None:
        raise KeyError("inside")

    def waits() -> None:
        try:
            waiting.pause(1)
        finally:
            unwound.append("waiting")

    def never() -> None:
        unwound.append("never begun")

    failing: Pausable[int] = Pausable(fails)
    waiting: Pausable[int] = Pausable(waits)
    idle: Pausable[int] = Pausable(never)
    with closing([waiting, failing, idle]):
        assert waiting.resume() == 1
        with pytest.raises(KeyError, match="inside"):
            failing.resume()
    assert unwound == ["waiting"]
    assert ours() == []


def test_one_that_swallows_the_end_is_ended_at_its_next_stop() -> None:
    said: list[int] = []

    def stubborn() -> None:
        for step in range(3):
            try:
                made.pause(step)
            except BaseException:
                said.append(step)

    made: Pausable[int] = Pausable(stubborn)
    with closing([made]):
        made.resume()
    assert said == [0, 1, 2]
    assert ours() == []


def test_settings_of_the_thread_go_along() -> None:
    seen: list[object] = []

    def look() -> None:
        seen.append(torch.is_grad_enabled())
        seen.append(torch.is_autocast_enabled("cpu"))
        seen.append(torch.eye(2, device="cpu").mm(torch.eye(2, device="cpu")).dtype)
        seen.append(torch.zeros(1).device.type)

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        made: Pausable[None] = Pausable(look)
    with closing([made]):
        made.resume()
    assert seen == [False, True, torch.bfloat16, "meta"]
