"""Runs under attack: numbers that diverge, two writers, kills, damaged folders."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import jax
import numpy as np
import pytest

import lopax
from lopax._core import jsonl
from lopax._core.atomic import atomic_write
from lopax._core.config import from_dict, to_dict
from lopax._core.errors import (
    ConfigError,
    FileFormatError,
    FolderInUse,
    LopaxError,
    MetaTrainingDiverged,
)
from lopax._core.single_writer import single_writer, tidy
from lopax.architectures import ARCHITECTURES
from lopax.evaluate.problem import RunConfig as EvaluationConfig
from lopax.meta import (
    EstimatorConfig,
    OuterConfig,
    PhaseConfig,
    PopulationConfig,
    RunConfig,
    TasksConfig,
    VarietyConfig,
    build_families,
    load_recipe,
    read_log,
    train,
)
from lopax.tasks import NETWORKS
from lopax.tasks.rl import AGENTS


def tiny(**changes) -> RunConfig:
    parts: dict = {
        "name": "tiny",
        "architecture": "learned_sgd",
        "tasks": (
            TasksConfig(
                datasets=("digits",), settings={"hidden": (4,), "batch_size": 8}
            ),
        ),
        "estimator": EstimatorConfig(
            particles=2, truncation=2, horizon_low=2, horizon_high=4, chunk=2
        ),
        "phases": (PhaseConfig(name="all", outer_steps=4),),
        "log_every": 2,
        "eval_every": 0,
    }
    return RunConfig(**{**parts, **changes})


@pytest.fixture(scope="module")
def families():
    return build_families(tiny().tasks)


CONFIGS = [
    RunConfig,
    TasksConfig,
    EstimatorConfig,
    OuterConfig,
    PhaseConfig,
    PopulationConfig,
    VarietyConfig,
    EvaluationConfig,
    *dict.fromkeys(ARCHITECTURES[name].config for name in ARCHITECTURES),
    *NETWORKS.values(),
    *AGENTS.values(),
]


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda c: c.__name__)
def test_no_setting_is_infinite_or_beyond_64_bits(cls):
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if any(kind in str(hints[field.name]) for kind in ("float", "int", "dict")):
            for bad in (math.nan, math.inf, -math.inf, 10**20, -(10**400)):
                for value in (bad, [bad], {"x": [bad]}):
                    with pytest.raises(ConfigError):
                        from_dict(cls, {field.name: value})


def test_direct_construction_checks_numbers_too():
    for cls, name in (
        (OuterConfig, "learning_rate"),
        (OuterConfig, "clip_norm"),
        (OuterConfig, "weight_decay"),
        (TasksConfig, "augment_high"),
        (RunConfig, "checkpoint_minutes"),
        (EvaluationConfig, "num_steps"),
    ):
        for bad in (math.nan, math.inf):
            with pytest.raises(ConfigError, match="finite"):
                setting: dict = {name: bad}
                cls(**setting)
    with pytest.raises(ConfigError):
        tiny(estimator=EstimatorConfig(sigma=math.inf))
    with pytest.raises(ConfigError):
        PopulationConfig(factors=(1.0, math.inf))
    with pytest.raises(ConfigError):
        tiny(seed=10**20)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "/x", "a\\b", "a\nb", "a\0b", "x" * 101]
)
def test_names_cannot_leave_the_folder(name):
    with pytest.raises(ConfigError, match="file name"):
        tiny(name=name)
    with pytest.raises(ConfigError, match="file name"):
        PhaseConfig(name=name)


def test_phases_have_names_of_their_own():
    with pytest.raises(ConfigError, match="name of its own"):
        tiny(phases=(PhaseConfig(outer_steps=2), PhaseConfig(outer_steps=2)))


SECTIONS = b"tasks estimator outer phases population settings variety".split()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"a = " + b"[" * 3_000,
        b"seed = " + b"9" * 5_000,
        b"seed = 99999999999999999999",
        b"[outer]\nlearning_rate = inf",
        b"[outer]\nlearning_rate = nan",
        b"[settings]\nstep_mult = -inf",
        b'name = "../x"',
        b"[[phases]]\nname = 'a/b'",
        *(b"%b = 5" % section for section in SECTIONS),
        *(b"%b = ['x']" % section for section in SECTIONS),
    ],
)
def test_recipes_of_any_content(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_bytes(text)
    if text:
        with pytest.raises(LopaxError):
            load_recipe(path)
    else:
        load_recipe(path)
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_recipe(tmp_path)


def strict(text: str):
    """JSON without NaN and Infinity."""

    def refuse(constant: str):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_a_run_that_diverges_stops_with_its_last_good_theta(families, tmp_path):
    import optax

    # Fine for two outer steps, then NaN.
    outer = optax.scale_by_schedule(
        lambda n: jax.numpy.where(jax.numpy.less(n, 2), -1e-3, np.nan)
    )
    with pytest.raises(MetaTrainingDiverged, match="after outer step 4 of 4") as stop:
        train(tiny(), families, tmp_path, outer_optimizer=outer)
    assert stop.value.exit_code == 1
    assert not (tmp_path / "weights.safetensors").exists()
    theta = lopax.load_theta(tmp_path / "last-good.safetensors")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(theta))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [strict(line)["step"] for line in lines] == [2, 4]


def test_metrics_and_evaluations_are_json_whatever_they_hold(families, tmp_path):
    def evaluate(phase, theta):
        return {"a": math.nan, "b": math.inf, "c": 1.0}

    train(tiny(), families, tmp_path, evaluate=evaluate)
    for text in (tmp_path / "evaluations.jsonl").read_text().splitlines():
        line = strict(text)
        assert (line["a"], line["b"], line["c"]) == (None, None, 1.0)
    assert read_log(tmp_path / "evaluations.jsonl")[0]["a"] is None


def test_logs_forgive_a_half_written_end_and_nothing_else(tmp_path):
    path = tmp_path / "log.jsonl"
    assert jsonl.read_lines(path) == []
    whole = [{"step": i, "x": math.inf} for i in range(3)]
    for line in whole:
        jsonl.append_line(path, line)
    data = path.read_bytes()
    expected = [{"step": i, "x": None} for i in range(3)]
    assert jsonl.read_lines(path) == expected
    for end in (b'{"step"', b"\xff\n", b"\n", b"12\n", b"[" * 100_000 + b"\n"):
        path.write_bytes(data + end)
        assert jsonl.read_lines(path) == expected
    path.write_bytes(b"\xff\n" + data)
    with pytest.raises(FileFormatError, match="line 1"):
        jsonl.read_lines(path)


def test_one_writer_at_a_time(tmp_path):
    with single_writer(tmp_path):
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} on "):
            single_writer(tmp_path).__enter__()
        with pytest.raises(FolderInUse):
            train(tiny(), [], tmp_path, resume=True)
    assert not list(tmp_path.iterdir())
    with single_writer(tmp_path):
        pass


HOLD = """
import sys, time
from lopax._core.single_writer import single_writer, tidy
with single_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_writers_lock_and_leftovers_are_taken_over(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=str(holder.pid)):
            single_writer(tmp_path).__enter__()
        holder.kill()
    assert (tmp_path / ".lock").exists()
    leftover = tmp_path / ".checkpoint.safetensors.0a1b2c3d.tmp"
    leftover.write_text("half of a")
    (tmp_path / ".mine.tmp").write_text("not ours")
    with single_writer(tmp_path):
        assert not leftover.exists()
    assert [p.name for p in tmp_path.iterdir()] == [".mine.tmp"]


