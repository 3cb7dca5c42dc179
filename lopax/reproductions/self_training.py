"""R7: random learned optimizers that train each other, with none made by hand.

Metz, Freeman, Maheswaranathan and Sohl-Dickstein, "Training Learned Optimizers with
Randomly Initialized Learned Optimizers" (2021, arXiv 2101.07367). Every member of a
population is trained by a rule from the population; those that do badly are replaced.
A rule that has become better trains the others better: the meta-loss stays where it is
for a while and then falls steeply. Without selection every random rule trains itself,
and nothing of the kind happens. Adam as the outer optimizer is reported beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lopax import evaluate, meta
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check
from lopax.tasks import Classification, SupervisedFamily, SupervisedTask

SETTINGS: Mapping[str, Any] = {
    "rule": "adafac_mlp",
    "rule_settings": {"hidden": 16, "step_mult": 1e-3},
    "trainable": ["net/*"],
    "unroll": 20,
    "task": {"hidden": (), "batch_size": 32},
    "loss_bound": 5.0,
    "pairs": 24,
    "sigma": 0.05,
    "size": 10,
    "interval": 10,
    "eval_tasks": 32,
    "multiplier": 3.0,
    "outer_steps": 300,
    "window": 50,
    "adam": 1e-2,
    "chunk": 8,
    "together": 1,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Clipped(Classification):
    """A classification loss whose bound is given."""

    limit: float

    @property
    def bound(self) -> float:
        return self.limit


def _families(run: meta.RunConfig, bound: float) -> tuple[SupervisedFamily, ...]:
    """The classifier of digits with its loss clipped at `bound`."""
    (family,) = meta.build_families(run.tasks)
    assert isinstance(family, SupervisedFamily)
    task = family.base
    assert isinstance(task, SupervisedTask)
    assert isinstance(task.head, Classification)
    clipped = _Clipped(num_classes=task.head.num_classes, limit=bound)
    base = dataclasses.replace(task, head=clipped)
    return (dataclasses.replace(family, base=base),)


def recipe(case: Case, outer: meta.OuterConfig, **population: Any) -> meta.RunConfig:
    """A population of per-element MLP rules, if the settings say no other task on
    softmax regression."""
    s = case.settings
    interval = s["interval"]
    return meta.RunConfig(
        name="self_training",
        architecture=s["rule"],
        settings=s["rule_settings"],
        seed=case.seed,
        tasks=(
            meta.TasksConfig(
                datasets=("digits",),
                settings=s["task"],
                augment="none",
            ),
        ),
        estimator=meta.EstimatorConfig(
            name="full_es",
            particles=s["pairs"],
            sigma=s["sigma"],
            horizon_low=s["unroll"],
            horizon_high=s["unroll"],
            chunk=s["chunk"],
        ),
        outer=outer,
        phases=(
            meta.PhaseConfig(
                outer_steps=max(1, case.steps(s["outer_steps"]) // interval) * interval,
                trainable=tuple(s["trainable"]),
            ),
        ),
        population=meta.PopulationConfig(
            interval=interval,
            eval_tasks=s["eval_tasks"],
            together=s["together"],
            **population,
        ),
        log_every=interval,
        eval_every=0,
        eval_tasks=(),
        checkpoint_minutes=1.0,
    )


def _measure(case: Case, run: meta.RunConfig) -> Measured:
    """Best score of every generation, and the feedback signature of their curve."""
    folder = case.folder / "run"
    if not (folder / "weights.safetensors").exists():
        families = _families(run, case.settings["loss_bound"])
        resume = (folder / "config.json").exists()
        meta.train(run, families, folder, resume=resume)
    if run.population is not None and run.population.size > 1:
        evaluate.write_family_tree(folder)
    best = evaluate.read_lineage(folder).best_scores()
    intervals = case.settings["window"] // case.settings["interval"]
    values = {"final best": best[-1], "largest share": largest_share(best, intervals)}
    return Measured(values, {"best score": best.tolist()})


def largest_share(curve: np.ndarray, window: int) -> float:
    """Of a curve's whole improvement, how much the best `window` intervals made; 0 if
    it did not improve."""
    total = curve[0] - curve[-1]
    if not total > 0.0:
        return 0.0
    window = min(window, len(curve) - 1)
    return float(np.max(curve[:-window] - curve[window:]) / total)


def _self(case: Case) -> meta.OuterConfig:
    return meta.OuterConfig(optimizer="self", multiplier=case.settings["multiplier"])


def population(case: Case) -> Measured:
    """Random rules that train each other."""
    size = case.settings["size"]
    return _measure(case, recipe(case, _self(case), size=size, bootstrap=True))


def no_selection(case: Case) -> Measured:
    """As many random rules, each trained by itself."""
    size = case.settings["size"]
    return _measure(case, recipe(case, _self(case), size=size, selection="none"))


def adam(case: Case) -> Measured:
    """One rule trained by Adam, as everybody does."""
    outer = meta.OuterConfig(
        optimizer="adam", learning_rate=case.settings["adam"], weight_decay=0.0
    )
    return _measure(case, recipe(case, outer, size=1, selection="none"))


def judge(results: CaseResults) -> Sequence[Check]:
    ours = np.asarray(results.values("population", "final best"))
    control = np.asarray(results.values("no selection", "final best"))
    shares = np.asarray(results.values("population", "largest share"))
    needed = int(np.ceil(2 / 3 * len(ours)))
    lit = ours < 1.0
    ahead = ours < control - 1.0
    steep = shares > 0.5
    return (
        Check(
            f"the population ends below 1.0 on at least {needed} of {len(ours)} seeds",
            int(lit.sum()) >= needed,
            ", ".join(f"{x:.2f}" for x in ours),
        ),
        Check(
            "and there by more than 1.0 below the control without selection",
            int((lit & ahead).sum()) >= needed,
            ", ".join(f"{x:.2f}" for x in control),
        ),
        Check(
            "and there 50 outer steps make over half of the whole improvement",
            int((lit & steep).sum()) >= needed,
            ", ".join(f"{x:.0%}" for x in shares),
        ),
    )


SELF_TRAINING = CaseStudy(
    name="self_training",
    claim="Randomly initialised learned optimizers come to train each other, if those "
    "that do worse are replaced by copies of those that do better.",
    source="Metz et al., 2021, arXiv 2101.07367",
    rule="after 300 outer steps the best of 10 rules has a meta-loss below 1.0 on 2 of "
    "3 seeds, more than 1.0 below the best of 10 that each train themselves, and some "
    "50 outer steps make more than half of the whole improvement",
    minutes=40.0,
    settings=SETTINGS,
    variants={
        "population": population,
        "no selection": no_selection,
        "Adam 1e-2": adam,
    },
    judge=judge,
)
