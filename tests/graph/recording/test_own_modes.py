"""PyTorch's checkpointing and inference mode, exchanged for as long as a copy of a network runs."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint as place

from slimfast.graph.recording.own_modes import without_own_modes


def now() -> tuple[object, ...]:
    return (
        place.CheckpointFunction,
        place._checkpoint_without_reentrant_generator,  # type: ignore[attr-defined]
        torch.inference_mode.__enter__,
    )


def test_blocks_that_overlap_leave_everything_as_it_was() -> None:
    before = now()
    one, other = without_own_modes(), without_own_modes()
    one.__enter__()
    meanwhile = now()
    assert not set(meanwhile) & set(before)
    # As two threads do it: the first to begin ends first.
    other.__enter__()
    one.__exit__(None, None, None)
    assert now() == meanwhile
    other.__exit__(None, None, None)
    assert now() == before
    with pytest.raises(ZeroDivisionError), without_own_modes():
        raise ZeroDivisionError
    assert now() == before


def test_inference_mode_is_a_block_without_gradients() -> None:
    x = torch.ones(2, requires_grad=True)
    with without_own_modes():
        with torch.inference_mode():
            made = x * 2
        with torch.inference_mode(False):
            kept = x * 2
    assert not made.is_inference()
    assert not made.requires_grad
    assert kept.requires_grad
    with torch.inference_mode():
        assert (x * 2).is_inference()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_run_once(reentrant: bool) -> None:
    runs = []

    def part(x: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        return x * x

    x = torch.ones(2, requires_grad=True)
    with without_own_modes():
        place.checkpoint(part, x, use_reentrant=reentrant).sum().backward()
    assert len(runs) == 1
    place.checkpoint(part, x, use_reentrant=reentrant).sum().backward()
    assert len(runs) == 3
    torch.testing.assert_close(x.grad, torch.full((2,), 4.0))
