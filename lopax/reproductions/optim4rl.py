"""R4: an optimizer for reinforcement learning, meta-trained in a pipeline.

Lan, Mahmood, Yan and Xu, "Learning to Optimize for Reinforcement Learning" (2023, arXiv
2302.01470). Optim4RL is meta-trained on actor-critic agents that play Catch; then it
trains fresh agents on Catch, beside hand-made optimizers, and on CartPole, which it has
never seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lopax import evaluate
from lopax.architectures import architecture
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check
from lopax.reproductions.rl_agents import (
    Runs,
    agent_seeds,
    learned,
    play,
    trained,
)
from lopax.theta import load_theta

SETTINGS: Mapping[str, Any] = {
    "environments": ["catch"],
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


def _catch(case: Case, spec: evaluate.OptimizerSpec) -> list[Runs]:
    s = case.settings
    return play(s, spec, "catch", s["test_updates"], agent_seeds(case))


def _cartpole(case: Case, spec: evaluate.OptimizerSpec, share: float = 1.0) -> Runs:
    s = case.settings
    updates = round(share * s["cartpole_updates"])
    return play(s, spec, "cartpole", updates, agent_seeds(case))[0]


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
    spec = learned(case, load_theta(trained(case, pipeline=True)))
    both = [*agent_seeds(case), *s["choice_seeds"]]
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
    spec = learned(case, load_theta(trained(case, pipeline=False)))
    return _measured(case, _catch(case, spec)[0])


def no_resets(case: Case) -> Measured:
    """All agents start together and are never reset; beside the rule."""
    weights = trained(case, pipeline=False, resets=False)
    return _measured(case, _catch(case, learned(case, load_theta(weights)))[0])


def untrained(case: Case) -> Measured:
    """The rule with the theta that meta-training starts from."""
    theta = architecture("optim4rl").init_theta(jax.random.key(case.seed))
    return _measured(case, _catch(case, learned(case, theta))[0])


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
