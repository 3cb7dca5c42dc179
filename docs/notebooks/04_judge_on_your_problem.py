# ---
# jupyter: {jupytext: {text_representation: {format_name: percent}}}
# ---
# %% [markdown]
# # Judge on your problem
#
# Whether an optimizer is better on *your* problem is a measurement. It needs a tuned baseline, several seeds and an interval. `lopax.evaluate.compare` does all three.
# %%
import os
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
from sklearn.datasets import load_breast_cancer

from lopax import evaluate

SHORT = bool(os.environ.get("LOPAX_SHORT"))  # a test's length
PICTURES = os.environ.get("LOPAX_PICTURES")  # where to keep the figure, if anywhere

# %% [markdown]
# **A problem** is anything with `init` and `loss`, and `data` or `batch(key)` if the loss takes a batch. Here: a small network that tells benign from malignant cells.
# %%
x, y = load_breast_cancer(return_X_y=True)


class Cells:
    data = (jnp.asarray((x - x.mean(0)) / x.std(0)), jnp.asarray(y, jnp.float32))

    @staticmethod
    def init(key):
        k1, k2 = jax.random.split(key)
        return {
            "w1": jax.random.normal(k1, (30, 32)) / 30**0.5,
            "b1": jnp.zeros(32),
            "w2": jax.random.normal(k2, (32,)) / 32**0.5,
        }

    @staticmethod
    def loss(params, batch):
        x, y = batch
        z = jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]
        return jnp.mean(jnp.logaddexp(0.0, z) - y * z)


# %% [markdown]
# **The comparison.** `adam` and `muon` are tuned over 15 learning rates each; `celo2` and `celo` are not tuned; `adam@0.001` is what somebody gets who does not tune, either.
# %%
OPTIMIZERS = ["celo2", "celo", "adam", "adam@0.001", "muon"]
if SHORT:
    OPTIMIZERS = ["celo", "adam@0.001"]

found = evaluate.compare(
    Cells(),
    OPTIMIZERS,
    num_steps=5 if SHORT else 300,
    seeds=1 if SHORT else 5,
    reference="adam@0.001" if SHORT else "adam",
    folder=tempfile.mkdtemp(),
    measure_cost=False,
)
print(found)

# %% [markdown]
# The score is the final loss of tuned Adam divided by that of the optimizer: above 1 is better. The verdict says whether chance is a likely explanation, and how many seeds would settle it if it is.
#
# On this problem Muon is far ahead, Celo is level with tuned Adam, and Celo2, which is the best of the bundled ones elsewhere, is worse. That is why one measures. (The network fits its 569 examples almost perfectly, so ratios of final losses exaggerate; the report says so and shows held-out losses if there are held-out data.)
# %%
rows = found.summary.rows
figure, axes = plt.subplots(figsize=(6, 2.5), layout="constrained")
for place, row in enumerate(reversed(rows)):
    axes.plot([row.iqm.low, row.iqm.high], [place, place], linewidth=6, alpha=0.4)
    axes.plot(row.iqm.value, place, "ko")
axes.axvline(1.0, linestyle=":", color="grey")
axes.set_yticks(range(len(rows)), [row.optimizer for row in reversed(rows)])
axes.set(xscale="log", xlabel="final-loss score (tuned Adam is 1), 95 % interval")
if PICTURES:
    figure.savefig(f"{PICTURES}/judge_on_your_problem.svg")

# %% [markdown]
# ![Scores of five optimizers with 95 per cent intervals on a logarithmic axis, relative to tuned Adam at 1: Muon 13, Celo 1, Celo2 0.25, Adam at 0.001 0.08.](../pictures/notebooks/judge_on_your_problem.svg)
#
# The full report with curves, held-out losses and costs is at `found.report.html`. In PyTorch: `lopax.torch.comparison.compare`. More: [Judging optimizers](../evaluation.md).
