"""Meta-training: freezing, exact resume, kills and interrupts, bad configurations."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopax._core.config import from_dict, to_dict
from lopax._core.errors import (
    ConfigError,
    FileFormatError,
    MissingExtra,
    ResumeMismatch,
    StructureMismatch,
    UnknownName,
)
from lopax._core.tree import named_leaves
from lopax.architectures import ARCHITECTURES, architecture
from lopax.architectures.jax_ops import JaxDraw
from lopax.estimators import perturb
from lopax.meta import (
    EstimatorConfig,
    OuterConfig,
    PhaseConfig,
    PhaseTrainer,
    Progress,
    RunConfig,
    TasksConfig,
    build_families,
    load_recipe,
    read_log,
    tracking,
    train,
)
from lopax.meta.loop import initial_theta
from lopax.rules import scheduler
from lopax.theta import load_theta, save_theta

ROOT = Path(__file__).parents[1]


def small(**changes) -> RunConfig:
    parts: dict = {
        "name": "small",
        "settings": {"lstm": 18, "start": "adam"},
        "tasks": (
            TasksConfig(
                datasets=("digits",), settings={"hidden": (4,), "batch_size": 8}
            ),
        ),
        "estimator": EstimatorConfig(
            particles=4, truncation=5, horizon_low=4, horizon_high=12, chunk=2
        ),
        "outer": OuterConfig(learning_rate=1e-2, weight_decay=0.1, average=0.5),
        "phases": (
            PhaseConfig(
                name="rule",
                outer_steps=6,
                trainable=("rule/*",),
                settings={"phase": 1},
            ),
            PhaseConfig(name="scheduler", outer_steps=6, trainable=("scheduler/*",)),
        ),
        "log_every": 2,
        "eval_every": 0,
    }
    return RunConfig(**{**parts, **changes})


@pytest.fixture(scope="module")
def families():
    return build_families(small().tasks)


def identical(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_each_phase_moves_its_part_only(families, tmp_path):
    run = small()
    train(run, families, tmp_path)
    start = named_leaves(initial_theta(run))
    middle = named_leaves(load_theta(tmp_path / "phase-rule.safetensors"))
    end = named_leaves(load_theta(tmp_path / "weights.safetensors"))
    for name in start:
        first, second = ("rule/" in name), ("scheduler/" in name)
        assert np.array_equal(start[name], middle[name]) != first, name
        assert np.array_equal(middle[name], end[name]) != second, name
    lines = read_log(tmp_path / "metrics.jsonl")
    assert [x["step"] for x in lines] == [2, 4, 6, 8, 10, 12]
    assert [x["phase"] for x in lines] == ["rule"] * 3 + ["scheduler"] * 3


def test_published_freezing_decays_frozen_leaves(families):
    run = small(published_freezing=True)
    trainer = PhaseTrainer(run, run.phases[0], families)
    theta = initial_theta(run)
    state = trainer.init(theta, jax.random.key(0))
    state, _ = trainer.advance(state, 2)
    shapes = [
        jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), s)
        for s in (trainer.init(theta, jax.random.key(0)), state)
    ]
    assert shapes[0] == shapes[1], "the second call would compile again"
    frozen, before = state.theta["scheduler"]["lstm"]["w"], theta["scheduler"]["lstm"]
    factor = (1.0 - 1e-2 * 0.1) ** 2  # decoupled decay, learning rate x weight decay
    np.testing.assert_allclose(frozen, factor * before["w"], rtol=1e-5)


def test_a_run_may_start_from_parts_of_several_thetas(tmp_path):
    settings = {"lstm": 18}
    rule = architecture("celo", **settings)
    files = {}
    for seed in (1, 2):
        files[seed] = str(tmp_path / f"{seed}.safetensors")
        save_theta(files[seed], rule.init_theta(jax.random.key(seed)), rule)
    first, second = (load_theta(files[seed]) for seed in (1, 2))
    fresh = initial_theta(small(settings=settings))
    found = initial_theta(
        small(start_from=files[1], start_parts={"scheduler": files[2]})
    )
    assert identical(found["rule"], first["rule"])
    assert identical(found["scheduler"], second["scheduler"])
    assert not identical(found["scheduler"], first["scheduler"])
    found = initial_theta(small(settings=settings, start_parts={"rule": files[2]}))
    assert identical(found["rule"], second["rule"])
    assert identical(found["scheduler"], fresh["scheduler"])
    assert not small(start_parts={"rule": files[2]}).starts_fresh
    with pytest.raises(ConfigError, match="'rule', 'scheduler'"):
        initial_theta(small(start_parts={"shceduler": files[2]}))
    other = architecture("celo", lstm=20)
    save_theta(
        tmp_path / "other.safetensors", other.init_theta(jax.random.key(0)), other
    )
    with pytest.raises(StructureMismatch, match="'scheduler' of"):
        initial_theta(
            small(start_parts={"scheduler": str(tmp_path / "other.safetensors")})
        )


def test_stopping_and_resuming_changes_nothing(families, tmp_path):
    run = small()
    whole = train(run, families, tmp_path / "whole")
    # Stops once in each phase.
    for stop_at in (1, 2):
        calls = itertools.count()

        def should_stop(stop_at=stop_at, calls=calls) -> bool:
            return next(calls) >= stop_at

        outcome = train(
            run,
            families,
            tmp_path / "parts",
            resume=stop_at > 1,
            should_stop=should_stop,
        )
        assert not outcome.finished
    parts = train(run, families, tmp_path / "parts", resume=True)
    assert parts.finished
    assert identical(whole.theta, parts.theta)
    first, second = (
        [
            {k: v for k, v in x.items() if k != "seconds"}
            for x in read_log(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "parts")
    )
    assert first == second


PROGRAM = """
import json, sys, time
from lopax._core.config import from_dict
from lopax.meta import RunConfig, build_families, train
run = from_dict(RunConfig, json.loads(sys.argv[1]))
def slow(progress):
    print(progress.step, flush=True)
    time.sleep(0.3)