def test_a_finished_folder_is_tidied_unless_somebody_writes(tmp_path):
    leftover = tmp_path / ".x.npz.0a1b2c3d.tmp"
    leftover.write_text("half of a")
    (tmp_path / ".lock").write_text("")
    with single_writer(tmp_path):
        leftover.write_text("being written")
        tidy(tmp_path)
        assert leftover.exists()
    tidy(tmp_path)
    tidy(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_temporary_files_are_named_as_leftovers_are(tmp_path):
    with atomic_write(tmp_path / "x.bin") as temporary:
        name = temporary.name
        temporary.write_text("x")
    (tmp_path / name).write_text("left")
    with single_writer(tmp_path):
        assert [p.name for p in tmp_path.glob("*.tmp")] == []
        assert not (tmp_path / name).exists()


def test_written_files_follow_the_umask(tmp_path):
    old = os.umask(0o077)
    try:
        with atomic_write(tmp_path / "x.bin") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "x.bin").stat().st_mode & 0o777 == 0o600


def test_a_run_that_never_made_a_step_blocks_nothing(families, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(tiny(seed=5))))
    train(tiny(), families, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    with pytest.raises(LopaxError, match="already holds a run"):
        train(tiny(), families, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"tally": {"phase": 7, "step": 0}},
        {"tally": {"phase": "x"}},
        {"tally": [1]},
        {"tally": {"steps": 1}},
        {"tally": {"phase": 0, "step": 2}},
    ],
)
def test_foreign_checkpoints_are_refused(families, tmp_path, damage):
    lopax.save_state(tmp_path / "checkpoint.safetensors", {"x": np.ones(1)}, **damage)
    with pytest.raises(FileFormatError, match="no checkpoint of a meta-training run"):
        train(tiny(), families, tmp_path, resume=True)


PARENT = """
import multiprocessing, sys, time
from lopax._core.parent import end_with_parent

def work():
    end_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and is not yet collected does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker)
