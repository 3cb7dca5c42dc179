"""R4: an optimizer for reinforcement learning, meta-trained in a pipeline.

Lan, Mahmood, Yan and Xu, "Learning to Optimize for Reinforcement Learning" (2023, arXiv
2302.01470). Optim4RL is meta-trained on actor-critic agents that play Catch; then it
trains fresh agents on Catch, beside hand-made optimizers, and on CartPole, which it has
never seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from lopax import evaluate, meta
from lopax.architectures import architecture
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check
from lopax.tasks.rl import agent_task
from lopax.theta import load_theta

SETTINGS: Mapping[str, Any] = {
    "hidden": [64],
    "lr": 1e-3,
    "agents": 64,
    "updates": 4,
    "windows": 32,
    "outer_steps": 78,
    "learning_rate": 3e-3,
    "clip_norm": 0.5,
    "test_envs": 64,
    "test_updates": 390,
    "test_seeds": 5,
    "choice_seeds": [100, 101, 102],
    "look_every": 10,
    "last_looks": 5,
    "cartpole_updates": 1000,
    "rates": [3e-4, 1e-3, 3e-3, 1e-2],
}


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
        tasks=(
            meta.AgentsConfig(
                environment="catch", settings={"hidden": s["hidden"], "envs": 1}
            ),
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


def _seeds(case: Case) -> list[int]:
    """Of the agents in tests: others for every meta-seed, the same for all variants."""
    first = 1000 * case.seed
    return list(range(first, first + case.settings["test_seeds"]))


def _catch(case: Case, spec: evaluate.OptimizerSpec) -> list[Runs]:
    s = case.settings
    return play(s, spec, "catch", s["test_updates"], _seeds(case))


def _cartpole(case: Case, spec: evaluate.OptimizerSpec, share: float = 1.0) -> Runs:
    s = case.settings
    updates = round(share * s["cartpole_updates"])
    return play(s, spec, "cartpole", updates, _seeds(case))[0]


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


def _spec(case: Case, theta: Any) -> evaluate.OptimizerSpec:
    return evaluate.learned("optim4rl", theta, lr=case.settings["lr"])


def _measured(case: Case, runs: Runs) -> Measured:
    final = runs.final(case.settings["last_looks"])
    case.say(f"  Catch: AUC {runs.auc:.3f}, at the end {final:.3f}")
    return Measured(
        {"AUC": runs.auc, "at the end": final}, {"return on Catch": runs.curve}
    )


def pipeline(case: Case) -> Measured:
    """Staggered resets; also the transfer to CartPole, and a score on other seeds of
    Catch, by which the weights that come with the package are chosen."""
    s = case.settings
    spec = _spec(case, load_theta(trained(case, pipeline=True)))
    both = [*_seeds(case), *s["choice_seeds"]]
    runs = play(s, spec, "catch", s["test_updates"], both)[0]
    found = _measured(case, runs.of(slice(None, s["test_seeds"])))
    far = _cartpole(case, spec)
    final, diverged = far.final(s["last_looks"]), int(far.diverged.sum())
    case.say(f"  CartPole: {final:.0f} at the end, {diverged} diverged")
    return Measured(
        {
            **found.values,
            "AUC, other seeds": runs.of(slice(s["test_seeds"], None)).auc,
            "CartPole at the end": final,
            "CartPole diverged": diverged,
        },
        {**found.curves, "return on CartPole": far.curve},
    )


def no_pipeline(case: Case) -> Measured:
    """All agents start together and are reset together."""
    spec = _spec(case, load_theta(trained(case, pipeline=False)))
    return _measured(case, _catch(case, spec)[0])


def no_resets(case: Case) -> Measured:
    """All agents start together and are never reset; beside the rule."""
    weights = trained(case, pipeline=False, resets=False)
    return _measured(case, _catch(case, _spec(case, load_theta(weights)))[0])


def untrained(case: Case) -> Measured:
    """The rule with the theta that meta-training starts from."""
    theta = architecture("optim4rl").init_theta(jax.random.key(case.seed))
    return _measured(case, _catch(case, _spec(case, theta))[0])


def adam(case: Case) -> Measured:
    """Adam at the learned rule's own rate; in CartPole too."""
    spec = evaluate.default_rate("adam", case.settings["lr"])
    found = _measured(case, _catch(case, spec)[0])
    far = _cartpole(case, spec)
    return Measured(
        {
            **found.values,
            "CartPole at the end": far.final(case.settings["last_looks"]),
        },
        {**found.curves, "return on CartPole": far.curve},
    )


def still(case: Case) -> Measured:
    """Agents that never learn: the first, nearly uniform policies."""
    spec = evaluate.default_rate("sgd", 1e-30)
    far = _cartpole(case, spec, 0.1)
    return Measured(
        {
            **_measured(case, _catch(case, spec)[0]).values,
            "CartPole at the end": far.final(case.settings["last_looks"]),
        }
    )


def tuned(name: str) -> Callable[[Case], Measured]:
    """The baseline at the best of `rates`, by the AUC itself."""

    def variant(case: Case) -> Measured:
        rates = case.settings["rates"]
        spec = dataclasses.replace(evaluate.baseline(name), learning_rates=tuple(rates))
        runs = _catch(case, spec)
        best = int(np.nanargmax([r.auc for r in runs]))
        case.say(f"  {name}: AUC {[round(r.auc, 3) for r in runs]} at {rates}")
        found = _measured(case, runs[best])
        return found._replace(values={**found.values, "learning rate": rates[best]})

    return variant


def judge(results: CaseResults) -> Sequence[Check]:
    auc = {v: results.mean(v, "AUC") for v in results.measured}
    staggered, together, hand = (
        auc[v] for v in ("pipeline", "no pipeline", "adam at the same rate")
    )
    far = results.values("pipeline", "CartPole at the end")
    diverged = sum(results.values("pipeline", "CartPole diverged"))
    chance = results.mean("no learning", "CartPole at the end")
    return (
        Check(
            "pipeline beats runs in step by .2 AUC",
            staggered > together + 0.2,
            f"{staggered:.3f} against {together:.3f}",
        ),
        Check(
            "it beats Adam at the same learning rate by .2 AUC",
            staggered > hand + 0.2,
            f"{staggered:.3f} against {hand:.3f}; tuned Adam {auc['adam, tuned']:.3f}, "
            f"tuned RMSProp {auc['rmsprop, tuned']:.3f}",
        ),
        Check(
            "CartPole: no divergence, and every meta-seed above twice random play",
            diverged == 0 and min(far) > 2.0 * chance,
            f"{', '.join(f'{x:.0f}' for x in far)} against {chance:.0f}; "
            f"{diverged:.0f} diverged",
        ),
    )


OPTIM4RL = CaseStudy(
    name="optim4rl",
    claim="A recurrent rule in Adam's form, meta-trained on reinforcement learners "
    "with staggered resets, learns to train them, and serves where it was not trained.",
    source="Lan et al., 2023, arXiv 2302.01470",
    rule="on Catch the mean return over training (AUC) is above that of the rule "
    "trained without the pipeline, and of Adam at the same learning rate, by .2 each; "
    "on CartPole it does not diverge and ends above twice random play",
    minutes=15.0,
    settings=SETTINGS,
    variants={
        "pipeline": pipeline,
        "no pipeline": no_pipeline,
        "no resets": no_resets,
        "untrained": untrained,
        "adam at the same rate": adam,
        "adam, tuned": tuned("adam"),
        "rmsprop, tuned": tuned("rmsprop"),
        "no learning": still,
    },
    judge=judge,
)
