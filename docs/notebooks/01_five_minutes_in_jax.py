# ---
# jupyter: {jupytext: {text_representation: {format_name: percent}}}
# ---
# %% [markdown]
# # Five minutes in JAX
#
# Train a small network on handwritten digits three times: with a learned optimizer, with Adam at its usual rate, and with Adam at the best of five rates.
# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from sklearn.datasets import load_digits

import lopax

STEPS = 20 if os.environ.get("LOPAX_SHORT") else 500  # LOPAX_SHORT: a test's length
PICTURES = os.environ.get("LOPAX_PICTURES")  # where to keep the figure, if anywhere

# %% [markdown]
# Data, parameters and loss, as in any JAX program:
# %%
digits = load_digits()
images = jnp.asarray(digits.data / 16.0, jnp.float32)
labels = jnp.asarray(digits.target)
TRAIN = 1_400


def init(key):
    k1, k2 = jax.random.split(key)
    return {
        "w1": jax.random.normal(k1, (64, 64)) / 8.0,
        "b1": jnp.zeros(64),
        "w2": jax.random.normal(k2, (64, 10)) / 8.0,
        "b2": jnp.zeros(10),
    }


def logits(params, x):
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def loss_fn(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


# %% [markdown]
# One training run, for any optax transformation. The learned optimizer is one; that it wants the loss (`value=`) does not disturb the others.
# %%
def run(opt, seed=0):
    opt = optax.with_extra_args_support(opt)

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (64,), 0, TRAIN)
        loss, grads = jax.value_and_grad(loss_fn)(params, images[batch], labels[batch])
        updates, state = opt.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), loss

    @jax.jit
    def whole(key):
        params = init(key)
        keys = jax.random.split(key, STEPS)
        (params, _), losses = jax.lax.scan(step, (params, opt.init(params)), keys)
        right = logits(params, images[TRAIN:]).argmax(-1) == labels[TRAIN:]
        return losses, right.mean()

    return whole(jax.random.key(seed))


# %% [markdown]
# The learned optimizer is told how long the run is. It has no learning rate to tune.
# %%
curves = {"celo2, untuned": run(lopax.optimizer("celo2", num_steps=STEPS))}
curves["adam at 0.001"] = run(optax.adam(1e-3))
tuned = {rate: run(optax.adam(rate)) for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
best = min(tuned, key=lambda rate: float(tuned[rate][0][-20:].mean()))
curves[f"adam, best of five ({best:g})"] = tuned[best]

for name, (losses, accuracy) in curves.items():
    print(f"{name:<28} loss {losses[-20:].mean():.4f}   test accuracy {accuracy:.3f}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, (losses, _) in curves.items():
    smooth = jnp.convolve(losses, jnp.ones(20) / 20, mode="valid")
    axes.semilogy(smooth, label=name)
axes.set(xlabel="update", ylabel="training loss, mean of 20")
axes.legend()
if PICTURES:
    figure.savefig(f"{PICTURES}/five_minutes_in_jax.svg")

# %% [markdown]
# ![Training loss against updates, on a logarithmic axis, for celo2 untuned, Adam at 0.001 and Adam at the best of five rates; Adam at 0.001 stays highest.](../pictures/notebooks/five_minutes_in_jax.svg)
#
# One run on one small task proves nothing; [Judge on your problem](04_judge_on_your_problem.md) does it properly.
