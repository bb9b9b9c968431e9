"""Hints: features of a thin network beside those of its teacher, aligned and weighed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import slimfast
from slimfast.distillation import DistillationLoss, Hint, aligned_hints, hint_loss
from slimfast.pruning.manifests import Manifest, attach


class Net(nn.Module):
    """(N, 2, 4, 4) to logits (N, 3), with one convolution of ``width`` channels to hint at."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, width, 3, padding=1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean(dim=(2, 3)))


class Doubled(nn.Module):
    """A parametrization that is linear."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Spread(nn.Module):
    """A parametrization whose weight has more rows than what it is made of."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight, -weight])


def test_hints_by_hand() -> None:
    # Channel 0: squared errors 1, 1 over variance 1; channel 1: 9, 9 over variance 4. Mean of 1 and 9/4.
    teacher = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    student = torch.tensor([[2.0, 5.0], [2.0, 9.0]])
    assert hint_loss(student, teacher).item() == pytest.approx((1 + 9 / 4) / 2)


def test_a_hint_of_a_constant_channel_is_measured_by_the_others() -> None:
    # Variances 1 and 0: the floor is a hundredth of their mean, 0.005; the error 0.01 in channel 1 becomes 2.
    teacher = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    student = torch.tensor([[1.0, 5.1], [3.0, 5.1]])
    assert hint_loss(student, teacher).item() == pytest.approx((0 + 0.01 / 0.005) / 2, rel=1e-5)


def test_hints_of_dead_channels_stay_finite() -> None:
    zeros = torch.zeros(2, 3, 4)
    assert hint_loss(zeros, zeros).item() == 0


def test_watching_compares_the_kept_channels() -> None:
    torch.manual_seed(0)
    teacher, student = Net(4), Net(2)
    keep = [1, 3]
    with torch.no_grad():
        student.conv.weight.copy_(teacher.conv.weight[keep])
        student.conv.bias.copy_(teacher.conv.bias[keep])
    x = torch.randn(3, 2, 4, 4)
    for kept, matches in (((1, 3), True), ((0, 3), False)):
        loss = DistillationLoss(soft=0.0, hard=0.0, hints=(Hint("conv", kept),))
        with loss.watching(student, teacher) as features:
            value = loss(student(x), teacher(x), None, features())
        assert (value.item() < 1e-10) == matches
    assert not student.conv._forward_hooks
    assert not teacher.conv._forward_hooks


def test_aligned_hints_follow_the_manifest() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.up = nn.ConvTranspose2d(4, 2, 1)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 2)
            self.table = nn.Embedding(10, 3)
            self.act = nn.ReLU()

    student = Many()
    keeps = {
        "conv.weight": {0: np.array([0, 5]), 1: np.array([1, 2])},
        "up.weight": {0: np.array([0, 5]), 1: np.array([3, 4])},
        "norm.weight": {0: np.array([0, 6])},
        "head.weight": {1: np.array([0, 7])},
        "table.weight": {1: np.array([2, 8])},
    }
    attach(student, Manifest({}, keeps))
    assert aligned_hints(student, ["conv", "up", "norm", "head", "table"]) == (
        Hint("conv", (0, 5), 1),
        Hint("up", (3, 4), 1),
        Hint("norm", (0, 6), 1),
        Hint("head", None, -1),
        Hint("table", (2, 8), -1),
    )
    with pytest.raises(ValueError, match="act is a ReLU"):
        aligned_hints(student, ["act"])
    with pytest.raises(ValueError, match="no module 'nothing'"):
        aligned_hints(student, ["nothing"])


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    ],
    ids=[
        "masked",
        "weight norm of old",
        "spectral norm of old",
        "weight norm",
        "spectral norm",
        "parametrization",
    ],
)
def test_aligned_hints_of_layers_that_make_their_weights(wrap) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    wrap(model[0])
    prune.l1_unstructured(model[1], "weight", amount=2)
    example = torch.randn(2, 2, 4, 4)
    plan = slimfast.select(model, slimfast.plan(model, example, overrides={"0": 5}))
    (keep,) = (group.keep for group in plan.groups)
    thin = slimfast.prune_channels(model, plan)
    assert len(keep) == 5
    assert aligned_hints(thin, ["0", "1", "3"]) == (
        Hint("0", keep, 1),
        Hint("1", keep, 1),
        Hint("3", None, 1),
    )


