# %% [markdown]
# # A sentence encoder, back to the hub
#
# Transformers of the Hugging Face hub can be cut to one width for all layers of a kind, so that their
# stock class loads the result with no slimfast at all. A small BERT of random weights stands in for
# yours.

# %%
import torch
from transformers import AutoModel, BertConfig, BertModel

import slimfast

torch.manual_seed(0)
config = BertConfig(
    vocab_size=200,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=32,
)
model = BertModel(config).eval()
tokens = torch.randint(0, 200, (2, 16))
example = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

# %% [markdown]
# ## One share for each kind of layer

# %%
plan = slimfast.plan_uniform(model, example, params=0.7)
print(plan)
thin = slimfast.prune_channels(model, plan)

# %% [markdown]
# ## Taught by the original, without labels
#
# Every output is taught, the hidden state of each token among them; the attention mask says what counts.

# %%
batches = [
    {**example, "input_ids": torch.randint(0, 200, (8, 16)), "attention_mask": torch.ones(8, 16).long()}
] * 4
loss = slimfast.DistillationLoss(hard=0.0)
history = slimfast.distill(
    thin, teacher=model, train=batches, epochs=2, lr=1e-3, optimizer="adamw", loss=loss
)
print([epoch.loss for epoch in history.epochs])

# %% [markdown]
# ## A folder of the stock class
#
# Before the folder takes its name, the stock class has loaded it and given the same output.

# %%
slimfast.save_pretrained(thin, "thin-bert", example)
stock = AutoModel.from_pretrained("thin-bert").eval()
print(type(stock).__name__, stock.config.intermediate_size, stock.config.num_attention_heads)
with torch.no_grad():
    torch.testing.assert_close(
        stock(**example).last_hidden_state, thin.eval()(**example).last_hidden_state, rtol=1e-4, atol=1e-4
    )
