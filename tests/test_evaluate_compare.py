"""Names of optimizers and problems, suites, fingerprints, the one-call comparison."""

from __future__ import annotations

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopax import evaluate
from lopax._core.errors import (
    ConfigError,
    IncompleteResults,
    ResumeMismatch,
    TaskError,
    UnknownName,
)
from lopax._core.task import check_task
from lopax.architectures import architecture
from lopax.evaluate.fingerprint import data_hash, task_fingerprint
from lopax.evaluate.problem import RunConfig
from lopax.evaluate.refs import optimizer_spec, optimizer_specs, user_problem
from lopax.evaluate.results.collect import collect
from lopax.evaluate.runs import jobs
from lopax.evaluate.runs.records import run_key
from lopax.evaluate.runs.store import Store
from lopax.evaluate.specs import OptimizerSpec
from lopax.tasks import from_functions
from lopax.tasks.suites import SUITES, Suite, SuiteTask, list_suites, suite
from lopax.theta import save_theta

CONFIG = RunConfig(num_steps=10, eval_every=5)


def spec(name: str, rate: float, rates: tuple[float, ...] = ()) -> OptimizerSpec:
    return OptimizerSpec(
        name=name,
        make=lambda n, lr: optax.sgd(rate if lr is None else lr),
        learning_rates=rates,
    )


def bowl(factor: float = 1.0, shift: float = 0.0):
    return from_functions(
        lambda key: {"x": 1.0 + 0.1 * jax.random.normal(key, (3,))},
        lambda params: factor * jnp.mean((params["x"] - shift) ** 2) + 0.1,
    )


# ---- names


def test_names_of_optimizers(tmp_path):
    rule = architecture("celo", phase=1)
    path = tmp_path / "mine.safetensors"
    save_theta(path, rule.init_theta(jax.random.key(0)), rule)
    found = optimizer_specs(
        ["adam", "adam@3e-4", f"Mine=celo:{path}", optax.sgd(0.1), spec("own", 0.1)]
    )
    assert [s.name for s in found] == ["adam", "adam@0.0003", "Mine", "custom_1", "own"]
    assert [s.tunable for s in found] == [True, False, False, False, False]
    # The settings saved with the weights are used, and shown because they differ.
    assert found[2].settings["changed"] == {"phase": 1}
    assert len(found[2].settings["weights"]) == 12


def test_sets_of_baselines():
    assert len(optimizer_specs(["published"])) == 15
    assert len(optimizer_specs(["baselines", "adam@0.1"])) == 37
    assert len(optimizer_specs(["tuning_free"])) == 8


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("adm", UnknownName, "adam"),
        ("adm:weights.safetensors", UnknownName, "architecture"),
        ("adam@fast", ConfigError, "learning rate"),
        ("adam@-1", ConfigError, "learning rate"),
        ("no_such=adm", UnknownName, "adam"),
    ],
)
def test_wrong_names_of_optimizers(text, error, match):
    with pytest.raises(error, match=match):
        optimizer_spec(text)


def test_problems_from_files(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import jax, jax.numpy as jnp\n"
        "data = (jnp.ones((20, 2)), jnp.zeros((20,)))\n"
        "batch_size = 4\n"
        "def init(key): return {'w': jax.random.normal(key, (2,))}\n"
        "def loss(params, batch):\n"
        "    return jnp.mean((batch[0] @ params['w'] - batch[1]) ** 2)\n"
    )
    found = user_problem(path, CONFIG)
    assert found.name == "mine"
    assert found.make().batch(jax.random.key(0))[0].shape == (4, 2)
    again = user_problem(str(path), CONFIG)
    assert again.version == found.version
    path.write_text(path.read_text().replace("** 2", "** 4"))
    assert user_problem(path, CONFIG).version != found.version


