"""R1: one network fine-tuned on small tasks, layer by layer.

Kristiansen et al., "Narrowing the Focus: Learned Optimizers for Pretrained Models"
(2024, arXiv 2408.09310).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from lopax import evaluate, meta
from lopax._core.atomic import atomic_write
from lopax._core.config import config_hash, from_dict
from lopax._core.types import Params
from lopax.architectures import l3rs
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check, Panel, standard_error
from lopax.tasks import FineTuning, SampledTask, fine_tuning
from lopax.tasks.finetuning import FineTuningSettings
from lopax.tasks.pretraining import PretrainingSettings

PER_TASK = "test loss at T on each held-out task"

SETTINGS: dict[str, Any] = {
    "horizon": 30,
    "test_horizons": {"T": 30, "2T": 60},
    "outer_steps": 400,
    "particles": 16,
    "sigma": 0.05,
    "learning_rate": 1e-2,
    "held_out_tasks": 200,
    "rates": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0],
    "pretraining": {},
}

AT_SIZE: dict[str, Any] = {
    **SETTINGS,
    "horizon": 200,
    "test_horizons": {"T": 200},
    "outer_steps": 150,
    "particles": 4,
    "learning_rate": 1e-2,
    "held_out_tasks": 100,
    "rates": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
    "pretraining": {
        "network": "conv",
        "network_settings": {
            "channels": [8] * 10,
            "strides": [1, 2, *[1] * 3, 2, *[1] * 4],
            "norm": "layer",
        },
    },
}
"""Ten convolutions and a dense layer (the paper: a residual network of 34), 200 steps
(the paper: about 1,000)."""

Rule = Callable[[Any], optax.GradientTransformation]


def _tasks(settings: Mapping[str, Any]) -> FineTuning:
    """A network pretrained on digits 0 to 4, unless the settings say otherwise an MLP
    64-48-48-5; four of ten classes, 80 images."""
    made = from_dict(PretrainingSettings, settings["pretraining"], where="pretraining")
    return fine_tuning(FineTuningSettings(pretraining=made))


def _meta_trained(case: Case, **settings: Any) -> evaluate.OptimizerSpec:
    s, families = case.settings, _tasks(case.settings)
    params, _ = jax.eval_shape(
        SampledTask(families.meta_training).init, jax.random.key(0)
    )
    rule = {"tensors": l3rs.tensors_of(params), **settings}
    horizon, log_every = s["horizon"], 10
    run = meta.RunConfig(
        name="l3rs",
        architecture="l3rs",
        settings=rule,
        seed=case.seed,
        tasks=(meta.TasksConfig(datasets=("digits",), augment="none"),),
        estimator=meta.EstimatorConfig(
            name="full_es",
            particles=s["particles"],
            sigma=s["sigma"],
            objective="last",
            objective_split="test",
            horizon_low=horizon,
            horizon_high=horizon,
            chunk=4,
        ),
        outer=meta.OuterConfig(
            optimizer="adam",
            learning_rate=s["learning_rate"],
            weight_decay=0.0,
            schedule="cosine",
        ),
        phases=(
            meta.PhaseConfig(
                outer_steps=math.ceil(case.steps(s["outer_steps"]) / log_every)
                * log_every
            ),
        ),
        log_every=log_every,
        eval_every=0,
    )
    where = case.folder / "run"
    resume = (where / "config.json").exists()
    theta = meta.train(run, [families.meta_training], where, resume=resume).theta
    return evaluate.learned("l3rs", theta, **rule)


def _measure(case: Case, spec: evaluate.OptimizerSpec) -> Measured:
    """Over the same held-out tasks for every optimizer; a tuned one's best learning
    rate is chosen on these very tasks, which is in its favour."""
    values: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    for label, steps in case.settings["test_horizons"].items():
        config = evaluate.RunConfig(
            num_steps=steps, eval_every=steps, eval_batches=1, final_batches=1
        )
        found = evaluate.run(
            spec,
            SampledTask(_tasks(case.settings).held_out),
            config,
            seeds=range(case.settings["held_out_tasks"]),
            vmap_size=50,
        )
        losses = found.test[:, :, -1].astype(np.float64)  # [tasks, rates]
        means = losses.mean(axis=0)
        best = int(np.argmin(np.where(np.isfinite(means), means, np.inf)))
        values[f"loss {label}"] = float(means[best])
        accuracy = found.metrics["test/accuracy"][:, best, -1]
        values[f"accuracy {label}"] = float(accuracy.mean())
        if spec.tunable:
            values[f"rate {label}"] = spec.learning_rates[best]
        if label == "T":
            curves[PER_TASK] = losses[:, best].tolist()
    return Measured(values, curves)


def layer_wise(case: Case) -> Measured:
    return _measure(case, _meta_trained(case))


def shared(case: Case) -> Measured:
    return _measure(case, _meta_trained(case, layer_inputs=False))


def baseline(
    name: str, rates: Sequence[float], settings: Mapping[str, Any] = SETTINGS
) -> evaluate.OptimizerSpec:
    """A key of `BASELINES`, to be tuned over `rates`, for the network of `settings`."""
    rule, cosine, head_only = BASELINES[name]

    def make(num_steps: int, rate: Any) -> optax.GradientTransformation:
        shape = optax.cosine_decay_schedule(1.0, num_steps)
        # The rate is traced, which optax's own schedules do not allow.
        made = rule((lambda count: rate * shape(count)) if cosine else rate)
        if not head_only:
            return made
        parts: dict[Any, Any] = {"head": made, "trunk": optax.set_to_zero()}
        labels = functools.partial(_labels, _tasks(settings).head_names)
        return optax.multi_transform(parts, labels)

    return evaluate.OptimizerSpec(name=name, make=make, learning_rates=tuple(rates))


def _tuned(name: str, case: Case) -> Measured:
    """The same for every meta-seed, so measured for the first one only."""
    once = case.folder.parent / f"{name}-{config_hash(dict(case.settings), 8)}.json"
    if not once.exists():
        found = _measure(case, baseline(name, case.settings["rates"], case.settings))
        with atomic_write(once) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    return Measured(*json.loads(once.read_text(encoding="utf-8")))


def _labels(heads: Sequence[str], params: Params) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (
            "head"
            if jax.tree_util.keystr(path, simple=True, separator="/") in heads
            else "trunk"
        ),
        params,
    )


def _sgdm(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


BASELINES: dict[str, tuple[Rule, bool, bool]] = {
    "adam constant": (optax.adam, False, False),
    "adam cosine": (optax.adam, True, False),
    "adam head constant": (optax.adam, False, True),
    "adam head cosine": (optax.adam, True, True),
    "sgdm cosine": (_sgdm, True, False),
}


def judge(results: CaseResults) -> Sequence[Check]:
    def per_task(variant: str) -> np.ndarray:
        """[tasks] mean over meta-seeds."""
        return np.mean(results.curves(variant, PER_TASK), axis=0)

    def below(other: str) -> tuple[bool, str]:
        """Whether L3RS's loss is lower by more than two standard errors, paired."""
        mine, theirs = per_task("l3rs"), per_task(other)
        gain = theirs - mine
        error = standard_error(gain)
        text = (
            f"{mine.mean():.4f} against {theirs.mean():.4f} ({other}), lower by "
            f"{gain.mean():.4f} with a standard error of {error:.4f}"
        )
        return bool(gain.mean() > 2.0 * error), text

    measured = [b for b in BASELINES if b in results.measured]
    means = {b: per_task(b).mean() for b in measured}
    best = min(means, key=lambda b: means[b] if np.isfinite(means[b]) else np.inf)
    tuned, shared_too = below(best), below("shared coefficients")
    return (
        Check("test loss at T below the best tuned baseline's", *tuned),
        Check("test loss at T below that with shared coefficients", *shared_too),
    )


