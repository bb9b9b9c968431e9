# %% [markdown]
# # A decoder, from shards to thin shards
#
# The weights stay on the disk: of the model only its code is needed, on the meta device. Memory is that
# of the largest group of layers, whatever the size of the model. A small Llama of random weights stands
# in for yours.

# %%
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import slimfast

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
LlamaForCausalLM(config).save_pretrained("wide", max_shard_size="200KB")
index = "wide/model.safetensors.index.json"

# %% [markdown]
# ## The plan
#
# `resume` names a file of finished layers: a measurement that was stopped goes on there. Positions inside
# heads stay whole: their frequencies are a buffer that no checkpoint holds.

# %%
with torch.device("meta"):
    model = LlamaForCausalLM(config).eval()
    tokens = torch.zeros(1, 16, dtype=torch.int64)
plan = slimfast.plan_checkpoint(
    index, model, {"input_ids": tokens}, params=0.6, exclude=["head_dim"], resume="spectra.sidecar"
)
print(plan)

# %% [markdown]
# ## Thin shards
#
# One tensor is in memory at a time. The folder has an index last of all; without it nothing in the folder
# counts.

# %%
kept = slimfast.prune_checkpoint(index, plan, "thin", model=model, strict=True)
print({name: pair for name, pair in kept.widths.items() if pair[0] != pair[1]})

# %% [markdown]
# ## Loaded
#
# Buffers that no checkpoint holds are the model's own, so that it is built on a device here.

# %%
thin = slimfast.load_checkpoint("thin", LlamaForCausalLM(config)).eval()
with torch.no_grad():
    logits = thin(torch.randint(0, 256, (1, 16))).logits
assert logits.shape == (1, 16, 256)
print(sum(p.numel() for p in thin.parameters()))
