"""R2: a hybrid of a learned and a hand-made optimizer outside the training tasks.

"Guiding Learned Optimizers with Continuous Prompt Tuning" (2023, arXiv 2305.16823).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopax import evaluate, meta, tasks
from lopax._core.config import config_hash
from lopax._core.task import Task
from lopax._core.tree import named_leaves
from lopax._core.types import Key, Params, TaskState
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check
from lopax.reproductions.study import LARGER
from lopax.tasks.finetuning import FineTuningTask
from lopax.tasks.heads import Classification
from lopax.tasks.pretraining import PretrainingSettings, pretrained
from lopax.tasks.sources import decode
from lopax.tasks.supervised import SupervisedTask
from lopax.theta import load_theta

HORIZON, WIDE = "far beyond the horizon", "wider and deeper"
NOISY, SCALED = "100 noisy images", "start times 4"
STEPS = {HORIZON: 2_000, WIDE: 500, NOISY: 500, SCALED: 500}

SETTINGS: dict[str, Any] = {
    "architecture": "plain_mlp",
    "rule": {},
    "tasks": {"datasets": ("digits",), "augment": "none"},
    "task": "digits_mlp_32",
    "task_settings": {},
    "wide": {"hidden": (128, 128, 128)},
    "pretraining": {"network_settings": {"hidden": (32,)}},
    "horizon": 50,
    "outer_steps": 300,
    "particles": 16,
    "sigma": 0.01,
    "learning_rate": 3e-3,
    "adam": 1e-3,
    "seeds": 8,
    "scale": 4.0,
    "noise": 0.3,
    "noisy_images_per_class": 10,
    "steps": STEPS,
}

_CONV = {**LARGER.settings, "norm": "layer"}

AT_SIZE: dict[str, Any] = {
    **SETTINGS,
    "tasks": {**dataclasses.asdict(LARGER), "settings": _CONV},
    "task": "mnist_conv",
    "task_settings": _CONV,
    "wide": {"channels": (32, 32, 32, 32), "strides": (2, 2, 1, 1)},
    "pretraining": {
        "dataset": "mnist",
        "network": "conv",
        "network_settings": {k: v for k, v in _CONV.items() if k != "batch_size"},
        "learning_rate": 1e-2,
    },
    "outer_steps": 200,
    "particles": 8,
    "adam": 1e-2,
    "seeds": 4,
    "steps": dict.fromkeys(STEPS, 500),
}
"""Two convolutions with layer norm on MNIST of 16x16 pixels, where Adam at 1e-3 has
barely begun after 500 steps."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScaledStart(SupervisedTask):
    """A supervised task whose initial parameters are multiplied by `factor`."""

    factor: float = dataclasses.field(default=1.0, metadata={"static": True})

    def init(self, key: Key) -> tuple[Params, TaskState]:
        params, state = super().init(key)
        return jax.tree.map(lambda p: self.factor * p, params), state


def problem(row: str, settings: Mapping[str, Any]) -> Task:
    """The test problem of a row; the rule was trained on settings["tasks"]."""
    s = settings
    if row == WIDE:
        return tasks.task(s["task"], **{**s["task_settings"], **s["wide"]})
    if row == NOISY:
        return _noisy(s)
    base = tasks.task(s["task"], **s["task_settings"])
    assert isinstance(base, SupervisedTask)
    if row == HORIZON:
        return base
    parts = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    return ScaledStart(**parts, factor=s["scale"])


def _noisy(s: Mapping[str, Any]) -> FineTuningTask:
    """The network of the training task, pretrained on clean digits, to be fine-tuned on
    a few noisy ones; its test data are noisy, too."""
    noise, images = s["noise"], s["noisy_images_per_class"]
    settings = PretrainingSettings(**s["pretraining"], classes=tuple(range(10)))
    base = pretrained(settings)
    clean = np.asarray(decode(base.images))
    spoilt = clean + noise * np.random.RandomState(0).normal(size=clean.shape)
    train = jnp.asarray(base.by_class("meta_training"), jnp.int32)
    return FineTuningTask(
        images=jnp.asarray(np.clip(spoilt, 0.0, 1.0), jnp.float32),
        rows={
            "train": train[:, :images],
            "valid": train[:, images:],
            "test": jnp.asarray(base.by_class("held_out"), jnp.int32),
        },
        trunk=named_leaves(base.params),
        trunk_state=base.state,
        network=settings.network_for(10),
        head=Classification(num_classes=10),
        batch_size=64,
    )


