# ---
# jupyter: {jupytext: {text_representation: {format_name: percent}}}
# ---
# %% [markdown]
# # Five minutes in PyTorch
#
# The same in PyTorch: a convolutional network on handwritten digits. JAX need not be installed.
# %%
import os

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import lopax.torch

STEPS = 10 if os.environ.get("LOPAX_SHORT") else 300  # LOPAX_SHORT: a test's length
PICTURES = os.environ.get("LOPAX_PICTURES")  # where to keep the figure, if anywhere

# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16.0
labels = torch.tensor(digits.target)
TRAIN = 1_400


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


# %% [markdown]
# The training loop. Only one line is new: `step(loss=loss)`. With a loop that is not yours, call `optimizer.observe(loss)` before its `step()`, or pass a closure.
# %%
def run(make):
    model = network()
    optimizer = make(model)
    losses = []
    for _ in range(STEPS):
        batch = torch.randint(TRAIN, (64,))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, lopax.torch.LearnedOptimizer):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = (model(images[TRAIN:]).argmax(1) == labels[TRAIN:]).float().mean()
    return losses, right.item()


# %% [markdown]
# Celo2 treats matrices, vectors and embeddings differently, so it gets the parameters with their names.
# %%
def adamw(rate):
    return lambda model: torch.optim.AdamW(model.parameters(), lr=rate)


runs = {
    "celo2, untuned": run(
        lambda model: lopax.torch.Celo2(model.named_parameters(), num_steps=STEPS)
    ),
    "celo, untuned": run(
        lambda model: lopax.torch.Celo(model.parameters(), num_steps=STEPS)
    ),
    "adamw at 0.001": run(adamw(1e-3)),
}
tuned = {rate: run(adamw(rate)) for rate in (3e-3, 1e-2)}
best = min(tuned, key=lambda rate: sum(tuned[rate][0][-20:]))
runs[f"adamw, better of two more ({best:g})"] = tuned[best]
for name, (losses, accuracy) in runs.items():
    last = sum(losses[-20:]) / len(losses[-20:])
    print(f"{name:<36} loss {last:.4f}   test accuracy {accuracy:.3f}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, (losses, _) in runs.items():
    smooth = torch.tensor(losses).unfold(0, min(20, STEPS), 1).mean(-1)
    axes.semilogy(smooth, label=name)
axes.set(xlabel="update", ylabel="training loss, mean of 20")
axes.legend()
if PICTURES:
    figure.savefig(f"{PICTURES}/five_minutes_in_pytorch.svg")

# %% [markdown]
# ![Training loss against updates, on a logarithmic axis, for celo2 and celo untuned, AdamW at 0.001 and at the better of two other rates.](../pictures/notebooks/five_minutes_in_pytorch.svg)
#
# Everything else (parameter groups, schedulers, `state_dict`, mixed precision, several processes) is on the page [Use it in PyTorch](../use_in_pytorch.md).
