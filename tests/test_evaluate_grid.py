"""The store and the grid: kill anywhere, run again, merge, nothing lost or doubled."""

from __future__ import annotations

import json
import math

import numpy as np
import optax
import pytest

from lopax._core.errors import ConfigError, FileFormatError
from lopax.evaluate.problem import Problem, RunConfig
from lopax.evaluate.results.collect import collect
from lopax.evaluate.runs import grid, jobs
from lopax.evaluate.runs.records import run_key
from lopax.evaluate.runs.run import RunResult
from lopax.evaluate.runs.store import Store
from lopax.evaluate.specs import OptimizerSpec

HEADER = {"identity": {"seed": 0}}
CURVES = {"train": np.arange(6.0).reshape(1, 6), "diverged": np.array([False])}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


# ---- store


def test_what_is_put_is_got(store):
    assert store.status("k") == "absent"
    store.put("k", HEADER, CURVES)
    record = store.get("k")
    assert record.header["identity"] == {"seed": 0}
    np.testing.assert_array_equal(record.arrays["train"], CURVES["train"])
    assert record.arrays["diverged"].dtype == bool
    assert store.status("k") == "complete"
    assert list(store.keys()) == ["k"]


def test_nothing_is_left_beside_the_two_files(store):
    store.put("k", HEADER, CURVES)
    assert sorted(p.name for p in store.path.iterdir()) == ["k.npz", "k.run.json"]


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_truncated_curves_are_noticed(store, keep):
    store.put("k", HEADER, CURVES)
    path = store.path / "k.npz"
    path.write_bytes(path.read_bytes()[:keep])
    assert store.status("k") == "damaged"
    with pytest.raises(FileFormatError, match="run the grid again"):
        store.get("k")


