"""Padding, ignored labels and masked classes have no part in any term, and nothing is left as NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from slimfast.distillation import (
    DistillationLoss,
    Hint,
    Output,
    accuracy,
    attention_loss,
    decoupled_loss,
    hint_loss,
    relational_loss,
    soft_target_loss,
)
from slimfast.distillation.batches import mask_of

EVERY = DistillationLoss(
    temperature=2.0, decoupled=0.5, correlation=0.7, relational=0.3, attention=0.4, label_smoothing=0.1,
    hints=(Hint("a"),),
)  # fmt: skip


def sentences(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, tuple[tuple[Tensor, Tensor]]]:
    """Logits (2, 6, 5) of both, labels (2, 6), and features (2, 3, 6) of both."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(5, (2, 6), generator=generator)
    return draw(2, 6, 5), draw(2, 6, 5), labels, ((draw(2, 3, 6), draw(2, 3, 6)),)


@pytest.mark.parametrize("ignored", [-100, -1, 255])
@pytest.mark.parametrize("where", ["labels", "mask"])
def test_what_stands_at_padding_changes_no_term(ignored: int, where: str) -> None:
    student, teacher, labels, ((ours, theirs),) = sentences()
    mask = torch.ones(2, 6, dtype=torch.int64)
    if where == "labels":
        labels[0, 4:] = ignored
    else:
        mask[0, 4:] = 0
    loss = EVERY if ignored < 0 else DistillationLoss(**{**settings(EVERY), "ignore_index": ignored})
    before = loss.terms(student, teacher, labels, ((ours, theirs),), mask=mask)
    for x in (student, teacher, ours.movedim(1, -1), theirs.movedim(1, -1)):
        x[0, 4:] = 7 * torch.randn(2, x.shape[-1])
    after = loss.terms(student, teacher, labels, ((ours, theirs),), mask=mask)
    assert sorted(after) == sorted(
        ["attention", "correlation", "decoupled", "hard", "hint", "relational", "soft"]
    )
    for name, (_, value) in before.items():
        torch.testing.assert_close(after[name][1], value, msg=name)


def settings(loss: DistillationLoss) -> dict[str, object]:
    return {name: getattr(loss, name) for name in DistillationLoss.__dataclass_fields__}


def test_ignoring_is_leaving_out() -> None:
    student, teacher, labels, _ = sentences()
    kept = labels.clone()
    labels[:, 4:] = -100
    loss = DistillationLoss(temperature=3.0, correlation=0.5)
    torch.testing.assert_close(
        loss(student, teacher, labels), loss(student[:, :4], teacher[:, :4], kept[:, :4])
    )


def test_samples_and_maps_are_left_out_alike() -> None:
    # A sample without a label of its own has no part in hints, whatever their positions.
    torch.manual_seed(0)
    student, teacher, features = (
        torch.randn(3, 4),
        torch.randn(3, 4),
        (torch.randn(3, 2, 5), torch.randn(3, 2, 5)),
    )
    loss = DistillationLoss(hints=(Hint("a"),), attention=1.0)
    whole = loss(student[:2], teacher[:2], torch.tensor([1, 2]), ((features[0][:2], features[1][:2]),))
    found = loss(student, teacher, torch.tensor([1, 2, -100]), (features,))
    torch.testing.assert_close(found, whole)
    # Of a label map, in which a pixel is ignored.
    pixels, labels = torch.randn(1, 4, 2, 2), torch.tensor([[[0, 255], [2, 1]]])
    loss = DistillationLoss(class_dim=1, ignore_index=255)
    rows = pixels.movedim(1, -1)[labels != 255]
    torch.testing.assert_close(
        loss(pixels, 2 * pixels, labels), DistillationLoss()(rows, 2 * rows, torch.tensor([0, 2, 1]))
    )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "mse", "smooth_l1"])
def test_a_batch_of_nothing_counts_nothing(kind: str) -> None:
    student = torch.randn(4, 3, requires_grad=True)
    feature = torch.randn(4, 2, requires_grad=True)
    targets = torch.full((4,), -100) if kind == "softmax" else torch.full((4, 3), math.nan)
    if kind == "softmax":
        loss = EVERY
    else:
        loss = DistillationLoss(hints=(Hint("a"),), attention=1.0, outputs=(Output("", kind),))  # type: ignore[arg-type]
    value = loss(student, torch.randn(4, 3), targets, ((feature, torch.randn(4, 2)),))
    value.backward()
    assert float(value.detach()) == 0
    for x in (student, feature):
        assert x.grad is not None
        assert not x.grad.any()


