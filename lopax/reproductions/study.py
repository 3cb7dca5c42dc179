"""Reproductions made of meta-training recipes.

A set of recipes (the variants), a set of test problems, and a rule that reads the table
of results. Runs are resumed: nothing runs twice.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lopax import evaluate, meta, tasks
from lopax._core.atomic import atomic_write
from lopax._core.config import check_range, config_hash
from lopax.meta import distributed
from lopax.reproductions.outcome import (
    Check,
    Outcome,
    Panel,
    Reproduction,
    Table,
    check_share,
)
from lopax.theta import load_theta

LARGER = meta.TasksConfig(
    datasets=("mnist",),
    network="conv",
    settings={"size": 16, "channels": (8, 16), "strides": (2, 2), "batch_size": 32},
    augment="none",
)
"""One size up from an MLP on digits of 8x8 pixels: two convolutions on MNIST, 16x16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """Training a task it was (or was not) meta-trained on, with a meta-trained rule."""

    task: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Overrides of the registered task."""
    num_steps: int
    seeds: int = 6
    last: int = 10
    """Steps at the end that count as the last loss."""

    def __post_init__(self) -> None:
        check_range(self, "num_steps", low=1)
        check_range(self, "seeds", low=1)
        check_range(self, "last", low=1, high=self.num_steps)


class Score(NamedTuple):
    """One trained rule (or tuned baseline) on one test; over inner seeds."""

    mean: float  # training loss, mean over all steps
    last: float  # over the last steps
    worst: float  # the same for the worst seed
    accuracy: float  # on test data at the end; NaN where there is none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """All numbers of a reproduction."""

    meta_loss: dict[str, list[float]]
    """Variant -> at the end of meta-training, per meta-seed."""
    scores: dict[str, dict[str, list[Score]]]
    """Test -> variant -> per meta-seed; a baseline has one entry."""

    def over_seeds(self, test: str, variant: str, field: str) -> float:
        """Mean over meta-seeds; the largest for "worst". Not finite stays so."""
        values = [getattr(s, field) for s in self.scores[test][variant]]
        return float(np.max(values) if field == "worst" else np.mean(values))

    def mean_meta_loss(self, variant: str) -> float:
        return float(np.mean(self.meta_loss[variant]))


COLUMNS = ("test", "variant", "mean loss", "last loss", "worst seed", "accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeStudy(Reproduction):
    """A reproduction made of meta-training recipes and tests of what they trained."""

    variants: Mapping[str, meta.RunConfig]
    tests: Mapping[str, Trial]
    baselines: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Name -> learning rates; the best on each test is kept."""
    judge: Callable[[Results], Sequence[Check]]
    meta_window: int = 20
    """Outer steps at the end over which the meta-loss is averaged."""

    def found(
        self,
        folder: Path,
        meta_seeds: Sequence[int],
        share: float,
        say: Callable[[str], None],
    ) -> Outcome:
        results = self.results(folder, meta_seeds=meta_seeds, share=share, say=say)
        return self.outcome(results)

    def results(
        self,
        folder: Path,
        *,
        meta_seeds: Sequence[int],
        share: float = 1.0,
        say: Callable[[str], None] = print,
    ) -> Results:
        """Meta-trains all variants and runs all tests, or reads what is there."""
        meta_loss: dict[str, list[float]] = {}
        scores: dict[str, dict[str, list[Score]]] = {name: {} for name in self.tests}
        for variant, recipe in self.variants.items():
            for seed in meta_seeds:
                run = dataclasses.replace(shortened(recipe, share), seed=seed)
                where = folder / f"{variant}-{seed}-{config_hash(run, 8)}"
                trained = _meta_train(run, where, f"{variant}, meta-seed {seed}", say)
                log = meta.read_log(trained.parent / "metrics.jsonl")
                lines = max(1, self.meta_window // run.log_every)
                tail = [line["loss"] for line in log[-lines:]]
                meta_loss.setdefault(variant, []).append(float(np.mean(tail)))
                for name, test in self.tests.items():
                    score = _scored(run, trained, name, test, where)
                    scores[name].setdefault(variant, []).append(score)
        for baseline, rates in self.baselines.items():
            for name, test in self.tests.items():
                say(f"{baseline}: best of {len(rates)} learning rates on {name}")
                scores[name][baseline] = [_tuned(baseline, rates, test)]
        return Results(meta_loss=meta_loss, scores=scores)

    def outcome(self, results: Results) -> Outcome:
        """Checks, tables and panels of what was found."""
        losses = Table(
            "meta-loss at the end",
            ("variant", "per meta-seed"),
            [
                (name, ", ".join(f"{v:.3g}" for v in values))
                for name, values in results.meta_loss.items()
            ],
        )
        tests = Table(
            "training losses, means over meta-seeds and inner seeds; worst seed: the "
            "largest last loss over both",
            COLUMNS,
            _rows(results),
        )
        panels = [Panel("meta-loss", dots=results.meta_loss)] + [
            Panel(test, dots={v: [s.last for s in x] for v, x in variants.items()})
            for test, variants in results.scores.items()
        ]
        tables = [losses, tests] if results.scores else [losses]
        return Outcome(self.judge(results), tables, panels)


def _rows(results: Results) -> list[tuple[str, ...]]:
    """Test, variant and its scores as text."""
    found = []
    for test, variants in results.scores.items():
        for variant in variants:
            values = [
                results.over_seeds(test, variant, field)
                for field in ("mean", "last", "worst", "accuracy")
            ]
            found.append((test, variant, *(f"{v:.3g}" for v in values)))
    return found


def shortened(run: meta.RunConfig, share: float) -> meta.RunConfig:
    """The recipe with fewer outer steps, a multiple of its logging interval."""
    check_share(share)

    def cut(phase: meta.PhaseConfig) -> meta.PhaseConfig:
        lines = max(1, math.floor(share * phase.outer_steps / run.log_every))
        return dataclasses.replace(phase, outer_steps=lines * run.log_every)

    return dataclasses.replace(run, phases=tuple(cut(p) for p in run.phases))


def _meta_train(
    run: meta.RunConfig, where: Path, label: str, say: Callable[[str], None]
) -> Path:
    """The weights file of a run, trained (or continued) if it is not there."""
    weights = where / "weights.safetensors"
    if weights.exists():
        return weights
    total = run.total_steps
    say(f"{label}: meta-training, {total} outer steps")
    shown = {"at": 0}

    def listener(p: meta.Progress) -> None:
        if p.step - shown["at"] >= total / 4:
            shown["at"] = p.step
            left = p.seconds / p.step * (total - p.step)
            say(f"  {p.step}/{total}, loss {p.metrics['loss']:.3f}, {left:.0f} s left")

    families = meta.build_families(run.tasks)
    resume = (where / "config.json").exists()
    mesh = distributed.default_mesh(run)
    meta.train(run, families, where, mesh=mesh, resume=resume, listener=listener)
    return weights


def _scored(
    run: meta.RunConfig, weights: Path, name: str, test: Trial, where: Path
) -> Score:
    """A rule's score on a test, cached beside its weights."""
    cache = where / f"test-{config_hash([name, dataclasses.asdict(test)], 8)}.json"
    if cache.exists():
        return Score(*json.loads(cache.read_text(encoding="utf-8")))
    settings = run.settings_of(run.phases[-1])
    theta = load_theta(weights, run.architecture)
    score = _run(evaluate.learned(run.architecture, theta, **settings), test)[0]
    with atomic_write(cache) as temporary:
        temporary.write_text(json.dumps(score), encoding="utf-8")
    return score


def _tuned(baseline: str, rates: tuple[float, ...], test: Trial) -> Score:
    spec = dataclasses.replace(evaluate.baseline(baseline), learning_rates=rates)
    scores = _run(spec, test)
    means = [s.mean if math.isfinite(s.mean) else math.inf for s in scores]
    return scores[int(np.argmin(means))]


def _run(spec: evaluate.OptimizerSpec, test: Trial) -> list[Score]:
    """One score per learning rate (one for a learned rule)."""
    config = evaluate.RunConfig(
        num_steps=test.num_steps, eval_every=test.num_steps, eval_batches=1
    )
    task = tasks.task(test.task, **test.settings)
    found = evaluate.run(spec, task, config, seeds=list(range(test.seeds)))
    accuracy = found.metrics.get("test/accuracy")
    scores = []
    for i in range(found.train.shape[1]):
        losses = found.train[:, i].astype(np.float64)
        last = losses[:, -test.last :].mean(axis=1)
        right = math.nan if accuracy is None else float(accuracy[:, i, -1].mean())
        mean, worst = float(losses.mean()), float(np.max(last))
        scores.append(Score(mean, float(last.mean()), worst, right))
    return scores
