"""What a training is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from slimfast.distillation.batches import Feed
from slimfast.distillation.losses import DistillationLoss
from slimfast.distillation.recipe import Recipe
from slimfast.distillation.sharding import check_sharded, is_sharded

Loss: TypeAlias = "DistillationLoss | Callable[[Any, Any, Any], Tensor]"
Evaluate: TypeAlias = "Iterable[Any] | Callable[[nn.Module], float]"


@dataclass(frozen=True, slots=True)
class Setup:
    """The two networks, the loss, the recipe, and where batches and scores come from."""

    student: nn.Module
    teacher: nn.Module
    loss: Loss
    recipe: Recipe
    accelerator: Any
    feed: Feed
    evaluate: Evaluate | None

    def prepared(self) -> tuple[Any, Any]:
        """Wrap the model to train and its optimizer as accelerate does.

        A student that is sharded already is not wrapped again. Gradients that the caller has left are none of
        this training.
        """
        self.student.zero_grad()
        optimizer = self.recipe.build_optimizer(self.student)
        if is_sharded(self.student):
            check_sharded(self.student, self.recipe.processes)
            model = self.accelerator.prepare_model(self.student, device_placement=False, evaluation_mode=True)
            return model, self.accelerator.prepare_optimizer(optimizer)
        model, optimizer = self.accelerator.prepare(self.student, optimizer)
        if is_sharded(self.student):
            check_sharded(self.student, self.recipe.processes)
        return model, optimizer