def test_masked_classes_are_left_out() -> None:
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    wide = student.clone().requires_grad_()
    hidden = torch.tensor([0, 0, 0, 0, 1]).bool()
    loss = DistillationLoss(label_smoothing=0.2, decoupled=0.5, correlation=0.3, relational=0.2)
    found = loss(wide.masked_fill(hidden, -torch.inf), teacher.masked_fill(hidden, -torch.inf), labels)
    expected = loss(student[:, :4], teacher[:, :4], labels).detach()
    # Correlations are means over the classes, of which one more is there.
    within = loss.terms(student[:, :4], teacher[:, :4], labels)["correlation"][1]
    wider = loss.terms(
        student.masked_fill(hidden, -torch.inf), teacher.masked_fill(hidden, -torch.inf), labels
    )
    torch.testing.assert_close(found, expected + 0.3 * (wider["correlation"][1] - within))
    found.backward()
    assert wide.grad is not None
    assert bool(wide.grad.isfinite().all())
    assert not wide.grad[:, 4].any()


def test_a_class_that_one_network_masks_is_left_out_of_both() -> None:
    student, teacher = torch.tensor([[0.3, -0.2, 9.0]]), torch.tensor([[1.0, 0.5, -torch.inf]])
    expected = soft_target_loss(student[:, :2], teacher[:, :2], temperature=2.0)
    for a, b in ((student, teacher), (student.clone(), teacher.clone().nan_to_num(neginf=4.0))):
        if b.isfinite().all():
            a[0, 2] = -torch.inf
        torch.testing.assert_close(soft_target_loss(a, b, temperature=2.0), expected)


def test_a_row_of_minus_infinity_counts_nothing() -> None:
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    rest = soft_target_loss(student[:2], teacher[:2], temperature=1.0)
    student[2] = teacher[2] = -torch.inf
    student.requires_grad_()
    found = soft_target_loss(student, teacher, temperature=1.0)
    torch.testing.assert_close(found, rest)
    found.backward()
    assert bool(student.grad.isfinite().all())  # type: ignore[union-attr]


def test_masked_logits_in_a_decoupled_and_a_relational_loss() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    targets = torch.tensor([0, 1, 0, 1])
    wide = [torch.cat([x, torch.full((4, 1), -torch.inf)], 1) for x in (student, teacher)]
    torch.testing.assert_close(decoupled_loss(*wide, targets), decoupled_loss(student, teacher, targets))
    torch.testing.assert_close(relational_loss(*wide), relational_loss(student, teacher))


def test_hints_and_attention_by_position() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    counted = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]).bool()
    torch.testing.assert_close(
        hint_loss(student, teacher, counted), hint_loss(student[..., :3], teacher[..., :3])
    )
    torch.testing.assert_close(
        attention_loss(student, teacher, counted), attention_loss(student[..., :3], teacher[..., :3])
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 200), torch.tensor([0, 156, 199, 7, 156, 3])
    loss = DistillationLoss()
    torch.testing.assert_close(loss(logits, 2 * logits, labels.to(dtype)), loss(logits, 2 * logits, labels))
    assert accuracy(nn.Identity(), [(logits, logits.argmax(1).to(dtype))]) == 1.0


def test_the_mask_is_that_of_the_outputs_positions() -> None:
    ids, encoder, decoder = torch.zeros(2, 5).long(), torch.ones(2, 5), torch.ones(2, 3)
    assert mask_of({"input_ids": ids, "attention_mask": encoder}) is encoder
    ours = {"decoder_input_ids": ids[:, :3], "attention_mask": encoder}
    assert mask_of(ours) is None
    assert mask_of(ours | {"decoder_attention_mask": decoder}) is decoder
    # One of four dims says which position sees which.
    assert mask_of({"input_ids": ids, "attention_mask": torch.ones(2, 1, 5, 5)}) is None
    assert mask_of((ids, encoder)) is None


def test_accuracy_counts_no_padding() -> None:
    class Named(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            return {"logits": torch.nn.functional.one_hot(input_ids, 4).float()}

    ids = torch.tensor([[0, 1, 2, 0, 0]])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
        "labels": torch.tensor([[0, 1, 3, 3, 3]]),
    }
    assert accuracy(Named(), [batch]) == pytest.approx(2 / 3)
    images = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1]]), 2).float()
    labels = torch.tensor([[0, 255, 0]])
    assert accuracy(nn.Identity(), [(images, labels)], ignore_index=255) == 0.5


def test_hints_alone_ask_nothing_of_the_output() -> None:
    loss = DistillationLoss(soft=0.0, hard=0.0, hints=(Hint("a"),))
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    found = loss(object(), object(), None, ((student, teacher),))
    torch.testing.assert_close(found, hint_loss(student, teacher))
