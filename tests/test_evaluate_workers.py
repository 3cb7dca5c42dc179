"""Jobs in worker processes: packed, run elsewhere, stored once; workers that die."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import optax
import pytest

from lopax._core.errors import ConfigError, ResumeMismatch
from lopax.evaluate.problem import RunConfig
from lopax.evaluate.refs import optimizer_specs, user_problem
from lopax.evaluate.results.collect import collect
from lopax.evaluate.runs import jobs, packing, workers
from lopax.evaluate.runs.grid import run_grid
from lopax.evaluate.runs.jobs import Job
from lopax.evaluate.runs.records import run_key
from lopax.evaluate.runs.store import Store
from lopax.evaluate.specs import from_transformation

CONFIG = RunConfig(num_steps=8, eval_every=4, eval_batches=1, final_batches=1)

PROBLEM = """
import multiprocessing, os, pathlib
import jax, jax.numpy as jnp

mark = pathlib.Path(__file__).with_suffix(".died")
if {dies} and multiprocessing.parent_process() is not None and not mark.exists():
    mark.touch()
    os._exit(9)

def init(key): return {{"x": 1.0 + 0.1 * jax.random.normal(key, (3,))}}
def loss(params): return jnp.mean(params["x"] ** 2) + 0.1
"""


def problem_file(folder, name: str, dies: bool = False):
    path = folder / f"{name}.py"
    path.write_text(PROBLEM.format(dies=dies))
    return user_problem(path, CONFIG)


def test_a_job_survives_packing(tmp_path):
    spec = optimizer_specs(["fast=sgd@0.1"])[0]
    job = Job(spec, problem_file(tmp_path, "bowl"), (0, 2))
    again = packing.unpack(packing.pack(job))
    assert again.seeds == (0, 2)
    assert again.spec.name == "fast"
    assert again.problem.config == CONFIG
    assert [run_key(again.spec, again.problem, s) for s in (0, 2)] == json.loads(
        packing.pack(job)
    )["keys"]


def test_suite_tasks_survive_packing():
    from lopax.evaluate.refs import suite_problems

    problem = suite_problems("stress", num_steps=5)[0]
    job = Job(optimizer_specs(["adam"])[0], problem, (0,))
    assert packing.unpack(packing.pack(job)).problem.name == problem.name


def test_a_changed_file_is_noticed_by_the_worker(tmp_path):
    problem = problem_file(tmp_path, "bowl")
    text = packing.pack(Job(optimizer_specs(["sgd"])[0], problem, (0,)))
    path = tmp_path / "bowl.py"
    path.write_text(path.read_text().replace("** 2", "** 4"))
    with pytest.raises(ResumeMismatch, match="defined differently"):
        packing.unpack(text)
    found = packing.execute(text, {})
    assert isinstance(found, jobs.Failure)
    assert found.message.startswith("ResumeMismatch")
    assert "in unpack" in found.details  # the traceback comes along


def test_what_only_this_process_knows_cannot_be_packed(tmp_path):
    spec = from_transformation("mine", optax.sgd(0.1))
    with pytest.raises(ConfigError, match="exists only in this process"):
        packing.pack(Job(spec, problem_file(tmp_path, "bowl"), (0,)))


def test_workers_find_what_one_process_finds_though_one_of_them_dies(tmp_path):
    """Two files, one of which kills the first worker that reads it; a local-only
    optimizer runs here."""
    problems = [
        problem_file(tmp_path, "bowl"),
        problem_file(tmp_path, "kills", dies=True),
    ]
    specs = [*optimizer_specs(["sgd@0.1"]), from_transformation("mine", optax.sgd(0.1))]
    store, events = Store(tmp_path / "many"), []
    outcome = run_grid(
        store, specs, problems, [0, 1], workers=2, measure_cost=False,
        listener=events.append,
    )  # fmt: skip
    assert (tmp_path / "kills.died").exists()
    assert (outcome.done, outcome.failed) == (8, [])
    assert len(list(store.keys())) == 8
    assert [e.kind for e in events].count("done") == 4
    study = collect(store, specs, problems, [0, 1])
    assert not study.missing
    for name in ("bowl", "kills"):  # the same rule, there and here
        there, here = study.group("sgd@0.1", name), study.group("mine", name)
        np.testing.assert_allclose(there.train, here.train, rtol=1e-6)
    assert run_grid(store, specs, problems, [0, 1], workers=2).found == 8


def test_a_job_whose_workers_always_die_is_given_up_and_counted(tmp_path, monkeypatch):
    problem = problem_file(tmp_path, "kills", dies=True)
    monkeypatch.setattr(workers, "ATTEMPTS", 1)
    store = Store(tmp_path / "store")
    outcome = run_grid(
        store, optimizer_specs(["sgd@0.1"]), [problem], [0], workers=2,
        measure_cost=False,
    )  # fmt: skip
    assert outcome.done == 0
    assert "died 1 times" in outcome.failed[0][2]
    again = dataclasses.replace(problem)
    missing = collect(store, optimizer_specs(["sgd@0.1"]), [again], [0]).missing
    assert missing[0].reason.startswith("crashed: worker processes died")


def test_a_worker_that_fails_tells_where(tmp_path):
    path = tmp_path / "breaks.py"
    problem = problem_file(tmp_path, "breaks")
    path.write_text(
        "import multiprocessing\n"
        "if multiprocessing.parent_process(): raise ZeroDivisionError('here')\n"
        + path.read_text()
    )
    store, events = Store(tmp_path / "store"), []
    outcome = run_grid(
        store, optimizer_specs(["sgd@0.1"]), [problem], [0], workers=2,
        measure_cost=False, listener=events.append,
    )  # fmt: skip
    assert "ZeroDivisionError: here" in outcome.failed[0][2]
    (failed,) = [e for e in events if e.kind == "failed"]
    assert "Traceback" in failed.message and "breaks.py" in failed.message
    (note,) = store.path.glob("*.failed.json")
    assert "ZeroDivisionError: here" in json.loads(note.read_text())["traceback"]


def test_the_default_number_of_workers_is_that_of_usable_cores(monkeypatch):
    import jax

    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {0, 2, 3})
    assert workers.default_workers() == 3
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert workers.default_workers() == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks")
def test_a_worker_does_not_hear_ctrl_c_even_while_it_starts():
    text = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    found = []
    for scope in (workers._children_without_interrupts(), contextlib.nullcontext()):
        with scope:
            child = subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE)
        found.append("SIGINT" in child.stdout.decode())
    assert found == [True, False]
