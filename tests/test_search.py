"""A phase that searches: what a generation runs, that it finds, resume, bad input."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flock import close, config, identical

from lopax._core.config import from_dict, to_dict
from lopax._core.errors import ConfigError
from lopax.architectures import architecture
from lopax.meta import (
    EstimatorConfig,
    OuterConfig,
    PhaseConfig,
    PopulationConfig,
    RunConfig,
    SearchConfig,
    SearchTrainer,
    build_families,
    distributed,
    read_config,
    read_log,
    train,
)
from lopax.meta.distributed import particle_mesh
from lopax.meta.estimator_config import NOT_SEARCHED
from lopax.meta.search_config import ALGORITHMS
from lopax.meta.trainer import build_unroller

pytest.importorskip("evosax", reason="needs the extra `search`")


def searching(steps: int = 8, **changes: Any) -> RunConfig:
    search = SearchConfig(**{"size": 8, "sigma": 0.5, "problems": 2, **changes})
    return config(
        population=None,
        estimator=EstimatorConfig(name="full_es", horizon_low=4, horizon_high=4),
        outer=OuterConfig(),
        phases=(PhaseConfig(outer_steps=steps, search=search),),
    )


@pytest.fixture(scope="module")
def families():
    return build_families(searching().tasks)


@pytest.fixture(scope="module")
def whole(families, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train(searching(), families, folder), folder


def test_a_generation_runs_every_candidate_on_the_same_problems(families):
    """The losses that rank candidates are those of plain runs, one at a time."""
    run = searching(together=4)
    trainer = SearchTrainer(run, run.phases[0], families)
    rule = architecture(run.architecture)
    theta = rule.init_theta(jax.random.key(3))
    leaves = jax.tree.leaves(theta)
    noise = [
        0.3 * jax.random.normal(jax.random.key(i), (8, *jnp.shape(x)))
        for i, x in enumerate(leaves)
    ]
    key = jax.random.key(5)
    losses, steps, diverged = trainer._losses(
        trainer.member.arrays, theta, noise, key, jnp.asarray(1)
    )
    assert losses.shape == (2, 8) and steps == 2 * 8 * 4 and diverged == 0
    unroller = build_unroller(run.estimator, rule, families[0])
    keys = jax.random.split(jax.random.fold_in(key, 0), 2)
    strata = jnp.asarray([0, 0])
    for i in range(8):
        moved = [x + e[i] for x, e in zip(leaves, noise, strict=True)]
        one = jax.tree.unflatten(jax.tree.structure(theta), moved)
        thetas = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, 1, *x.shape)), one)
        alone = unroller.run(thetas, strata, keys).losses[:, 0]
        np.testing.assert_allclose(losses[:, i], alone, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_finds_a_better_rule(algorithm, families, tmp_path):
    """Against its start, on problems of the same kind that no generation saw."""
    run = searching(steps=30, algorithm=algorithm)
    longer = dataclasses.replace(run.estimator, horizon_low=30, horizon_high=30)
    run = dataclasses.replace(run, log_every=30, estimator=longer)
    start = architecture(run.architecture).init_theta(jax.random.key(run.seed))
    found = train(run, families, tmp_path).theta
    unroller = build_unroller(
        run.estimator, architecture(run.architecture), families[0]
    )

    def loss(theta: Any) -> float:
        thetas = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (16, 1, *jnp.shape(x))), theta
        )
        keys = jax.random.split(jax.random.key(99), 16)
        return float(jnp.mean(unroller.run(thetas, jnp.zeros(16, int), keys).losses))

    assert loss(found) < 0.8 * loss(start)


def test_a_stopped_search_resumes_exactly(families, whole, tmp_path):
    calls = itertools.count()
    stopped = train(
        searching(), families, tmp_path, should_stop=lambda: next(calls) == 1
    )
    assert not stopped.finished
    parts = train(searching(), families, tmp_path, resume=True)
    assert identical(whole[0].theta, parts.theta)


@pytest.mark.parametrize("devices", [2, 4])
def test_the_number_of_devices_changes_nothing(devices, families, whole, tmp_path):
    """Half on several devices, stopped, a quarter after it on as many, the rest on
    one: every candidate is run once, by one of them."""
    outcome, folder = whole
    mesh = particle_mesh(jax.devices()[:devices])

    def go(stop_at: int, mesh: Any, resume: bool) -> Any:
        calls = itertools.count()
        return train(
            searching(),
            families,
            tmp_path,
            mesh=mesh,
            resume=resume,
            should_stop=lambda: next(calls) == stop_at,
        )

    assert not go(1, mesh, False).finished
    assert not go(0, mesh, True).finished
    found = go(99, None, True)
    close(outcome.theta, found.theta)
    one, several = (read_log(f / "metrics.jsonl") for f in (folder, tmp_path))
    for key in ("inner_steps", "diverged"):
        assert [x[key] for x in one] == [x[key] for x in several]


def test_a_cpu_spreads_candidates_over_its_cores(monkeypatch):
    for cores, expected in ((1, None), (2, 2), (3, 2), (8, 4)):
        monkeypatch.setattr(distributed, "usable_cores", lambda n=cores: n)
        mesh = distributed.default_mesh(searching())
        assert (None if mesh is None else mesh.size) == expected


@pytest.mark.parametrize("kind", ["search", "population", "plain"])
def test_a_phase_is_compiled_once(kind, families, tmp_path, caplog):
    """What it hands from one call to the next has the types of its start."""
    run = searching() if kind == "search" else config()
    if kind == "plain":
        run = config(population=None, phases=(PhaseConfig(outer_steps=8),))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        train(run, families, tmp_path)
    assert len(read_log(tmp_path / "metrics.jsonl")) > 2
    names = ("_generations", "_advance_fn", "outer_steps")
    compiled = [
        r.getMessage()
        for r in caplog.records
        if any(f"Compiling jit({n})" in r.getMessage() for n in names)
    ]
    assert len(compiled) == 1, compiled


def test_metrics_count_what_ran(whole):
    lines = read_log(whole[1] / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all(line["inner_steps"] == 2 * 2 * 8 * 4 for line in lines)
    assert whole[0].inner_steps == 8 * 2 * 8 * 4
    assert lines[-1]["distance"] > 0.0


def test_candidates_one_part_after_the_other_are_the_same(families, whole, tmp_path):
    found = train(searching(together=2), families, tmp_path)
    close(whole[0].theta, found.theta)


def test_a_share_of_the_way_is_kept_at_the_end(families, whole, tmp_path):
    found = train(searching(keep=0.25), families, tmp_path / "kept").theta
    rule = architecture(searching().architecture)
    start = rule.init_theta(jax.random.key(searching().seed))
    wanted = jax.tree.map(lambda a, b: a + 0.25 * (b - a), start, whole[0].theta)
    close(found, wanted)


def test_only_what_is_trainable_moves(families, tmp_path):
    run = searching(steps=2)
    start = architecture(run.architecture).init_theta(jax.random.key(run.seed))
    names = list(start)
    phase = dataclasses.replace(run.phases[0], trainable=(f"{names[0]}*",))
    run = dataclasses.replace(run, phases=(phase,))
    theta = train(run, families, tmp_path).theta
    for name in names:
        assert identical(theta[name], start[name]) == (name != names[0])


def test_a_candidate_that_diverges_ranks_last_and_moves_nothing_to_nan(families):
    trainer = SearchTrainer(searching(), searching().phases[0], families)
    losses = jnp.asarray([[0.1, jnp.nan, 0.3], [0.1, 0.2, jnp.inf]])
    fitness = np.asarray(trainer._fitness(losses))
    assert np.isfinite(fitness).all() and fitness.argmin() == 0
    assert fitness[1] > 0.3 and fitness[2] > 0.3


def test_of_every_setting_it_is_known_whether_a_search_heeds_it():
    heeded = {
        *("name", "objective", "objective_split", "recompute", "validation_every"),
        *("horizon_low", "horizon_high", "horizon_averaged", "emphasis"),
    }
    every = {f.name for f in dataclasses.fields(EstimatorConfig)}
    assert every == heeded | set(NOT_SEARCHED) and not heeded & set(NOT_SEARCHED)


def test_the_file_of_a_search_of_before_is_read(tmp_path):
    """Which names settings of a meta-gradient, heeded or not."""
    run = searching()
    values = to_dict(run)
    values["estimator"] |= {"sigma": 0.01, "staggered": False, "particles": 4}
    values["outer"] |= {"clip_norm": 1.0}
    values["phases"][0]["outer"] = {"weight_decay": 1e-4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = read_config(tmp_path)
    assert (found.estimator, found.outer) == (run.estimator, run.outer)
    assert found.phases == run.phases


def test_bad_input(families):
    with pytest.raises(ConfigError, match="'cma_es', 'sep_cma_es', 'snes', 'xnes'"):
        SearchConfig(algorithm="best")
    with pytest.raises(ConfigError, match=r"together = 3: must divide the size = 8"):
        SearchConfig(size=8, together=3)
    with pytest.raises(ConfigError, match="sigma"):
        SearchConfig(sigma=0.0)
    with pytest.raises(ConfigError, match="keep"):
        SearchConfig(keep=0.0)
    with pytest.raises(ConfigError, match="search and population"):
        dataclasses.replace(searching(), population=PopulationConfig())
    with pytest.raises(ConfigError, match=r"problems = 3: .* 2 groups"):
        run = searching(problems=3)
        SearchTrainer(run, run.phases[0], [*families, *families])
    with pytest.raises(ConfigError, match=r"'all': estimator.sigma, outer.clip_norm "):
        phase = dataclasses.replace(
            searching().phases[0], estimator={"sigma": 0.1}, outer={"clip_norm": 1.0}
        )
        dataclasses.replace(searching(), phases=(phase,))
    with pytest.raises(ConfigError, match=r"every phase: estimator.staggered would"):
        own = dataclasses.replace(searching().estimator, staggered=False)
        dataclasses.replace(searching(), estimator=own)
    with pytest.raises(ConfigError, match=r"size = 8: .* multiple of the 3 devices"):
        SearchTrainer(
            searching(),
            searching().phases[0],
            families,
            particle_mesh(jax.devices()[:3]),
        )
    large = dataclasses.replace(searching(), architecture="celo")
    with pytest.raises(ConfigError, match=r"at most 400; train fewer"):
        SearchTrainer(large, large.phases[0], families).check(
            architecture("celo").init_theta(jax.random.key(0))
        )


def test_a_recipe_says_it():
    run = searching(algorithm="snes", together=2)
    assert from_dict(RunConfig, to_dict(run)).phases == run.phases