def test_hints_by_cut_weigh_what_each_module_lost() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5), nn.Linear(5, 2)]
    model = nn.Sequential(*layers).eval()
    plan = slimfast.plan(model, torch.randn(2, 3), overrides={"0": 4, "2": 2, "4": 5})
    thin = slimfast.prune_channels(model, plan)
    # Of 4 x 8 numbers 4 x 2 are left, of 8 x 5 the inputs' 2 x 5; the first and last layers are whole.
    hints = aligned_hints(thin, ["*"], by_cut=True)
    assert [(hint.module, hint.weight) for hint in hints] == [("2", 1 - 8 / 32), ("4", 1 - 10 / 40)]
    plain = aligned_hints(thin, ["[24]", "2"])
    assert [(hint.module, hint.weight) for hint in plain] == [("2", 1.0), ("4", 1.0)]
    assert hints[0].keep == plain[0].keep == plan_keep(thin)
    with pytest.raises(ValueError, match="by_cut, but nothing of these modules was cut"):
        aligned_hints(thin, ["0", "5"], by_cut=True)
    with pytest.raises(ValueError, match=r"'layer[.][*]' matches no module with a weight"):
        aligned_hints(thin, ["layer.*"])


def plan_keep(thin: nn.Module) -> tuple[int, ...]:
    """The outputs of layer 2 that are left."""
    return tuple(slimfast.manifest(thin).keeps["2.weight"][0].tolist())


def test_weighted_hints_are_a_weighted_mean() -> None:
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(2))
    x = torch.randn(6, 3)
    one, other = (hint_loss(student[:n](x), teacher[:n](x)) for n in (1, 2))

    def hinted(*weights: float) -> torch.Tensor:
        hints = tuple(Hint(str(i), dim=-1, weight=weight) for i, weight in enumerate(weights))
        loss = DistillationLoss(soft=0.0, hard=0.0, hints=hints)
        with loss.watching(student, teacher) as features:
            return loss(student(x), teacher(x), None, features())

    torch.testing.assert_close(hinted(1.0, 1.0), (one + other) / 2)
    torch.testing.assert_close(hinted(0.3, 0.1), (3 * one + other) / 4)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Hint 0: the weight must be positive"):
            Hint("0", weight=weight)


def test_aligned_hints_go_by_the_first_name_of_a_tied_weight() -> None:
    student = nn.ModuleDict({"first": nn.Linear(3, 2), "second": nn.Linear(3, 2)})
    student["second"].weight = student["first"].weight
    attach(student, Manifest({}, {"first.weight": {0: np.array([1, 4])}}))
    assert aligned_hints(student, ["second"]) == (Hint("second", (1, 4), -1),)


def test_a_weight_made_of_other_shapes_wants_a_hint_of_its_own() -> None:
    student = nn.Sequential(nn.Linear(3, 2))
    parametrize.register_parametrization(student[0], "weight", Spread(), unsafe=True)
    attach(student, Manifest({}, {}))
    with pytest.raises(
        ValueError, match=r"aligned_hints: 0: expected a tensor of its weight's shape \(4, 3\)"
    ):
        aligned_hints(student, ["0"])


def test_hints_of_channels_last_features() -> None:
    teacher, student = nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        student[0].weight.copy_(teacher[0].weight[[0, 2]])
        student[0].bias.copy_(teacher[0].bias[[0, 2]] + 1)
    loss = DistillationLoss(soft=0.0, hard=0.0, hints=(Hint("0", (0, 2), -1),))
    x = torch.randn(2, 5, 3)
    with loss.watching(student, teacher) as features:
        student(x), teacher(x)
        ((ours, theirs),) = features()
    assert ours.shape == theirs.shape == (2, 2, 5)
    torch.testing.assert_close(ours - 1, theirs)


class Recomputed(nn.Module):
    """A block that its backward pass computes again."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))


# A trial without gradients comes first.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("soft", [0.0, 0.5])
def test_a_hint_that_would_teach_nothing_is_refused(soft: float) -> None:
    torch.manual_seed(0)
    loss = DistillationLoss(soft=soft, hard=0.0, hint=1.0, hints=(Hint("block.0"),))
    data = [torch.randn(8, 3)]
    with pytest.raises(ValueError, match=r"hint 'block\.0': its output has no gradient"):
        slimfast.distill(Recomputed(True), teacher=Recomputed(False), train=data, epochs=1, loss=loss)
    student, teacher = Recomputed(False), Recomputed(False)
    before = student.block[0].weight.detach().clone()
    slimfast.distill(student, teacher=teacher, train=data, epochs=1, loss=loss)
    assert not torch.equal(student.block[0].weight, before)


def test_a_hint_at_frozen_layers_is_no_fault() -> None:
    torch.manual_seed(0)
    student, teacher = Net(), Net()
    student.conv.requires_grad_(False)
    loss = DistillationLoss(hard=0.0, hint=1.0, hints=(Hint("conv"),))
    slimfast.distill(student, teacher=teacher, train=[torch.randn(8, 2, 4, 4)], epochs=1, loss=loss)
