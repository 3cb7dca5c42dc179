"""Agents that Optim4RL is meta-trained on and trains: what its reproductions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lopax import evaluate, meta
from lopax.reproductions.cases import Case
from lopax.tasks.rl import agent_task


def recipe(
    settings: Mapping[str, Any],
    *,
    pipeline: bool,
    outer_steps: int,
    seed: int,
    resets: bool = True,
) -> meta.RunConfig:
    """The meta-training run; without `resets`, agents live as long as it does."""
    s = settings
    length = (s["windows"] if resets else outer_steps + 1) * s["updates"]
    return meta.RunConfig(
        name="optim4rl",
        architecture="optim4rl",
        settings={"lr": s["lr"]},
        seed=seed,
        tasks=tuple(
            meta.AgentsConfig(
                environment=name, settings={"hidden": s["hidden"], "envs": 1}
            )
            for name in s["environments"]
        ),
        estimator=meta.EstimatorConfig(
            name="pipeline_backprop",
            particles=s["agents"],
            truncation=s["updates"],
            horizon_low=length,
            horizon_high=length,
            staggered=pipeline,
            chunk=s["agents"],
        ),
        outer=meta.OuterConfig(
            optimizer="adam",
            learning_rate=s["learning_rate"],
            clip_norm=s["clip_norm"],
        ),
        phases=(meta.PhaseConfig(outer_steps=outer_steps),),
        log_every=1,
        eval_every=0,
    )


class Runs(NamedTuple):
    """Training runs of several seeds."""

    returns: NDArray[np.float64]  # [seeds, looks]
    diverged: NDArray[np.bool_]  # [seeds] parameters not finite at the end

    def of(self, seeds: slice) -> Runs:
        return Runs(self.returns[seeds], self.diverged[seeds])

    @property
    def auc(self) -> float:
        return float(self.returns.mean())

    @property
    def curve(self) -> list[float]:
        return self.returns.mean(axis=0).tolist()

    def final(self, looks: int) -> float:
        return float(self.returns[:, -looks:].mean())


def play(
    settings: Mapping[str, Any],
    spec: evaluate.OptimizerSpec,
    environment: str,
    updates: int,
    seeds: Sequence[int],
) -> list[Runs]:
    """Training with `spec`, once for each of its learning rates."""
    task = agent_task(
        "a2c", environment, hidden=settings["hidden"], envs=settings["test_envs"]
    )
    config = evaluate.RunConfig(
        num_steps=updates,
        eval_every=settings["look_every"],
        eval_batches=1,
        final_batches=1,
    )
    found = evaluate.run(spec, task, config, seeds=list(seeds))
    # The first look comes before any episode.
    returns = found.metrics["test/return"][..., 1:].astype(np.float64)
    return [Runs(returns[:, i], found.diverged[:, i]) for i in range(returns.shape[1])]


def agent_seeds(case: Case) -> list[int]:
    """Of the agents in tests: others for every meta-seed, the same for all variants."""
    first = 1000 * case.seed
    return list(range(first, first + case.settings["test_seeds"]))


def trained(case: Case, *, pipeline: bool, resets: bool = True) -> Path:
    """The weights of the case, meta-trained (or continued) if need be."""
    folder = case.folder / "run"
    weights = folder / "weights.safetensors"
    if not weights.exists():
        steps = case.steps(case.settings["outer_steps"])
        run = recipe(
            case.settings,
            pipeline=pipeline,
            outer_steps=steps,
            seed=case.seed,
            resets=resets,
        )
        resume = (folder / "config.json").exists()
        meta.train(run, meta.build_families(run.tasks), folder, resume=resume)
    return weights


def learned(case: Case, theta: Any) -> evaluate.OptimizerSpec:
    """Optim4RL with the study's rate."""
    return evaluate.learned("optim4rl", theta, lr=case.settings["lr"])