def learned(case: Case) -> evaluate.OptimizerSpec:
    """The rule of a meta-seed, meta-trained by whichever variant comes first."""
    s, log_every = case.settings, 10
    steps = math.ceil(case.steps(s["outer_steps"]) / log_every) * log_every
    run = meta.RunConfig(
        name="hub",
        architecture=s["architecture"],
        settings=s["rule"],
        seed=case.seed,
        tasks=(meta.TasksConfig(**s["tasks"]),),
        estimator=meta.EstimatorConfig(
            name="full_es",
            particles=s["particles"],
            sigma=s["sigma"],
            horizon_low=s["horizon"],
            horizon_high=s["horizon"],
        ),
        outer=meta.OuterConfig(
            optimizer="adam", learning_rate=s["learning_rate"], weight_decay=0.0
        ),
        phases=(meta.PhaseConfig(outer_steps=steps),),
        log_every=log_every,
        eval_every=0,
    )
    where = case.folder.parent / f"rule-{case.seed}-{config_hash(run, 8)}"
    weights = where / "weights.safetensors"
    if not weights.exists():
        resume = (where / "config.json").exists()
        meta.train(run, meta.build_families(run.tasks), where, resume=resume)
    theta = load_theta(weights, s["architecture"])
    return evaluate.learned(s["architecture"], theta, **s["rule"])


Contestant = Callable[
    [evaluate.OptimizerSpec, evaluate.OptimizerSpec], evaluate.OptimizerSpec
]

CONTESTANTS: dict[str, Contestant] = {
    "learned": lambda learned, hand: learned,
    "published": lambda learned, hand: evaluate.hub(
        learned, hand, weighting="published"
    ),
    "published, inverted": lambda learned, hand: evaluate.hub(
        learned, hand, weighting="published", inverted=True
    ),
    "max": evaluate.hub,
    "fixed mix": lambda learned, hand: evaluate.hub(learned, hand, weighting="fixed"),
    "adam": lambda learned, hand: hand,
}


def _measure(choose: Contestant, case: Case) -> Measured:
    """Test accuracy on each row, mean over inner seeds."""
    s = case.settings
    spec = choose(learned(case), evaluate.default_rate("adam", s["adam"]))
    values = {}
    for row, steps in s["steps"].items():
        found = evaluate.run(
            spec,
            problem(row, s),
            evaluate.RunConfig(
                num_steps=steps, eval_every=steps, eval_batches=1, final_batches=10
            ),
            seeds=range(s["seeds"]),
        )
        values[row] = float(found.metrics["test/accuracy"][:, 0, -1].mean())
    return Measured(values)


def judge(results: CaseResults) -> Sequence[Check]:
    def on(row: str) -> dict[str, float]:
        return {v: results.mean(v, row) for v in CONTESTANTS}

    def text(found: Mapping[str, float]) -> str:
        return ", ".join(f"{v} {x:.3f}" for v, x in found.items())

    wide = on(WIDE)
    rows = [on(row) for row in STEPS]
    mean = {v: float(np.mean([row[v] for row in rows])) for v in CONTESTANTS}
    way = abs(wide["adam"] - wide["learned"])
    return (
        Check(
            "on the wider and deeper network the max-normalised hybrid's accuracy is "
            "more than a point above the learned rule's",
            wide["max"] > wide["learned"] + 0.01,
            text(wide),
        ),
        Check(
            "there the published form is no further from the learned rule than a fifth "
            "of the way to Adam",
            abs(wide["published"] - wide["learned"]) < 0.2 * way,
            f"{wide['published'] - wide['learned']:+.3f} of "
            f"{wide['adam'] - wide['learned']:+.3f}",
        ),
        Check(
            "on the mean of the four rows the max-normalised hybrid is more than a "
            "point above the learned rule",
            mean["max"] > mean["learned"] + 0.01,
            text(mean),
        ),
    )


HUB = CaseStudy(
    name="hub",
    claim="A hybrid of a learned and a hand-made optimizer keeps a learned optimizer "
    "usable outside the tasks it was trained on; as published it does not.",
    source="arXiv 2305.16823",
    rule="a small rule meta-trained for 50 steps of an MLP 64-32-10 on digits and Adam "
    "at 1e-3: on a wider and deeper network the max-normalised hybrid's test accuracy "
    "is more than a point above the learned rule's, the published form stays with the "
    "learned rule, and on the mean of four rows outside the training tasks the "
    "max-normalised hybrid is more than a point above the learned rule; a fixed mix is "
    "reported beside them",
    minutes=45.0,
    settings=SETTINGS,
    variants={
        name: functools.partial(_measure, choose)
        for name, choose in CONTESTANTS.items()
    },
    judge=judge,
)

HUB_AT_SIZE = dataclasses.replace(
    HUB,
    size="paper",
    rule="a small rule meta-trained for 50 steps of two convolutions on MNIST of 16x16 "
    "pixels and Adam at 1e-2: after 500 steps on four wider convolutions the "
    "max-normalised hybrid's test accuracy is more than a point above the learned "
    "rule's, the published form stays with the learned rule, and on the mean of four "
    "rows outside the training tasks the max-normalised hybrid is more than a point "
    "above the learned rule; a fixed mix is reported beside them",
    minutes=25.0,
    settings=AT_SIZE,
)
