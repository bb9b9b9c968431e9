"""Every output is taught by the loss of its kind: which kind is found from the targets, or given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from slimfast.distillation import DistillationLoss, Output, accuracy, distill
from slimfast.distillation.network_outputs import named_outputs
from slimfast.distillation.output_kinds import settled_outputs
from slimfast.errors import SlimfastError


def kinds(student: Any, targets: Any, **arguments: Any) -> list[tuple[str, str | None, bool | None]]:
    found = DistillationLoss(**arguments).settled(student, student, targets)
    return [(o.name, o.kind, o.labelled) for o in found.outputs]


@pytest.mark.parametrize(
    ("shape", "targets", "kind"),
    [
        ((4, 3), torch.tensor([0, 1, 2, -100]), "softmax"),
        ((4, 3), torch.tensor([[0], [1], [2], [1]]), "softmax"),
        ((4, 7, 3), torch.zeros(4, 7, dtype=torch.int64), "softmax"),
        ((4, 3), torch.rand(4, 3).softmax(1), "softmax"),
        ((4, 3), torch.rand(4, 3).softmax(1).bfloat16(), "softmax"),
        ((4, 3), torch.tensor([[1.0, 0, 1]] * 4), "sigmoid"),
        ((4, 3), torch.tensor([[1, 0, -1]] * 4), "sigmoid"),
        ((4, 3), torch.tensor([[1, 0, 1]] * 4).bool(), "sigmoid"),
        ((4, 1), torch.tensor([0.0, 1, 1, 0]), "sigmoid"),
        ((4, 1), torch.tensor([0, 1, 1, 0]), "sigmoid"),
        ((4,), torch.tensor([[0.0], [1], [1], [math.nan]]), "sigmoid"),
        ((4, 1), torch.tensor([0.5, 1, 1, 3]), "mse"),
        ((4,), torch.tensor([0.5, 1, 1, 3]), "mse"),
        ((4, 3), torch.randn(4, 3), "mse"),
        ((4, 3, 8, 8), torch.rand(4, 3, 8, 8), "mse"),
        ((4, 3), None, "softmax"),
        ((4, 1), None, "mse"),
        ((4,), None, "mse"),
    ],
)  # fmt: skip
def test_the_kind_is_found_from_shapes_and_values(shape: tuple[int, ...], targets: Any, kind: str) -> None:
    ((_, found, _),) = kinds(torch.randn(shape), targets)
    assert found == kind


def test_a_configuration_names_the_problem() -> None:
    config = SimpleNamespace(problem_type="multi_label_classification", semantic_loss_ignore_index=255)
    # One label in each row: by the values alone it could be a softmax.
    targets = torch.eye(3)
    loss = DistillationLoss().settled(torch.randn(3, 3), None, targets, None, SimpleNamespace(config=config))
    assert (loss.outputs[0].kind, loss.ignore_index) == ("sigmoid", 255)
    assert kinds(torch.randn(3, 3), targets)[0][1] == "softmax"
    assert kinds(torch.randn(3, 3), targets, outputs=(Output("", "mse"),))[0][1] == "mse"


@pytest.mark.parametrize(
    ("arguments", "student", "targets", "message"),
    [
        ({}, torch.randn(4, 3), torch.rand(4), r"targets are \(4,\) float32, expected class indices \(4,\)"),
        ({}, torch.randn(4, 1), torch.rand(3), r"targets are \(3,\) float32, expected values of its own"),
        ({}, torch.randn(4, 3), torch.full((4, 3), 2), "must be 0 or 1"),
        ({}, torch.randn(4, 3, 8, 8), None, "classes or be an image"),
        ({"outputs": (Output("", "softmax"),)}, torch.randn(4, 1), None, "is a constant"),
        ({"outputs": (Output("", "cosine"),)}, torch.randn(4, 1), None, "is a constant"),
        ({"outputs": (Output("x", "mse"),)}, (torch.randn(4, 1),), None, "an output 'x', got 0"),
        ({}, (torch.randn(4, 5), torch.randn(4, 5)), torch.tensor([0, 1, 2, 3]), "fit several"),
        ({}, (torch.randn(4, 5), torch.randn(4, 2)), torch.tensor([0, 9, 2, 3]), "fit none"),
        ({}, (torch.randn(4, 5), torch.randn(4, 2)), (torch.zeros(4),), "1 tensors of targets for"),
        ({}, {"a": torch.randn(4, 5), "b": torch.randn(4, 2)}, {"c": torch.zeros(4)}, "targets of c, but"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_asked_for(
    arguments: dict[str, Any], student: Any, targets: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        DistillationLoss(hard=0.0 if targets is None else 0.1, **arguments)(student, student, targets)
    assert "\n" not in str(caught.value)


def test_wrong_outputs() -> None:
    with pytest.raises(ValueError, match="kind must be one of softmax, sigmoid"):
        Output("a", "huber")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight must be positive, got 0"):
        Output("a", weight=0.0)


class Boxes(NamedTuple):
    boxes: Tensor
    scores: Tensor


@dataclass
class Held:
    logits: Tensor
    parts: list[Tensor]
    hidden_states: tuple[Tensor, ...]
    loss: Tensor


class Slotted:
    __slots__ = ("_cache", "mean")

    def __init__(self) -> None:
        self.mean, self._cache = torch.zeros(2, 1), torch.zeros(3)


def test_outputs_are_found_in_all_that_holds_them() -> None:
    x = torch.zeros(2, 3)
    assert list(named_outputs(x)) == [""]
    assert list(named_outputs((x, None, [x, x.long()]))) == ["0", "2.0"]
    assert list(named_outputs(Boxes(x, x))) == ["boxes", "scores"]
    assert list(named_outputs({"last_hidden_state": x, "pooler_output": x})) == [
        "last_hidden_state",
        "pooler_output",
    ]
    assert list(named_outputs({"last_hidden_state": x, "start_logits": x, "decoder_attentions": (x,)})) == [
        "start_logits"
    ]
    assert list(named_outputs(Held(x, [x], (x,), x.sum()))) == ["logits", "parts.0"]
    assert list(named_outputs(Slotted())) == ["mean"]
    circle: dict[str, Any] = {"a": x}
    circle["again"] = circle
    assert list(named_outputs(circle)) == ["a"]


def test_targets_go_to_the_outputs_they_are_of() -> None:
    two = (torch.randn(4, 5), torch.randn(4, 2))
    assert kinds(two, torch.tensor([4, 0, 1, 2])) == [("0", "softmax", True), ("1", "mse", False)]
    assert kinds(two, torch.randn(4, 2)) == [("0", "mse", False), ("1", "mse", True)]
    assert kinds(two, (torch.tensor([4, 0, 1, 2]), torch.tensor([0, 1, 1, 0]))) == [
        ("0", "softmax", None),
        ("1", "softmax", None),
    ]
    named = {"logits": two[0], "aux": torch.randn(4, 5)}
    assert kinds(named, torch.tensor([4, 0, 1, 2])) == [("logits", "softmax", True), ("aux", "mse", False)]
    assert kinds(named, {"aux": torch.randn(4, 5)}) == [("logits", "mse", None), ("aux", "mse", None)]
    chosen = (Output("1", "smooth_l1"), Output("0", labelled=True))
    assert kinds(two, torch.tensor([1, 0, 1, 0]), outputs=chosen) == [
        ("1", "smooth_l1", False),
        ("0", "softmax", True),
    ]


def test_terms_of_several_outputs_by_hand() -> None:
    torch.manual_seed(0)
    student = {"logits": torch.randn(4, 5), "boxes": torch.randn(4, 2)}
    teacher = {"logits": torch.randn(4, 5), "boxes": torch.randn(4, 2)}
    targets = {"logits": torch.tensor([0, 4, 2, -100]), "boxes": torch.randn(4, 2)}
    loss = DistillationLoss(outputs=(Output("logits"), Output("boxes", "smooth_l1", weight=3.0)))
    terms = loss.terms(student, teacher, targets)
    assert sorted(terms) == ["hard of boxes", "hard of logits", "soft of boxes", "soft of logits"]
    expected = {
        "hard of boxes": (0.1 * 3, functional.smooth_l1_loss(student["boxes"], targets["boxes"])),
        "soft of boxes": (0.9 * 3, functional.smooth_l1_loss(student["boxes"], teacher["boxes"])),
        "hard of logits": (0.1, functional.cross_entropy(student["logits"], targets["logits"])),
    }
    for name, (weight, value) in expected.items():
        assert terms[name][0] == pytest.approx(weight)
        torch.testing.assert_close(terms[name][1], value)


def test_binary_terms_by_hand() -> None:
    # At T = 2 the teacher says yes with 3/4, the student with 1/2, as two classes of logits 2 log 3 and 0.
    student, teacher = torch.zeros(1, 1), torch.tensor([[2 * math.log(3)]])
    terms = DistillationLoss(temperature=2.0).terms(student, teacher, torch.tensor([1.0]))
    assert float(terms["soft"][1]) == pytest.approx(4 * (0.75 * math.log(3) - math.log(2)), rel=1e-6)
    assert float(terms["hard"][1]) == pytest.approx(math.log(2))
    # Label 1 smoothed by 0.2 to 0.9, at a logit of log 3.
    loss = DistillationLoss(soft=0.0, hard=1.0, label_smoothing=0.2)
    found = loss(torch.tensor([[math.log(3)]]), None, torch.tensor([[1]]))
    assert float(found) == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25), rel=1e-6)


def test_several_labels_are_counted_one_by_one() -> None:
    student = torch.tensor([[2.0, -1.0, 0.5]])
    targets = torch.tensor([[1.0, math.nan, 0.0]])
    loss = DistillationLoss(soft=0.0, hard=1.0)
    expected = (-functional.logsigmoid(student[0, 0]) - functional.logsigmoid(-student[0, 2])) / 2
    torch.testing.assert_close(loss(student, None, targets), expected)
    torch.testing.assert_close(loss(student, None, torch.tensor([[1, -1, 0]])), expected)
    assert accuracy(nn.Identity(), [(student, targets)]) == 0.5


def test_cosines_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [5.0, 0.0]])
    loss = DistillationLoss(soft=1.0, hard=0.0, outputs=(Output("", "cosine"),))
    assert float(loss(student, teacher)) == pytest.approx((1 - 0.6) / 2)


def test_no_output_is_passed_over() -> None:
    two = (torch.randn(4, 5), torch.randn(4, 2))
    loss = DistillationLoss(soft=0.0, hard=1.0)
    with pytest.raises(ValueError, match="output 1 has neither targets nor a soft loss"):
        loss(two, None, torch.tensor([4, 0, 1, 2]))
    only = DistillationLoss(soft=0.0, hard=1.0, outputs=(Output("0"),))
    torch.testing.assert_close(
        only(two, None, torch.tensor([4, 0, 1, 2])),
        functional.cross_entropy(two[0], torch.tensor([4, 0, 1, 2])),
    )


def test_accuracy_is_of_classes() -> None:
    with pytest.raises(SlimfastError, match=r"expected targets that are classes, got values \(mse\)"):
        accuracy(nn.Identity(), [(torch.randn(4, 1), torch.randn(4))])
    assert accuracy(
        nn.Identity(), [(torch.tensor([[3.0], [-1.0], [2.0]]), torch.tensor([1, 0, 0]))]
    ) == pytest.approx(2 / 3)


def test_the_dim_of_the_classes_is_where_the_targets_fit() -> None:
    def found(shape: tuple[int, ...], targets: torch.Tensor | None, **given: Any) -> int | None:
        student = torch.randn(shape)
        (output,) = settled_outputs((Output(),), student, targets, given.get("class_dim"), -100)
        return output.class_dim

    classes = torch.zeros(2, 5, 6, dtype=torch.int64)
    assert found((2, 3, 5, 6), classes) == 1
    assert found((2, 5, 6, 3), classes) == -1
    assert found((2, 3, 7), torch.zeros(2, 7, dtype=torch.int64)) == 1
    assert found((2, 7, 3), torch.zeros(2, 7, dtype=torch.int64)) == -1
    assert found((2, 3), torch.zeros(2, dtype=torch.int64)) == -1
    # What is given counts; what fits twice is the last one, as without targets.
    assert found((2, 7, 7), torch.zeros(2, 7, dtype=torch.int64), class_dim=1) == 1
    assert found((2, 7, 7), torch.zeros(2, 7, dtype=torch.int64)) == -1
    assert found((2, 7, 5), None) == -1


def test_segmentation_is_taught_without_being_told() -> None:
    def segmenter(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    data = [(torch.randn(2, 3, 6, 5), torch.randint(0, 4, (2, 6, 5))) for _ in range(3)]
    found = []
    for given in (None, 1):
        student = segmenter(1)
        loss = DistillationLoss(class_dim=given)
        found.append(distill(student, teacher=segmenter(0), train=data, epochs=1, loss=loss).epochs[-1].loss)
    assert found[0] == found[1]
