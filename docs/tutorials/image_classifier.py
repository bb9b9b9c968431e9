# %% [markdown]
# # An image classifier, from training to export
#
# A small network reads scans of digits, is cut to 40 % of its multiply-adds, learns back from the
# original, and is written for other runtimes. The data ships with scikit-learn, so that nothing is
# downloaded; with images of your own only `batches` changes.

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


def batches(chosen, size=100):
    return [(images[part], labels[part]) for part in chosen.split(size)]


train, test = batches(order[:1400]), batches(order[1400:])


# %% [markdown]
# ## The original
#
# Any network will do. This one has a shortcut, whose layers can only be cut together.


# %%
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 32, 3, padding=1),
            nn.BatchNorm2d(32),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.block(x) + x)
        return self.head(x.mean((2, 3)))


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(5):
    for x, y in train:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
model.eval()
print(f"the original: {accuracy(model, test):.1%}")

# %% [markdown]
# ## Widths for a budget
#
# `macs=0.4` is the share of the multiply-adds that may stay. The plan says what each group of channels
# keeps; `explain()` says which tensors belong together, and what is left alone and why.

# %%
plan = slimfast.plan(model, images[:1], macs=0.4)
print(plan)
print(plan.explain())

# %% [markdown]
# ## The cut, and the training back
#
# `prune_channels` returns a new module; `model` is as it was. The thin network is checked against the
# original with the removed units masked.

# %%
thin = slimfast.prune_channels(model, plan)
print(f"cut: {accuracy(thin, test):.1%}")
history = slimfast.distill(thin, teacher=model, train=train, evaluate=test, epochs=5, lr=0.05)
print(f"distilled: {accuracy(thin, test):.1%}, best epoch {history.best.epoch}")

# %% [markdown]
# ## Saved, loaded, exported
#
# The file holds the tensors and what was kept. Loading cuts a freshly built `Net()` to fit, in any later
# process.

# %%
slimfast.save(thin, "thin.safetensors")
loaded = slimfast.load("thin.safetensors", Net()).eval()
assert torch.equal(loaded(images[:8]), thin.eval()(images[:8]))
slimfast.export(thin, "thin.pt2", images[:1])
print("parameters:", plan.cost_before.params, "->", plan.cost_after.params)
