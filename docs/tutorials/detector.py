# %% [markdown]
# # A detector: several outputs, several losses
#
# A detector returns classes and boxes. Both are taught, each by the loss of its kind, and cut networks
# keep their anchors and strides. This one is small and written out; yours is traced in the same way.

# %%
import torch
from torch import nn

import slimfast
from slimfast.distillation import Output

torch.manual_seed(0)


def conv(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class Detector(nn.Module):
    """Two scales, joined from the coarse to the fine one; a class and a box for each place."""

    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2))
        self.deep = nn.Sequential(conv(32, 64, 2), conv(64, 64))
        self.lateral = nn.Conv2d(64, 32, 1)
        self.head = conv(32, 32)
        self.logits = nn.Conv2d(32, classes, 1)
        self.boxes = nn.Conv2d(32, 4, 1)

    def forward(self, images):
        fine = self.stem(images)
        coarse = nn.functional.interpolate(self.lateral(self.deep(fine)), scale_factor=2.0)
        shared = self.head(fine + coarse)
        logits = self.logits(shared).flatten(2).transpose(1, 2)
        boxes = self.boxes(shared).flatten(2).transpose(1, 2)
        return {"logits": logits, "boxes": boxes}


model = Detector().eval()
example = torch.randn(1, 3, 64, 64)

# %% [markdown]
# ## What belongs together
#
# `fine` and `coarse` are added: the layers that make them lose the same channels.

# %%
plan = slimfast.plan(model, example, macs=0.5)
print(plan)
thin = slimfast.prune_channels(model, plan)
assert thin(example)["boxes"].shape == model(example)["boxes"].shape

# %% [markdown]
# ## Taught on unlabelled images
#
# Classes by their probabilities, boxes by a smooth L1 towards the original's.

# %%
images = [torch.randn(8, 3, 64, 64) for _ in range(4)]
loss = slimfast.DistillationLoss(
    hard=0.0, outputs=(Output("logits", "sigmoid"), Output("boxes", "smooth_l1", weight=5.0))
)
history = slimfast.distill(thin, teacher=model, train=images, epochs=3, lr=0.02, loss=loss)
print([round(epoch.loss, 4) for epoch in history.epochs])
assert history.epochs[-1].loss < history.epochs[0].loss

# %% [markdown]
# ## Exported
#
# The file is run before it takes its name. In ONNX (`detector.onnx`, with the extra `onnx`) the outputs
# are called `logits` and `boxes`.

# %%
slimfast.export(thin, "detector.pt2", example)
