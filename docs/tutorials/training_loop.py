# %% [markdown]
# # Pruning inside a training loop
#
# In the middle of a training the optimizer's state of every unit that stays comes along, and so does an
# average of the weights: the loop goes on as if the network had always been thin.

# %%
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import slimfast

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 5))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
teacher = nn.Linear(20, 5)


def step(network, optimizer, average):
    x = torch.randn(64, 20)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(network(x), teacher(x).argmax(1))
    loss.backward()
    optimizer.step()
    average.update_parameters(network)
    return loss.item()


for _ in range(100):
    loss = step(model, optimizer, average)
print(f"wide, after 100 steps: {loss:.3f}")

# %% [markdown]
# ## The cut
#
# A plan of now, and the optimizer's state in the same order of units.

# %%
plan = slimfast.plan(model, torch.randn(1, 20), params=0.4)
thin, optimizer = slimfast.prune_channels(model, plan, optimizer=optimizer)
state = slimfast.prune_state(average.module.state_dict(), model, thin)
average = AveragedModel(thin, multi_avg_fn=get_ema_multi_avg_fn(0.9))
average.module.load_state_dict(state)

# %%
for _ in range(100):
    loss = step(thin, optimizer, average)
print(f"thin, 100 steps later: {loss:.3f}")
print(slimfast.manifest(thin).widths)

# %% [markdown]
# ## Again, a little thinner
#
# A thin network can be planned and cut once more; its manifest tells of both cuts as one.

# %%
again = slimfast.plan(thin, torch.randn(1, 20), params=0.8)
thinner, optimizer = slimfast.prune_channels(thin, again, optimizer=optimizer)
print(slimfast.manifest(thinner).widths)

# %% [markdown]
# ## In rounds
#
# `rounds` does both by itself, and anew in each round: it measures, plans, cuts, and lets the loop train.
# The optimizer and the average that are given go on in place; with a `folder` the same program goes on where
# it was stopped.

# %%
average = AveragedModel(thinner, multi_avg_fn=get_ema_multi_avg_fn(0.9))
run = slimfast.rounds(
    thinner,
    torch.randn(1, 20),
    params=0.5,
    rounds=2,
    calibration=[torch.randn(64, 20) for _ in range(4)],
    optimizer=optimizer,
    averages=[average],
)
for number, (plan, network, _) in enumerate(run, 1):
    for _ in range(100):
        loss = step(network, optimizer, average)
    print(f"round {number}: {plan.cost_after.params} parameters, loss {loss:.3f}")
