# %% [markdown]
# # With a few hundred images
#
# Some samples of the training data, without labels, decide better than the weights alone: widths follow
# what the layers that read a group would miss, and those layers are solved again, by least squares, for
# what is left. The thin network then works before any training.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn

import slimfast
from slimfast.distillation import accuracy

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train = [(images[part], labels[part]) for part in order[:1400].split(100)]
test = [(images[part], labels[part]) for part in order[1400:].split(100)]

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1, stride=2),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.Conv2d(64, 64, 3, padding=1, stride=2),
    nn.BatchNorm2d(64),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(5):
    for x, y in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
model.eval()
print(f"the original: {accuracy(model, test):.1%}")

# %% [markdown]
# ## What the layers read
#
# 300 images are enough here. Labels in the batches are not looked at.

# %%
graph = slimfast.trace_channels(model, images[:1])
data = slimfast.calibrate(model, graph, [x for x, _ in train], samples=300)

# %% [markdown]
# ## Side by side, without any training
#
# Half of the multiply-adds: from weights alone, and with the calibration for widths, units and repair.

# %%
by_weights = slimfast.prune_channels(model, slimfast.plan(model, images[:1], macs=0.5))
plan = slimfast.plan(model, images[:1], macs=0.5, calibration=data)
by_data = slimfast.prune_channels(model, plan, calibration=data)
first, second = accuracy(by_weights, test), accuracy(by_data, test)
print(f"from weights alone: {first:.1%}, with 300 images: {second:.1%}")
assert second > first

# %% [markdown]
# Where a training follows, say so with `for_training=True`: large units (in a transformer those by
# activations) and a repair that fits less closely start lower and end higher.

# %%
start = slimfast.prune_channels(model, plan, calibration=data, for_training=True)
print(slimfast.repair_report(start))
