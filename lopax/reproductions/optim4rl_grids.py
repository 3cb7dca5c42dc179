"""R4 at size: Optim4RL meta-trained on gridworlds, and what resets do for it.

Lan, Mahmood, Yan and Xu (2023, arXiv 2302.01470) meta-train on six gridworlds; two of
the small ones are what two CPU cores carry. Agents are reset in turn, all together, or
never; how the gradients that an outer step sees move is measured beside it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lopax import evaluate
from lopax._core.config import config_hash
from lopax.architectures import architecture
from lopax.reproductions.agent_gradients import Seen, seen
from lopax.reproductions.cases import Case, CaseResults, CaseStudy, Measured
from lopax.reproductions.outcome import Check, Panel, Table
from lopax.reproductions.rl_agents import agent_seeds, learned, play, recipe, trained
from lopax.theta import load_theta

SETTINGS: Mapping[str, Any] = {
    "environments": ["grid_small_dense_short", "grid_small_dense_long"],
    "held_out": ["grid_small_sparse_short", "catch"],
    "hidden": [32],
    "lr": 3e-3,
    "agents": 96,
    "updates": 4,
    "windows": 32,
    "outer_steps": 96,
    "learning_rate": 3e-3,
    "clip_norm": 0.5,
    "test_envs": 32,
    "test_updates": 200,
    "test_seeds": 4,
    "look_every": 10,
    "rates": [1e-3, 3e-3, 1e-2, 3e-2],
    "watched_agents": 48,
    "watched_lives": 3,
}

STAGGERED, IN_STEP, NEVER = "staggered resets", "resets in step", "no resets"
SCHEDULES: Mapping[str, Mapping[str, bool]] = {
    STAGGERED: {"pipeline": True},
    IN_STEP: {"pipeline": False},
    NEVER: {"pipeline": False, "resets": False},
}
FRESH, CENTRE = "nats from a whole life", "mean log10 |gradient|"


def _theta(schedule: str, case: Case) -> Any:
    """Of the rule that a schedule meta-trains; one folder, whoever asks first."""
    key = config_hash([dict(case.settings), schedule, case.seed, case.share], 8)
    where = case.folder.parent / f"rule-{key}"
    at = case._replace(folder=where)
    return load_theta(trained(at, **SCHEDULES[schedule]))


def _measured(case: Case, spec: evaluate.OptimizerSpec) -> Measured:
    """The mean return over training in every environment, at the best rate there."""
    s = case.settings
    values, curves = {}, {}
    for name in (*s["environments"], *s["held_out"]):
        runs = play(s, spec, name, s["test_updates"], agent_seeds(case))
        best = int(np.nanargmax([r.auc for r in runs]))
        values[name], curves[name] = runs[best].auc, runs[best].curve
    case.say("  " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
    return Measured(values, curves)


def rule(schedule: str, case: Case) -> Measured:
    """Meta-trains with the schedule, and trains fresh agents."""
    return _measured(case, learned(case, _theta(schedule, case)))


def untrained(case: Case) -> Measured:
    """The rule with the theta that meta-training starts from."""
    theta = architecture("optim4rl").init_theta(jax.random.key(case.seed))
    return _measured(case, learned(case, theta))


def adam(case: Case) -> Measured:
    """At the learned rule's own rate."""
    return _measured(case, evaluate.default_rate("adam", case.settings["lr"]))


def tuned(case: Case) -> Measured:
    """Adam at the best of `rates` for each environment, by the score itself."""
    rates = tuple(case.settings["rates"])
    spec = dataclasses.replace(evaluate.baseline("adam"), learning_rates=rates)
    return _measured(case, spec)


def still(case: Case) -> Measured:
    """Agents that never learn."""
    return _measured(case, evaluate.default_rate("sgd", 1e-30))


def gradients(schedule: str, case: Case) -> Measured:
    """Which gradients an outer step sees on the first environment, all schedules under
    one rule: the one of staggered resets. Numbers are means over the windows after the
    first life."""
    s = case.settings
    theta = _theta(STAGGERED, case)
    one = {
        **s,
        "environments": s["environments"][:1],
        "agents": s["watched_agents"],
    }
    life, windows = s["windows"], s["windows"] * s["watched_lives"]

    def watch(name: str) -> Seen:
        run = recipe(one, outer_steps=windows, seed=case.seed, **SCHEDULES[name])
        return seen(run, theta, windows, jax.random.key(case.seed))

    whole = watch(IN_STEP).of_life(life)
    found = watch(schedule)
    after = slice(life, None)
    return Measured(
        {
            FRESH: found.from_whole(whole)[after].mean(),
            "nats from the window before": found.from_last[after].mean(),
            "moves by (standard deviation over windows)": found.centre[after].std(),
            "spread within a window": found.spread[after].mean(),
        },
        {FRESH: found.from_whole(whole).tolist(), CENTRE: found.centre.tolist()},
    )