def test_other_damage_is_noticed(store):
    store.put("k", HEADER, CURVES)
    header = store.path / "k.run.json"
    text = header.read_text()
    header.write_text(text[: len(text) // 2])
    assert store.status("k") == "damaged"
    header.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(FileFormatError, match="format 99"):
        store.get("k")
    header.write_text(text)
    (store.path / "k.npz").unlink()
    assert store.status("k") == "damaged"


def test_a_write_that_is_interrupted_leaves_no_run(store, monkeypatch):
    import os

    real, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 2:  # after the curves, before the header
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put("k", HEADER, CURVES)
    assert store.status("k") == "absent"
    assert [p.name for p in store.path.iterdir()] == ["k.npz"]


def test_merging(store, tmp_path):
    other = Store(tmp_path / "theirs")
    for key in ("both", "theirs", "broken"):
        other.put(key, {"from": "them"}, CURVES)
    store.put("both", {"from": "us"}, CURVES)
    store.put("ours", {"from": "us"}, CURVES)
    (other.path / "broken.npz").write_bytes(b"")
    found = store.merge(other)
    assert found == (1, 1, ["broken"])
    assert list(store.keys()) == ["both", "ours", "theirs"]
    assert store.get("both").header["from"] == "us"
    assert store.get("theirs").header["from"] == "them"
    assert store.merge(other) == (0, 2, ["broken"])


def test_merging_mends_what_is_damaged_here(store, tmp_path):
    other = Store(tmp_path / "theirs")
    store.put("k", HEADER, CURVES)
    other.put("k", HEADER, CURVES)
    (store.path / "k.npz").write_bytes(b"")
    assert store.merge(other).copied == 1
    assert store.status("k") == "complete"


# ---- grid (with the training itself replaced: its own tests are elsewhere)


def spec(name: str, rates: tuple[float, ...] = ()) -> OptimizerSpec:
    return OptimizerSpec(
        name=name, make=lambda n, lr: optax.sgd(0.1), learning_rates=rates
    )


def problem(name: str, steps: int = 20) -> Problem:
    return Problem(
        name=name,
        make=lambda: None,  # type: ignore[arg-type,return-value]
        config=RunConfig(num_steps=steps, eval_every=10),
    )


@pytest.fixture
def trained(monkeypatch):
    """Replaces training; returns the list of (optimizer, seeds) that were trained."""
    calls = []

    def fake(spec, task, config, seeds, *, vmap_size, progress):
        calls.append((spec.name, tuple(seeds)))
        if spec.name == "interrupts":
            raise KeyboardInterrupt
        if spec.name == "crashes":
            raise ValueError("no such shape")
        s, n, e = len(seeds), max(1, len(spec.learning_rates)), len(config.eval_steps)
        base = np.asarray(seeds, np.float32)[:, None, None]
        train = np.broadcast_to(base + 1.0, (s, n, config.num_steps))
        flags = np.zeros((s, n), bool)
        looks = np.broadcast_to(base, (s, n, e))
        progress(s * n, s * n)
        return RunResult(
            train=train,
            valid=looks,
            test=looks,
            metrics={"test/accuracy": looks},
            nonfinite=flags.astype(np.int32),
            updates=flags.astype(np.int32),
            diverged=flags,
            eval_steps=np.asarray(config.eval_steps),
            compile_seconds=0.0,
            run_seconds=0.0,
        )

    monkeypatch.setattr(jobs, "run", fake)
    return calls


def go(store, optimizers, problems, seeds, **options):
    return grid.run_grid(
        store, optimizers, problems, seeds, measure_cost=False, **options
    )


def test_nothing_runs_twice(store, trained):
    optimizers, problems = [spec("a"), spec("b", (0.1, 0.2))], [problem("p")]
    first = go(store, optimizers, problems, [0, 1])
    assert (first.done, first.found) == (4, 0)
    again = go(store, optimizers, problems, [0, 1])
    assert (again.done, again.found) == (0, 4)
    assert trained == [("a", (0, 1)), ("b", (0, 1))]
    more = go(store, optimizers, problems, [0, 1, 2])
    assert (more.done, more.found) == (2, 4)
    assert trained[2:] == [("a", (2,)), ("b", (2,))]


def test_what_determines_a_run_is_in_its_key():
    base = run_key(spec("a"), problem("p"), 0)
    assert base == run_key(spec("a"), problem("p"), 0)
    others = [
        run_key(spec("b"), problem("p"), 0),
        run_key(spec("a", (0.1,)), problem("p"), 0),
        run_key(spec("a"), problem("q"), 0),
        run_key(spec("a"), problem("p", steps=21), 0),
        run_key(spec("a"), problem("p"), 1),
    ]
    assert len({base, *others}) == 6


def test_ctrl_c_keeps_what_is_done(store, trained):
    optimizers = [spec("a"), spec("interrupts"), spec("b")]
    with pytest.raises(KeyboardInterrupt):
        go(store, optimizers, [problem("p")], [0])
    study = collect(store, optimizers, [problem("p")], [0])
    assert set(study.groups) == {("a", "p")}
    left = grid.pending(store, optimizers, [problem("p")], [0])
    assert [job.spec.name for job in left] == ["interrupts", "b"]


def test_a_truncated_file_is_run_again(store, trained):
    optimizers, problems = [spec("a")], [problem("p")]
    go(store, optimizers, problems, [0, 1])
    path = store.path / f"{run_key(optimizers[0], problems[0], 1)}.npz"
    path.write_bytes(path.read_bytes()[:-7])
    study = collect(store, optimizers, problems, [0, 1])
    assert study.missing == (("a", "p", 1, "file damaged"),)
    assert study.groups == {}
    assert go(store, optimizers, problems, [0, 1]).done == 1
    assert trained[-1] == ("a", (1,))
    assert not collect(store, optimizers, problems, [0, 1]).missing


def test_a_crash_is_counted_and_shown_and_the_grid_goes_on(store, trained):
    optimizers, problems = [spec("crashes"), spec("a")], [problem("p")]
    events = []
    outcome = go(store, optimizers, problems, [0, 1], listener=events.append)
    assert outcome.done == 2
    assert outcome.failed == [("crashes", "p", "ValueError: no such shape")]
    kinds = [e.kind for e in events]
    assert kinds == ["started", "failed", "started", "progress", "done"]
    study = collect(store, optimizers, problems, [0, 1])
    assert [h.reason for h in study.missing] == [
        "crashed: ValueError: no such shape"
    ] * 2
    # It is tried again, and the note goes once it works.
    job = grid.pending(store, optimizers, problems, [0, 1])[0]
    assert (job.spec.name, job.seeds) == ("crashes", (0, 1))
    key = run_key(job.spec, job.problem, 0)
    store.put(key, HEADER, CURVES)
    assert store.failure(key) is None


def test_collected_curves_are_those_of_their_seed(store, trained):
    optimizers, problems = [spec("a", (0.1, 0.2))], [problem("p"), problem("q")]
    go(store, optimizers, problems, [5, 2])
    study = collect(store, optimizers, problems, [2, 5])
    cell = study.group("a", "q")
    assert cell.train.shape == (2, 2, 20)
    np.testing.assert_array_equal(cell.train[:, 0, 0], [3.0, 6.0])
    np.testing.assert_array_equal(cell.metrics["test/accuracy"][:, 1, -1], [2.0, 5.0])
    np.testing.assert_array_equal(cell.eval_steps, [0, 10, 20])


def test_merged_stores_make_one_grid(tmp_path, trained):
    mine, yours = Store(tmp_path / "mine"), Store(tmp_path / "yours")
    optimizers, problems = [spec("a"), spec("b")], [problem("p")]
    go(mine, optimizers[:1], problems, [0])
    go(yours, optimizers[1:], problems, [0])
    assert mine.merge(yours).copied == 1
    assert not collect(mine, optimizers, problems, [0]).missing
    assert go(mine, optimizers, problems, [0]).done == 0


def test_a_header_with_infinity_is_refused(store):
    with pytest.raises(ValueError, match="JSON"):
        store.put("k", {"value": math.inf}, CURVES)
    assert store.status("k") == "absent"


def test_bad_grids(store):
    with pytest.raises(ConfigError, match="used 2 times"):
        grid.pending(store, [spec("a"), spec("a")], [problem("p")], [0])
    with pytest.raises(ConfigError, match="task 'p'"):
        grid.pending(store, [spec("a")], [problem("p"), problem("p")], [0])
    with pytest.raises(ConfigError, match="seed 1"):
        grid.pending(store, [spec("a")], [problem("p")], [1, 1])
    with pytest.raises(ConfigError, match="at least one of each"):
        grid.pending(store, [spec("a")], [], [0])
