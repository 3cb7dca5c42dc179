# ---
# jupyter: {jupytext: {text_representation: {format_name: percent}}}
# ---
# %% [markdown]
# # Meta-train your own rule
#
# A learned optimizer is trained like any network: it has parameters (theta), a loss (how well the runs that it drives go) and a gradient. This notebook meta-trains a small one on networks of your choice and then uses it on another network.
# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import lopax
from lopax import evaluate, meta

SHORT = bool(os.environ.get("LOPAX_SHORT"))  # a test's length
PICTURES = os.environ.get("LOPAX_PICTURES")  # where to keep the figure, if anywhere
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# **The tasks.** Small networks on the digits that come with scikit-learn. The rule is `scheduled_adam`: Adam whose rate, decays and schedule are learned, 16 numbers in all. It starts as Adam at 0.001.
#
# **The estimator.** Evolution strategies with 8 pairs of particles, over whole runs of up to 100 steps.
# %%
run = meta.RunConfig(
    name="mine",
    architecture="scheduled_adam",
    tasks=(
        meta.TasksConfig(
            datasets=("digits",), settings={"hidden": [32]}, augment="none"
        ),
        meta.TasksConfig(
            datasets=("digits",),
            settings={"hidden": [16, 16], "activation": "tanh"},
            augment="none",
        ),
    ),
    estimator=meta.EstimatorConfig(
        name="full_es",
        particles=2 if SHORT else 8,
        sigma=0.05,
        horizon_low=5 if SHORT else 100,
        horizon_high=5 if SHORT else 100,
    ),
    outer=meta.OuterConfig(learning_rate=3e-2, weight_decay=0.0),
    phases=(meta.PhaseConfig(outer_steps=4 if SHORT else 60),),
    log_every=2 if SHORT else 5,
    eval_every=0,
    eval_tasks=(),
)
families = meta.build_families(run.tasks)
outcome = meta.train(run, families, folder / "run")
print(f"{outcome.inner_steps:,.0f} inner steps in {outcome.seconds:.0f} s")

# %% [markdown]
# The meta-loss over time. A run can be stopped and continued (`resume=True`) with the same result to the last bit.
# %%
log = meta.read_log(folder / "run" / "metrics.jsonl")
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot([row["step"] for row in log], [row["loss"] for row in log])
axes.set(xlabel="outer step", ylabel="meta-loss")
if PICTURES:
    figure.savefig(f"{PICTURES}/meta_train_your_own.svg")

# %% [markdown]
# ![Meta-loss against outer steps: it falls steeply at first and then flattens.](../pictures/notebooks/meta_train_your_own.svg)
#
# **Use it**, here on a convolutional network, which meta-training never saw:
# %%
weights = folder / "run" / "weights.safetensors"
mine = evaluate.learned("scheduled_adam", lopax.load_theta(weights), label="mine")
found = evaluate.compare(
    "digits_conv",
    [mine, "adam@0.001", "adam@0.01"],
    num_steps=5 if SHORT else 100,
    seeds=1 if SHORT else 3,
    reference="adam@0.001",
    folder=folder / "comparison",
    measure_cost=False,
)
print(found)

# %% [markdown]
# A real run has more kinds of tasks, more particles and more steps, and lives in a file: see `recipes/` and [Meta-training](../meta_training.md). To share the result: `lopax convert weights.safetensors FOLDER --to hub-folder`.
