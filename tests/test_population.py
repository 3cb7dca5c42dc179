"""Populations: selection, generations, resume, devices, lineage, bad settings."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flock import close, config, identical

from lopax._core.config import from_dict, to_dict
from lopax._core.errors import (
    ConfigError,
    PopulationLost,
    UnknownName,
)
from lopax.architectures import architecture
from lopax.evaluate import read_lineage
from lopax.meta import (
    EstimatorConfig,
    OuterConfig,
    PhaseConfig,
    PhaseTrainer,
    PopulationConfig,
    PopulationTrainer,
    RunConfig,
    TasksConfig,
    build_families,
    learned_outer,
    read_log,
    selection,
    train,
)
from lopax.meta.distributed import particle_mesh
from lopax.meta.generation import renew
from lopax.meta.loop import initial_theta
from lopax.meta.trainer import MetaState
from lopax.theta import load_theta

INF = np.inf


@pytest.fixture(scope="module")
def families():
    return build_families(config().tasks)


# Selection, on hand-made scores.


def parents_of(name: str, scores: list[float], seed: int = 0) -> list[int]:
    key = jax.random.key(seed)
    return selection.SELECTIONS[name](key, jnp.asarray(scores)).tolist()


def test_truncation_copies_the_best_third_over_the_worse_half():
    scores = [5.0, 1.0, 4.0, 2.0, 3.0, 6.0]  # best third: 1, 3; worse half: 2, 0, 5
    seen = set()
    for seed in range(20):
        parents = parents_of("truncation", scores, seed)
        assert [parents[i] for i in (1, 3, 4)] == [1, 3, 4]
        seen |= {parents[i] for i in (0, 2, 5)}
    assert seen == {1, 3}


def test_lost_members_are_replaced_wherever_they_rank():
    for seed in range(10):
        # Two of six live: the lost ones of the better half are replaced, too.
        parents = parents_of("truncation", [INF, INF, 3.0, INF, INF, 2.0], seed)
        assert set(parents) <= {2, 5}
        assert parents[5] == 5
    assert parents_of("truncation", [INF, INF, INF]) == [0, 1, 2]
    assert parents_of("winner_takes_all", [INF, INF]) == [0, 1]


def test_winner_takes_all_and_none():
    assert parents_of("winner_takes_all", [2.0, 1.0, INF]) == [1, 1, 1]
    assert parents_of("none", [2.0, 1.0, INF]) == [0, 1, 2]


def test_the_better_half_gives_outer_rules():
    scores = jnp.asarray([5.0, 1.0, 4.0, 2.0, 3.0, INF])
    drawn = [selection.top_half(jax.random.key(s), scores) for s in range(20)]
    assert set(np.concatenate(drawn).tolist()) == {1, 3, 4}
    almost = jnp.asarray([INF, INF, INF, 1.0])
    assert set(selection.top_half(jax.random.key(0), almost).tolist()) == {3}


# A generation, on hand-made members.


def members(rule: Any, size: int) -> MetaState:
    """Members whose theta, phi and multiplier say who they are."""
    theta = rule.init_theta(jax.random.key(0))

    def one(i: Any) -> MetaState:
        own = jax.tree.map(lambda x: x + i, theta)
        outer = learned_outer.scaled(
            learned_outer.transformation(
                rule, jax.tree.map(lambda x: x - 10.0 * i, theta), 100
            ),
            1.0,
        )
        leaves = jax.tree.leaves(own)
        state: Any = outer.init(leaves)
        # Accumulators that a fresh start would not have.
        _, state = outer.update(leaves, state, leaves, value=jnp.ones(()))
        state = state._replace(multiplier=i + 1.0)
        step = jnp.asarray(7, jnp.int32)
        return MetaState(own, own, state, {"seen": i}, jax.random.key(0), step)

    made = jax.vmap(one)(jnp.arange(size, dtype=jnp.float32))
    return made._replace(key=jax.random.split(jax.random.key(5), size))


@pytest.fixture(scope="module")
def generation():
    """Before, after, what happened: the last of four members is lost."""
    rule = architecture("learned_adam")
    before = members(rule, 4)
    scores = jnp.asarray([3.0, 1.0, 2.0, INF])
    settings = PopulationConfig(size=4, bootstrap=True, factors=(0.5, 2.0))
    after, born = renew(
        settings, rule, jax.tree.leaves, before, scores, jax.random.key(1), 42
    )
    return before, after, born


def test_exploit_copies_everything_but_the_key(generation):
    before, after, born = generation
    assert born.parents.tolist() == [1, 1, 2, 1]
    assert (
        after.theta["log_lr"].tolist() == before.theta["log_lr"][born.parents].tolist()
    )
    assert after.estimator["seen"].tolist() == [1.0, 1.0, 2.0, 1.0]
    assert identical(jax.random.key_data(after.key), jax.random.key_data(before.key))


def test_explore_changes_the_multipliers_of_copies_only(generation):
    before, after, born = generation
    assert before.outer.multiplier.tolist() == [1.0, 2.0, 3.0, 4.0]
    found = after.outer.multiplier.tolist()
    assert found[1:3] == [2.0, 3.0]
    assert {found[0], found[3]} <= {1.0, 4.0}  # their parent's 2.0, halved or doubled
    assert born.multipliers.tolist() == found


def test_bootstrap_gives_copies_a_present_theta_that_starts_anew(generation):
    before, after, born = generation
    donors = born.donors.tolist()
    assert donors[1:3] == [-1, -1] and {donors[0], donors[3]} <= {1, 2}
    phi, rule = after.outer.inner.phi, after.outer.inner.rule
    for i, donor in enumerate(donors):
        copied = donor >= 0
        expected = before.theta if copied else before.outer.inner.phi
        assert phi["log_lr"][i] == expected["log_lr"][donor if copied else i]
        assert int(rule.iteration[i]) == (0 if copied else 1)
        assert int(rule.num_steps[i]) == (42 if copied else 100)
        moved = [bool(np.any(x[i])) for x in jax.tree.leaves(rule.tensors)]
        assert any(moved) != copied


def test_without_bootstrap_copies_keep_their_parents_outer_rule(generation):
    before, _, born = generation
    settings = PopulationConfig(size=4, factors=(1.0,))
    after, plain = renew(
        settings,
        architecture("learned_adam"),
        jax.tree.leaves,
        before,
        born.scores,
        jax.random.key(1),
        42,
    )
    assert plain.donors.tolist() == [-1] * 4
    expected = jax.tree.map(lambda x: x[plain.parents], before.outer)
    assert identical(after.outer, expected)


# Whole runs.


@pytest.fixture(scope="module")
def whole(families, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(config(), families, folder), folder


def test_a_stopped_population_resumes_exactly(families, whole, tmp_path):
    outcome, folder = whole
    for stop_at in (0, 1):
        calls = itertools.count()
        stopped = train(
            config(),
            families,
            tmp_path,
            resume=stop_at > 0,
            should_stop=lambda calls=calls, at=stop_at: next(calls) == at,
        )
        assert not stopped.finished
    parts = train(config(), families, tmp_path, resume=True)
    assert identical(outcome.theta, parts.theta)
    assert (tmp_path / "lineage.jsonl").read_text() == (
        folder / "lineage.jsonl"
    ).read_text()


def test_the_number_of_devices_changes_nothing(families, whole, tmp_path):
    """The first half on two devices, the second on one."""
    outcome, folder = whole
    calls = itertools.count()
    two = particle_mesh(jax.devices()[:2])
    train(config(), families, tmp_path, mesh=two, should_stop=lambda: next(calls) == 1)
    found = train(config(), families, tmp_path, resume=True)
    close(outcome.theta, found.theta)
    here, there = read_lineage(folder), read_lineage(tmp_path)
    assert np.array_equal(here.parents, there.parents)
    np.testing.assert_allclose(here.scores, there.scores, rtol=1e-5)


def test_members_one_after_the_other_are_the_same(families, whole, tmp_path):
    slowly = to_dict(config())
    slowly["population"]["together"] = 1
    found = train(from_dict(RunConfig, slowly), families, tmp_path)
    close(whole[0].theta, found.theta)


def test_the_lineage_tells_the_story(whole):
    outcome, folder = whole
    lineage = read_lineage(folder)
    assert lineage.steps.tolist() == [0, 2, 4, 6, 8]
    assert lineage.parents[0].tolist() == [0, 1, 2, 3]
    assert lineage.multipliers[0].tolist() == [2.0] * 4
    for g in range(1, 5):
        best = int(np.argmin(lineage.scores[g]))
        assert lineage.parents[g, best] == best
        copied = lineage.parents[g] != np.arange(4)
        assert copied.sum() == 2
        assert np.array_equal(lineage.donors[g] >= 0, copied)
        inherited = lineage.multipliers[g - 1][lineage.parents[g]]
        factors = lineage.multipliers[g] / inherited
        assert set(factors[copied]) <= {0.5, 1.0, 2.0}
        assert set(factors[~copied]) == {1.0}
    lines = read_log(folder / "metrics.jsonl")
    assert [x["best"] for x in lines] == lineage.best_scores()[1:].tolist()
    # The theta that is shipped is the last best one's.
    run = config()
    trainer = PopulationTrainer(run, run.phases[0], build_families(run.tasks))
    stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], outcome.theta)
    scores, _ = trainer._judge(trainer._arrays, stacked)
    np.testing.assert_allclose(scores[0], lineage.best_scores()[-1], rtol=1e-6)


def test_a_diverged_member_is_replaced_and_counted(families):
    run = config()
    trainer = PopulationTrainer(run, run.phases[0], families)
    state = trainer.init(initial_theta(run), jax.random.key(0))
    poisoned = state.members.theta["log_lr"].at[2].set(jnp.nan)
    theta = {**state.members.theta, "log_lr": poisoned}
    copy = jax.tree.map(jnp.array, theta)
    broken = state.members._replace(theta=theta, average=copy)
    state, info = trainer.advance(state._replace(members=broken), 2)
    assert np.isposinf(np.asarray(info.scores)).tolist() == [False, False, True, False]
    assert trainer.summarise(info)["lost"] == 1
    assert np.isfinite(trainer.summarise(info)["best"])
    *_, (_, born) = info.generations
    assert born.parents[2] != 2
    line = list(trainer.lineage(info))[4 + 2]
    assert line["score"] is None and line["member"] == 2
    json.dumps(line, allow_nan=False)
    for leaf in jax.tree.leaves((state.members.theta, state.average)):
        assert np.isfinite(leaf).all()


def test_a_population_that_is_lost_as_a_whole_says_so(families):
    run = config()
    trainer = PopulationTrainer(run, run.phases[0], families)
    state = trainer.init(initial_theta(run), jax.random.key(0))
    theta = jax.tree.map(lambda x: x * jnp.nan, state.members.theta)
    copy = jax.tree.map(jnp.array, theta)
    lost = state.members._replace(theta=theta, average=copy)
    with pytest.raises(PopulationLost, match=r"smaller outer\.multiplier"):
        trainer.advance(state._replace(members=lost), 2)


def test_members_of_a_fresh_run_differ_and_a_later_phase_starts_from_the_best(
    families, tmp_path
):
    run = config(
        architecture="l2o_gru",
        settings={"units": 2, "step_mult": 0.1},
        outer=OuterConfig(optimizer="sgd", learning_rate=1.0),
        phases=(
            PhaseConfig(name="a", outer_steps=2, trainable=("head/*",)),
            PhaseConfig(name="b", outer_steps=2, trainable=("head/*",)),
        ),
        population=PopulationConfig(size=2, interval=2, eval_tasks=2),
    )
    trainer = PopulationTrainer(run, run.phases[0], families)
    theta = initial_theta(run)
    drawn = trainer.init(theta, jax.random.key(0)).members.theta["gru"]
    first, second = (jax.tree.map(lambda x, i=i: x[i], drawn) for i in (0, 1))
    assert identical(first, theta["gru"]) and not identical(second, theta["gru"])
    train(run, families, tmp_path)
    lineage = read_lineage(tmp_path)
    assert lineage.steps.tolist() == [0, 2, 4]
    assert len(set(lineage.parents[1].tolist())) == 1  # all from the first phase's best
    middle = load_theta(tmp_path / "phase-a.safetensors")
    last = load_theta(tmp_path / "weights.safetensors")
    assert identical(middle["gru"], last["gru"])
    assert not identical(middle["head"], last["head"])


def test_any_estimator_tasks_and_outer_optimizer_will_do(tmp_path):
    """PES over two groups of tasks, Adam outside, averaging: copies take over running
    inner problems, and their multipliers vary."""
    groups = tuple(
        TasksConfig(datasets=("digits",), settings={"hidden": h, "batch_size": 8})
        for h in ((), (2,))
    )
    run = config(
        tasks=groups,
        estimator=EstimatorConfig(
            particles=4, truncation=2, horizon_low=3, horizon_high=5, chunk=1
        ),
        outer=OuterConfig(optimizer="adam", learning_rate=0.1, average=0.5),
        population=PopulationConfig(size=4, interval=2, eval_tasks=2, eval_steps=3),
    )
    train(run, build_families(groups), tmp_path)
    lineage = read_lineage(tmp_path)
    assert np.isfinite(lineage.scores).all() and (lineage.donors == -1).all()
    assert len(np.unique(lineage.multipliers)) > 1
    assert lineage.best_scores()[-1] < lineage.best_scores()[0]


# Bad settings.


def test_bad_settings_are_refused_clearly(families):
    good = to_dict(config())

    def bad(match: str, **changes: Any) -> None:
        values = json.loads(json.dumps(good))
        for table, entries in changes.items():
            values[table] = {**(values[table] or {}), **entries}
        with pytest.raises(ConfigError, match=match):
            run = from_dict(RunConfig, values)
            PopulationTrainer(run, run.phases[0], families)

    bad("'none', 'truncation', 'winner_takes_all'", population={"selection": "best"})
    bad("size = 0", population={"size": 0})
    bad("at least 2 members", population={"size": 1})
    bad("factors = .*numbers > 0", population={"factors": [1.0, 0.0]})
    bad("needs finite numbers > 0", population={"factors": []})
    bad("copies none", population={"selection": "none"})
    bad("interval = 3: must be a multiple of", population={"interval": 3})
    bad("multiple of the population's interval = 6", population={"interval": 6})
    bad('outer.optimizer = "self"', outer={"optimizer": "adam"})
    bad("'adamw', 'adam', 'sgd', 'self', ", outer={"optimizer": "adma"})
    bad("takes none", outer={"weights": "celo"})
    bad("multiplier = 0", outer={"multiplier": 0.0})
    with pytest.raises(UnknownName, match=r"pass theta= or weights="):
        run = config(outer=OuterConfig(optimizer="l2o_gru"), population=None)
        PhaseTrainer(run, run.phases[0], families)
    two = (*config().tasks, *config().tasks)
    with pytest.raises(ConfigError, match=r"eval_tasks = 3.*the 2 groups"):
        run = config(
            tasks=two, population=PopulationConfig(size=4, interval=2, eval_tasks=3)
        )
        PopulationTrainer(run, run.phases[0], families * 2)
    with pytest.raises(ConfigError, match=r"together = 3.*divide the 4 members"):
        run = config(population=PopulationConfig(size=4, interval=2, together=3))
        PopulationTrainer(run, run.phases[0], families)
    with pytest.raises(ConfigError, match=r"size = 4.*the 3 devices"):
        PopulationTrainer(
            config(), config().phases[0], families, particle_mesh(jax.devices()[:3])
        )