def test_problems_from_objects_and_registered_names():
    module = types.SimpleNamespace(
        init=lambda key: jnp.zeros(3), loss=lambda params: jnp.sum((params - 1) ** 2)
    )
    assert user_problem(module, CONFIG, "mine").name == "mine"
    ready = types.SimpleNamespace(task=bowl())
    assert user_problem(ready, CONFIG).make() is ready.task
    assert user_problem("quadratic", CONFIG).name == "quadratic"


def test_wrong_problems(tmp_path):
    with pytest.raises(TaskError, match="neither a registered task nor a Python file"):
        user_problem("no_such_task", CONFIG)
    with pytest.raises(TaskError, match="shortest problem"):
        user_problem(types.SimpleNamespace(init=1), CONFIG)
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(TaskError, match="ZeroDivisionError"):
        user_problem(broken, CONFIG)
    infinite = from_functions(lambda key: jnp.zeros(2), lambda p: jnp.sum(1.0 / p))
    with pytest.raises(TaskError, match="loss is inf"):
        user_problem(infinite, CONFIG)


# ---- fingerprints


def test_fingerprints_follow_what_is_computed():
    base = task_fingerprint(bowl())
    assert base == task_fingerprint(bowl())
    assert len({base, task_fingerprint(bowl(2.0)), task_fingerprint(bowl(1, 0.5))}) == 3


def test_fingerprints_follow_data_and_closed_over_arrays():
    def task(values, captured):
        return from_functions(
            lambda key: {"w": jnp.zeros(2)},
            lambda p, batch: jnp.mean((batch @ p["w"] - captured[0]) ** 2),
            data=values,
        )

    ones = jnp.ones((4, 2))
    prints = {
        task_fingerprint(task(ones, jnp.array([1.0]))),
        task_fingerprint(task(2 * ones, jnp.array([1.0]))),
        task_fingerprint(task(ones, jnp.array([2.0]))),
    }
    assert len(prints) == 3
    one = jnp.array([1.0])
    assert data_hash(task(ones, one)) != data_hash(task(2 * ones, one))
    assert data_hash(bowl()) == ""


def test_runs_on_different_data_are_refused(tmp_path):
    store = Store(tmp_path)
    problem = dataclasses.replace(user_problem(bowl(), CONFIG), name="p")
    curves: dict[str, np.ndarray] = {
        name: np.zeros((1, 2))
        for name in ("train", "valid", "test", "nonfinite", "updates", "diverged")
    }
    curves["eval_steps"] = np.arange(2)
    specs = [spec("a", 0.1), spec("b", 0.1)]
    for s, data in zip(specs, ("first", "second"), strict=True):
        store.put(run_key(s, problem, 0), {"data": data}, curves)
    with pytest.raises(ResumeMismatch, match="different data: first"):
        collect(store, specs, [problem], [0])


# ---- suites


def test_suites_are_tables_of_tasks_with_unique_names():
    assert list_suites() == [
        "smoke",
        "quickstart",
        "embedded",
        "validation",
        "lite",
        "medium",
        "velodrome",
        "stress",
    ]
    for name in SUITES:
        problems = evaluate.suite_problems(name)
        assert len({p.name for p in problems}) == len(problems)
        assert len({run_key(spec("a", 0.1), p, 0) for p in problems}) == len(problems)
    with pytest.raises(UnknownName, match="lite"):
        suite("litte")


def test_no_task_of_lite_is_a_meta_training_task():
    from lopax.tasks.table import TASKS

    for member in suite("lite").tasks:
        assert TASKS[member.registered or ""].held_out


def test_a_suite_can_be_shortened():
    problems = evaluate.suite_problems("smoke", num_steps=20)
    assert {p.config.num_steps for p in problems} == {20}
    assert {p.config.eval_every for p in problems} == {20}


@pytest.mark.parametrize("member", suite("stress").tasks, ids=lambda m: m.name)
def test_stress_problems_start_above_what_counts_as_solved(member):
    task = member.make()
    check_task(task, member.name)
    params, state = task.init(jax.random.key(0))
    losses = [
        float(task.evaluate(params, state, jax.random.key(i), "train"))
        for i in range(4)
    ]
    assert max(losses) > 3 * member.passes_below
    assert member.passes_below > 0


