"""A tiny network with what is hard to resume, its teacher and its samples, for tests of distillation."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slimfast.distillation import DistillationLoss, accuracy, distill

CLASSES = 3


def network(hidden: int = 8, *, seed: int = 0, classes: int = CLASSES) -> nn.Module:
    """A network with what is hard to resume: batch-norm statistics and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, classes)
    )


def samples(n: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clusters of points, and which one each is from."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(n) % CLASSES
    return torch.randn(n, 4, generator=generator) + 3 * torch.eye(4)[targets], targets


def loader(n: int = 48) -> DataLoader:
    return DataLoader(TensorDataset(*samples(n)), batch_size=8, shuffle=True)


def batches(n: int = 48) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = samples(n)
    return list(zip(x.split(8), y.split(8), strict=True))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A teacher that knows the clusters, left in train mode on purpose."""
    model = network(16, seed=7)
    distill(
        model,
        teacher=network(16, seed=8),
        train=batches(),
        loss=DistillationLoss(soft=0.0, hard=1.0),
        epochs=20,
    )
    assert accuracy(model, batches()) > 0.95
    return model.train()
