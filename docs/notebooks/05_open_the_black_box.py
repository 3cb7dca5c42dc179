# ---
# jupyter: {jupytext: {text_representation: {format_name: percent}}}
# ---
# %% [markdown]
# # Open the black box
#
# What has a learned optimizer learned? Three questions to the bundled Celo. `lopax explain celo` asks all of them and writes a page.
# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import lopax
from lopax import analysis, tasks

SHORT = bool(os.environ.get("LOPAX_SHORT"))  # a test's length
PICTURES = os.environ.get("LOPAX_PICTURES")  # where to keep the figure, if anywhere
STEPS = 20 if SHORT else 200

celo = lopax.architecture("celo")
theta = lopax.load_theta("celo")

# %% [markdown]
# **When does it take large steps?** Celo has a scheduler that sees the loss and the fraction of training done. It can be run alone, on made-up losses.
# %%
losses = analysis.typical_losses(STEPS)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name, curve in losses.items():
    scales = analysis.multipliers(celo, theta, curve)
    left.semilogy(np.linspace(0, 1, len(scales)), scales, label=name)
left.set(xlabel="fraction of the run done", ylabel="step scale")
left.legend(fontsize="small")

# %% [markdown]
# **Where does it go?** Along a real run, hand-made optimizers are fed the same gradients, and their steps are compared with Celo's: a cosine of 1 is the same direction.
# %%
task = tasks.task("digits_mlp_tanh")
found = analysis.compare_directions(celo, theta, task, num_steps=STEPS)
means = np.nanmean(found.mean(), axis=0)  # over tensors; Muon is for matrices only
order = np.argsort(means)
for i in reversed(order):
    print(f"{analysis.REFERENCES[i]:<18} {means[i]:+.2f}")
right.barh([analysis.REFERENCES[i] for i in order], means[order])
right.set(xlabel="mean cosine with Celo's step")
if PICTURES:
    figure.savefig(f"{PICTURES}/open_the_black_box.svg")

# %% [markdown]
# ![Left: the step scale of Celo's scheduler against the fraction of the run done, for five made-up losses; it rises, stays high and falls, and collapses when the loss rises. Right: mean cosine of Celo's step with those of hand-made optimizers.](../pictures/notebooks/open_the_black_box.svg)
#
# **Does it have momentum?** For rules that look at one element at a time there are the tools of dynamical systems: resting points, and the linear modes around them. Here on a rule whose answer is known, heavy-ball momentum:
# %%
view = analysis.momentum_view(alpha=0.3, beta=0.9)
points = analysis.find_fixed_points(view, np.array([[-1.0], [0.5], [2.0]]))
modes = analysis.modes(analysis.linearise(view, points.states[0]))
print("decays", modes.betas, "rates", modes.alphas)

# %% [markdown]
# More questions, and what was found: [Opening the black box](../analysis.md).
