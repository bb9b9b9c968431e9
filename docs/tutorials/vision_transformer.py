# %% [markdown]
# # A vision transformer's heads and MLPs
#
# Attention heads are cut whole, hidden units of the MLPs one by one, and the residual stream through all
# layers at once. The network here is small and its weights are random; with `pretrained=True` the same
# lines take a trained one.

# %%
import timm
import torch

import slimfast

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=10).eval()
example = torch.randn(1, 3, 32, 32)
graph = slimfast.trace_channels(model, example)
for group in graph:
    print(f"{group.name}: {group.n} units of kind {group.kind}")

# %% [markdown]
# ## MLPs alone
#
# Globs of names and kinds say what may be cut. Widths are multiples of 8, where the hardware likes that.

# %%
plan = slimfast.plan(model, example, params=0.7, multiple_of=8, include=["blocks.*.mlp.*"])
thin = slimfast.prune_channels(model, plan)
print([block.mlp.fc1.out_features for block in thin.blocks])

# %% [markdown]
# ## Heads too, the stream whole
#
# A width by hand is a number of units or a share of them, for all groups that a glob matches.

# %%
heads = [group.name for group in graph if group.kind == "head"]
stream = max(graph, key=lambda group: len(group.members)).name
plan = slimfast.plan(
    model, example, params=0.6, exclude=[stream], overrides=dict.fromkeys(heads, 2), include=["blocks.*"]
)
thin = slimfast.prune_channels(model, plan)
print([block.attn.num_heads for block in thin.blocks])
assert thin(example).shape == (1, 10)