# ---- compare


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    slow, fast = spec("slow", 0.01), spec("fast", 0.4)
    reference = spec("adam", 0.0, (0.01, 0.1, 0.2))
    found = evaluate.compare(
        bowl(),
        [slow, fast, reference],
        num_steps=20,
        seeds=2,
        folder=folder,
        name="bowl",
        measure_cost=False,
        command="again",
    )
    return folder, (slow, fast, reference), found


def test_a_comparison_ranks_and_reports(comparison):
    folder, _, found = comparison
    assert found.summary.optimizers == ("fast", "adam", "slow")
    assert found.summary.entries["adam", "bowl"].rate == 0.2
    page = (folder / "report.html").read_text()
    assert "Optimizers on bowl" in page
    assert "again" in page
    assert "fast" in str(found)
    assert str(found.report.html) in str(found)


def test_a_comparison_finds_its_runs_again_but_not_those_of_a_changed_problem(
    comparison, monkeypatch
):
    folder, specs, _ = comparison

    def refuse(*args, **kwargs):
        raise AssertionError("nothing should run")

    monkeypatch.setattr(jobs, "run", refuse)
    again = evaluate.compare(
        bowl(), specs, num_steps=20, seeds=2, folder=folder, name="bowl",
        measure_cost=False,
    )  # fmt: skip
    assert (again.outcome.done, again.outcome.found) == (0, 6)
    with pytest.raises(IncompleteResults, match="nothing should run"):
        evaluate.compare(
            bowl(2.0), specs, num_steps=20, seeds=2, folder=folder, name="bowl",
            measure_cost=False,
        )  # fmt: skip


def test_an_optimizer_that_crashes_is_left_out_in_words(comparison):
    folder, specs, _ = comparison

    def broken(num_steps, learning_rate):
        raise ValueError("cannot be built")

    found = evaluate.compare(
        bowl(),
        [*specs, OptimizerSpec(name="broken", make=broken)],
        num_steps=20,
        seeds=2,
        folder=folder,
        name="bowl",
        measure_cost=False,
    )
    assert found.outcome.failed[0][:2] == ("broken", "bowl")
    assert "broken" not in found.summary.optimizers
    for path in found.report or ():
        assert "Not in this report: broken" in path.read_text()
        assert "cannot be built" in path.read_text()


def test_a_bench_of_a_suite_reports_scores_and_failures(tmp_path):
    tiny = Suite(
        name="tiny",
        about="one problem",
        tasks=(SuiteTask(name="bowl", make=bowl, num_steps=20, passes_below=0.15),),
    )
    found = evaluate.bench(
        tiny,
        [spec("fast", 0.4), spec("slow", 0.01), spec("adam", 0.0, (0.1, 0.2))],
        seeds=1,
        folder=tmp_path,
        measure_cost=False,
    )
    text = (tmp_path / "report.md").read_text()
    assert found.summary.scored == ("bowl",)
    assert "## Failure map" in text
    assert re.search(r"\| fast \| 100% \|", text)
    assert re.search(r"\| slow \| 0% \|", text)
    assert re.search(r"\| adam \| \d/2 \|", text)
    assert "Only 1 seed" in text


def test_a_bench_without_any_data_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("LOPAX_DATA_DIR", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="suite 'lite'"):
        evaluate.bench("lite", ["adam"], only_available=True, folder=tmp_path)


def test_bad_comparisons(tmp_path):
    with pytest.raises(ConfigError, match="nowhere to keep results"):
        evaluate.compare(bowl(), ["adam"], folder=None)
    with pytest.raises(ConfigError, match="name= is for one problem"):
        evaluate.compare([bowl(), bowl()], ["adam"], name="x", folder=tmp_path)
    with pytest.raises(ConfigError, match="more than once"):
        evaluate.compare([bowl(), bowl()], ["adam"], folder=tmp_path)