def scores(results: CaseResults, names: Sequence[str]) -> dict[str, list[float]]:
    """Per meta-seed, the mean over environments of the return over training, where no
    learning is 0 and tuned Adam is 1."""

    def on(name: str, variant: str) -> np.ndarray:
        low, high = (
            np.asarray(results.values(v, name)) for v in ("no learning", "adam, tuned")
        )
        return (np.asarray(results.values(variant, name)) - low) / (high - low)

    players = [v for v, m in results.measured.items() if names[0] in m[0].values]
    return {v: np.mean([on(n, v) for n in names], axis=0).tolist() for v in players}


def _watching(schedule: str) -> str:
    return f"gradients, {schedule}"


TRAINED_ON, HELD_OUT = (tuple(SETTINGS[k]) for k in ("environments", "held_out"))


def judge(results: CaseResults) -> Sequence[Check]:
    """Every statement must hold for every meta-seed; NaN never does."""

    def listed(values: Sequence[float]) -> str:
        return ", ".join(f"{v:.3g}" for v in values)

    moved = {v: results.values(_watching(v), FRESH) for v in SCHEDULES}
    here, far = scores(results, TRAINED_ON), scores(results, HELD_OUT)

    def above(score: Mapping[str, Sequence[float]], other: str) -> bool:
        pairs = zip(score[STAGGERED], score[other], strict=True)
        return all(a > b for a, b in pairs)

    def told(score: Mapping[str, Sequence[float]], other: str) -> str:
        return f"{listed(score[STAGGERED])} against {listed(score[other])}"

    return (
        Check(
            "with staggered resets the gradients that an outer step sees are nearer to "
            "those of a whole life: less than a quarter of the nats of the others",
            all(
                a < 0.25 * min(b, c)
                for a, b, c in zip(*(moved[v] for v in SCHEDULES), strict=True)
            ),
            "; ".join(f"{v}: {listed(x)}" for v, x in moved.items()),
        ),
        Check(
            "on the environments of meta-training, a higher score than with resets in "
            "step",
            above(here, IN_STEP),
            told(here, IN_STEP),
        ),
        Check(
            "and than without resets",
            above(here, NEVER),
            told(here, NEVER),
        ),
        Check(
            "and than Adam at the same rate (tuned Adam is 1)",
            above(here, "adam at the same rate"),
            told(here, "adam at the same rate"),
        ),
        Check(
            "on environments it was not trained on, a higher score than with resets in "
            "step",
            above(far, IN_STEP),
            told(far, IN_STEP),
        ),
    )


def scored(results: CaseResults) -> Sequence[Table]:
    """The scores that the rule is about."""
    here, far = scores(results, TRAINED_ON), scores(results, HELD_OUT)

    def cell(values: Sequence[float]) -> str:
        return ", ".join(f"{v:.2f}" for v in values)

    rows = [[v, cell(here[v]), cell(far[v])] for v in here]
    title = "scores per meta-seed (no learning 0, tuned Adam 1)"
    return [Table(title, ["variant", "environments trained on", "others"], rows)]


def panels(results: CaseResults) -> Sequence[Panel]:
    """How gradients move under each schedule, and the scores."""

    def moving(curve: str) -> Panel:
        curves = {v: results.curves(_watching(v), curve) for v in SCHEDULES}
        return Panel(curve, curves=curves, along="share of the windows watched")

    shown = [v for v in scores(results, TRAINED_ON) if v != "no learning"]
    here, far = scores(results, TRAINED_ON), scores(results, HELD_OUT)
    return [
        moving(CENTRE),
        moving(FRESH),
        Panel("score, trained on", dots={v: here[v] for v in shown}, marks=(1.0,)),
        Panel("score, other ones", dots={v: far[v] for v in shown}, marks=(1.0,)),
    ]


OPTIM4RL_AT_SIZE = CaseStudy(
    name="optim4rl",
    size="paper",
    claim="A recurrent rule in Adam's form, meta-trained on reinforcement learners "
    "with staggered resets, learns to train them, because the gradients that an outer "
    "step sees move less.",
    source="Lan et al., 2023, arXiv 2302.01470",
    rule="96 agents on two of the paper's gridworlds, 96 outer steps, three lives: the "
    "gradients that an outer step sees are less than a quarter of the nats from those "
    "of a whole life as with resets in step and with none; on the training "
    "environments the score is above that of resets in step, of no resets and of Adam "
    "at the same rate, and on others above that of resets in step; all for every "
    "meta-seed",
    minutes=35.0,
    settings=SETTINGS,
    variants={
        **{name: functools.partial(rule, name) for name in SCHEDULES},
        **{_watching(v): functools.partial(gradients, v) for v in SCHEDULES},
        "untrained": untrained,
        "adam at the same rate": adam,
        "adam, tuned": tuned,
        "no learning": still,
    },
    judge=judge,
    tables=scored,
    panels=panels,
)
