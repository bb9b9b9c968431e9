"""Labels of a causal language model are those of the next position."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimfast.distillation import DistillationLoss, accuracy, distill
from slimfast.distillation.causal import shifts_labels

TOKENS = (torch.arange(9)[None] + torch.arange(4)[:, None]) % 8


class Next(nn.Module):
    """Says of each token what follows it, from a table; "repeat" says the token itself."""

    def __init__(self, repeat: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)
        with torch.no_grad():
            self.table.weight.copy_(10 * torch.eye(8).roll(0 if repeat else 1, dims=1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.table(input_ids)}


class NextForCausalLM(Next):
    pass


class NextForMaskedLM(Next):
    pass


def padded(labels: Tensor) -> Tensor:
    return labels.masked_fill(torch.arange(9) < 2, -100)


@pytest.mark.parametrize(
    ("model", "inputs", "targets", "shifted"),
    [
        (Next(), {"input_ids": TOKENS}, TOKENS, True),
        (Next(), {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}, padded(TOKENS), True),
        (Next(), TOKENS, TOKENS, True),
        (Next(), (TOKENS, torch.ones(4, 9)), padded(TOKENS), True),
        # Moved already.
        (Next(), TOKENS, TOKENS.roll(-1, 1), False),
        (NextForCausalLM(), TOKENS[:, :-1], TOKENS[:, 1:], False),
        # An encoder, a decoder that is told the tokens before, and a task to copy.
        (Next(), (TOKENS[:, 1:], TOKENS[:, :-1]), TOKENS[:, 1:], False),
        # A tagger, and a masked language model that hides tokens or, this time, none.
        (Next(), TOKENS, (TOKENS + 3) % 8, False),
        (Next(), TOKENS.where(TOKENS != 3, 0), TOKENS.where(TOKENS == 3, -100), False),
        (NextForMaskedLM(), TOKENS, TOKENS, False),
        # By its name, where the inputs cannot tell.
        (NextForCausalLM(), {"inputs_embeds": torch.zeros(4, 9, 8)}, TOKENS, True),
        (NextForCausalLM(), TOKENS, torch.full_like(TOKENS, -100), True),
        (Next(), TOKENS, torch.full_like(TOKENS, -100), False),
        (Next(), torch.zeros(4, 9), torch.zeros(4, 9), False),
        (Next(), TOKENS, torch.zeros(4, dtype=torch.int64), False),
    ],
)  # fmt: skip
def test_when_labels_are_of_the_next_position(
    model: Any, inputs: Any, targets: Tensor, shifted: bool
) -> None:
    assert shifts_labels(model, inputs, targets, -100) == shifted


def test_an_encoder_and_decoder_is_taught_in_place() -> None:
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))
    assert not shifts_labels(model, {"input_ids": TOKENS}, TOKENS, -100)


def test_a_shifted_loss_is_that_of_the_moved_labels() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 9, 8), torch.randn(4, 9, 8)
    mask = torch.ones(4, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    labels = padded(TOKENS)
    moved = labels[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    expected = DistillationLoss()(student[:, :-1], teacher[:, :-1], moved)
    torch.testing.assert_close(DistillationLoss(shift=True)(student, teacher, labels, mask=mask), expected)
    # Without labels a position counts by itself.
    unlabelled = DistillationLoss(hard=0.0, shift=True)(student, teacher, mask=mask)
    seen = mask.bool()
    torch.testing.assert_close(unlabelled, DistillationLoss(hard=0.0)(student[seen], teacher[seen]))


def test_who_repeats_scores_nothing() -> None:
    batch = {"input_ids": TOKENS, "labels": TOKENS}
    assert accuracy(Next(), [batch]) == 1.0
    assert accuracy(Next(repeat=True), [batch]) == 0.0
    assert accuracy(Next(repeat=True), [batch], shift=False) == 1.0


@pytest.mark.parametrize("shift", [None, False])
def test_a_student_learns_the_next_token_or_its_own(shift: bool | None) -> None:
    student = Next()
    nn.init.zeros_(student.table.weight)
    batch = {"input_ids": TOKENS, "labels": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    loss = DistillationLoss(soft=0.0, hard=1.0, shift=shift)
    history = distill(
        student, teacher=Next(), train=[batch] * 20, evaluate=[batch], epochs=2, lr=0.5, loss=loss
    )
    said = student(TOKENS)["logits"].argmax(-1)
    assert torch.equal(said, TOKENS if shift is False else (TOKENS + 1) % 8)
    assert history.best is not None
    assert history.best.score == 1.0