def panels(results: CaseResults) -> Sequence[Panel]:
    """The mean losses, and how far each optimizer is above L3RS on each task."""
    dots = {v: results.values(v, "loss T") for v in results.measured}
    ours = np.mean(results.curves("l3rs", PER_TASK), axis=0)
    above = {
        v: [np.sort(np.mean(results.curves(v, PER_TASK), axis=0) - ours).tolist()]
        for v in results.measured
    }
    return [
        Panel("mean test loss at T", dots=dots),
        Panel(
            "test loss at T above L3RS's, sorted",
            curves=above,
            along="share of the held-out tasks",
            marks=(0.0,),
        ),
    ]


L3RS = CaseStudy(
    name="l3rs",
    claim="A small network that sets the step of each layer, meta-trained for one "
    "pretrained network, fine-tunes it better than tuned Adam or SGD.",
    source="Kristiansen et al., 2024, arXiv 2408.09310",
    rule="on 200 held-out fine-tuning tasks the mean test loss after T = 30 steps is "
    "below that of the best of Adam (constant, cosine), Adam on the head only "
    "(constant, cosine) and SGD with momentum (cosine), each with the best of seven "
    "learning rates for these tasks, by more than two standard errors, paired by task; "
    "and likewise below that of the same rule without inputs of its own for each layer",
    minutes=8.0,
    settings=SETTINGS,
    variants={
        **{name: functools.partial(_tuned, name) for name in BASELINES},
        "l3rs": layer_wise,
        "shared coefficients": shared,
    },
    judge=judge,
    panels=panels,
)

TUNED_AT_SIZE = ("adam constant", "adam cosine", "sgdm cosine")

L3RS_AT_SIZE = dataclasses.replace(
    L3RS,
    size="paper",
    rule="ten convolutions and a dense layer, pretrained on five classes of digits: on "
    "100 held-out tasks the mean test loss after T = 200 steps is below that of the "
    "best of Adam constant, Adam cosine and SGD with momentum (cosine), each with the "
    "best of five learning rates for these tasks, by more than two standard errors, "
    "paired by task; and likewise below that of the same rule without inputs of its "
    "own for each layer",
    minutes=25.0,
    settings=AT_SIZE,
    variants={
        name: L3RS.variants[name]
        for name in (*TUNED_AT_SIZE, "l3rs", "shared coefficients")
    },
)