train(run, build_families(run.tasks), sys.argv[2], listener=slow,
      resume=sys.argv[3] == "resume")
"""


def start_program(run: RunConfig, folder: Path, mode: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(to_dict(run)), str(folder), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ.copy(),
    )


@pytest.mark.slow
def test_a_process_killed_at_any_moment_resumes_bit_for_bit(families, tmp_path):
    run = small(checkpoint_minutes=1e-6)
    whole = train(run, families, tmp_path / "whole")
    folder = tmp_path / "killed"
    for kill_after, mode in (("4", "start"), ("8", "resume")):
        with start_program(run, folder, mode) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == kill_after:
                    break
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    # A half-written line, as a crash in the middle of a write leaves it.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')
    outcome = train(run, families, folder, resume=True)
    assert outcome.finished
    assert identical(whole.theta, outcome.theta)
    assert [x["step"] for x in read_log(folder / "metrics.jsonl")] == list(
        range(2, 13, 2)
    )
    assert not list(folder.glob(".*tmp"))


def test_resuming_with_another_configuration_is_refused(families, tmp_path):
    run = small()
    train(run, families, tmp_path, should_stop=lambda: True)
    with pytest.raises(ResumeMismatch, match="another configuration"):
        train(small(seed=1), families, tmp_path, resume=True)
    with pytest.raises(ResumeMismatch, match="already holds a run"):
        train(run, families, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileFormatError, match="truncated"):
        train(run, families, tmp_path, resume=True)


def test_evaluation_and_listener_are_called(families, tmp_path):
    seen = []
    run = small(eval_every=4)
    train(
        run,
        families,
        tmp_path,
        evaluate=lambda phase, theta: {"score": float(jnp.sum(theta["rule"]["b0"]))},
        listener=lambda p: seen.append((p.phase, p.step, p.total)),
    )
    steps = [x["step"] for x in read_log(tmp_path / "evaluations.jsonl")]
    assert steps == [4, 6, 10, 12]
    assert seen[0] == ("rule", 2, 12)
    assert seen[-1] == ("scheduler", 12, 12)


def test_meta_training_lowers_the_meta_loss(families):
    """A scheduler that starts at a tenth of a sensible step learns a longer one; theta
    before and after are compared on the same tasks, batches and noise."""
    settings = {"lstm": 18, "start": "adam", "step_mult": 1e-2}
    estimator = EstimatorConfig(
        particles=8, truncation=20, horizon_low=40, horizon_high=40, chunk=None
    )
    phase = PhaseConfig(
        name="scheduler", outer_steps=20, trainable=("scheduler/head/*",)
    )

    def trainer(rate: float) -> PhaseTrainer:
        run = small(
            settings=settings,
            estimator=estimator,
            outer=OuterConfig(learning_rate=rate, weight_decay=0.0),
            phases=(phase,),
        )
        return PhaseTrainer(run, phase, families)

    before = initial_theta(trainer(0.1).run)
    # A scheduler without a head says 0.1.
    before["scheduler"] = scheduler.init_theta(JaxDraw(), jax.random.key(2), 18)
    before["scheduler"]["head"] = jax.tree.map(
        jnp.zeros_like, before["scheduler"]["head"]
    )
    learner, judge = trainer(0.1), trainer(1e-12)
    after = learner.advance(learner.init(before, jax.random.key(0)), 20)[0].theta
    losses = [
        np.asarray(judge.advance(judge.init(t, jax.random.key(1)), 20)[1].estimate.loss)
        for t in (before, after)
    ]
    assert float(after["scheduler"]["head"]["b"][0]) > 0.5
    assert losses[1].mean() < losses[0].mean() - 0.1


def test_the_outer_optimizer_may_be_any_optax_transformation(families):
    """Sign descent moves every trainable entry by exactly the rate, and sees the
    meta-loss as `value`."""
    seen = []

    def update(updates, state, params=None, *, value, **extra) -> Any:
        del params, extra
        seen.append(value)
        return jax.tree.map(lambda g: -1e-3 * jnp.sign(g), updates), state

    def init(params) -> Any:
        del params
        return optax.EmptyState()

    sign: Any = optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]
    run = small()
    trainer = PhaseTrainer(run, run.phases[0], families, outer_optimizer=sign)
    theta = initial_theta(run)
    state, _ = trainer.advance(trainer.init(theta, jax.random.key(0)), 1)
    moved = jnp.abs(state.theta["rule"]["w1"] - theta["rule"]["w1"])
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-3)
    assert len(seen) == 1


def test_trackers_are_told_and_missing_packages_are_named(tmp_path, monkeypatch):
    run = small()
    told = []
    both = tracking.combine([told.append, told.append])
    progress = Progress("rule", 2, 12, 0.5, {"loss": 1.0})
    both(progress)
    assert told == [progress, progress]
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lopax\[tracking\]'"):
        tracking.tracker("tensorboard", run, tmp_path)
    with pytest.raises(UnknownName, match="did you mean 'wandb'"):
        tracking.tracker("wandbb", run, tmp_path)


RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_in_the_repository_are_valid(path):
    run = load_recipe(path)
    assert run.name == path.stem
    assert from_dict(RunConfig, to_dict(run)) == run
    for phase in run.phases:
        rule = architecture(run.architecture, **run.settings_of(phase))
        theta = jax.eval_shape(rule.init_theta, jax.random.key(0))
        assert any(jax.tree.leaves(perturb.trainable_mask(theta, phase.trainable)))
        spread = run.estimator_of(phase).particles
        if phase.search is not None:
            spread = phase.search.problems
        assert spread % len(run.tasks) == 0


def test_every_architecture_has_a_recipe():
    assert set(ARCHITECTURES) == {load_recipe(p).architecture for p in RECIPES}


def test_bad_recipes_say_what_is_wrong(tmp_path):
    path = tmp_path / "r.toml"
    for text, error, match in (
        ("name = ", FileFormatError, "not a TOML recipe"),
        ("nmae = 'x'", UnknownName, "did you mean 'name'"),
        ("[outer]\nlearning_rate = -1.0", ConfigError, r"learning_rate = -1.0.*> 0"),
        ("[outer]\noptimizer = 'adma'", ConfigError, "'adamw', 'adam', 'sgd'"),
        ("seed = 'x'", ConfigError, "seed = 'x': must be of type int"),
        ("phases = []", ConfigError, "at least one phase"),
        ("[[phases]]\nouter_steps = 7", ConfigError, "multiple of log_every"),
        ("[[phases]]\nouter = {lr = 1.0}", UnknownName, "setting in phase"),
    ):
        path.write_text(text)
        with pytest.raises(error, match=match):
            load_recipe(path)
    with pytest.raises(FileFormatError, match="no recipe at"):
        load_recipe(tmp_path / "nowhere.toml")


def test_a_run_that_could_not_end_writes_nothing(families, tmp_path):
    """The fault is in the second phase, which would come hours later."""
    first, second = small().phases
    folder = tmp_path / "run"
    odd = dataclasses.replace(second, trainable=("schedule/*",))
    with pytest.raises(ConfigError, match="matches no meta-parameter"):
        train(small(phases=(first, odd)), families, folder)
    with pytest.raises(ConfigError, match="a multiple of the 2 groups of tasks"):
        train(small(estimator=EstimatorConfig(particles=5)), (*families * 2,), folder)
    assert not folder.exists()


def test_unknown_estimator_and_untrainable_pattern(families):
    with pytest.raises(UnknownName, match="did you mean 'pes'"):
        EstimatorConfig(name="pse")
    run = small(phases=(PhaseConfig(outer_steps=2, trainable=("rul/*",)),))
    with pytest.raises(ConfigError, match="matches no meta-parameter"):
        PhaseTrainer(run, run.phases[0], families).init(
            initial_theta(run), jax.random.key(0)
        )
