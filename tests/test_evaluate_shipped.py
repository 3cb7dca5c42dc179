"""Tuned baselines in an archive: packed, installed, judged alike, refused if stale."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from lopax import evaluate
from lopax._core.errors import FileFormatError, IncompleteResults, ResumeMismatch
from lopax.cli.main import main
from lopax.evaluate.judge import judge
from lopax.evaluate.problem import RunConfig
from lopax.evaluate.results import shipped
from lopax.evaluate.results.collect import collect
from lopax.evaluate.runs.store import Store
from lopax.tasks import from_functions

CONFIG = RunConfig(num_steps=30, eval_every=10, eval_batches=1, final_batches=1)
SEEDS = [0, 1]
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(64, 5)).astype(np.float32)


def task(data=DATA, scale=1.0):
    def init(key):
        return {"w": jax.random.normal(key, (5,))}

    def loss(params, batch):
        (x,) = batch
        return scale * ((x @ params["w"] - x.sum(-1)) ** 2).mean() + 0.1

    return from_functions(init, loss, data=(data,), batch_size=8)


def problem(data=DATA, version="1", **config):
    return evaluate.Problem(
        name="line",
        make=lambda: task(data),
        config=dataclasses.replace(CONFIG, **config),
        version=version,
    )


def baseline(name="adam"):
    return dataclasses.replace(evaluate.baseline(name), learning_rates=(1e-3, 0.1, 1e4))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(store, study, archive) of two baselines tuned here."""
    folder = tmp_path_factory.mktemp("tuned")
    store = Store(folder / "store")
    specs = [baseline(), baseline("sgd"), evaluate.default_rate("adam", 0.01)]
    study, outcome = evaluate.run_study(
        store, specs, [problem()], SEEDS, measure_cost=False
    )
    assert not outcome.failed
    packed = evaluate.pack(study, folder / "suite.npz", note="made in a test")
    assert packed == [("adam", "line"), ("sgd", "line")]  # what has rates to tune
    return store, study, folder / "suite.npz"


def test_baselines_that_need_no_tuning_are_packed_too(tmp_path):
    spec = evaluate.baseline("dowg")
    store = Store(tmp_path / "store")
    study, _ = evaluate.run_study(store, [spec], [problem()], SEEDS, measure_cost=False)
    assert evaluate.pack(study, tmp_path / "a.npz") == [("dowg", "line")]
    fresh = Store(tmp_path / "fresh")
    assert put(tmp_path / "a.npz", fresh, specs=[spec]).used == [("dowg", "line")]
    again = collect(fresh, [spec], [problem()], SEEDS).group("dowg", "line")
    np.testing.assert_allclose(
        again.train, study.group("dowg", "line").train, rtol=3e-4
    )


def put(archive, store, specs=None, problems=None, seeds=SEEDS):
    specs = specs or [baseline(), baseline("sgd")]
    return evaluate.install(archive, store, specs, problems or [problem()], seeds)


def test_installed_baselines_are_found_and_judged_like_the_originals(tuned, tmp_path):
    _, original, archive = tuned
    store = Store(tmp_path / "new")
    done = put(archive, store)
    assert sorted(done.used) == [("adam", "line"), ("sgd", "line")] and not done.refused
    specs = [baseline(), baseline("sgd"), evaluate.default_rate("adam", 0.01)]
    study, outcome = evaluate.run_study(
        store, specs, [problem()], SEEDS, measure_cost=False
    )
    assert (outcome.found, outcome.done) == (4, 2)  # only the untuned one ran
    old, new = (evaluate.summarise(s, "adam") for s in (original, study))
    assert new.target["line"] == pytest.approx(old.target["line"], rel=1e-3)
    for name in ("adam", "sgd"):
        a, b = old.entries[name, "line"], new.entries[name, "line"]
        assert a.rate == b.rate and a.tuned.at_edge == b.tuned.at_edge
        np.testing.assert_allclose(b.curves, a.curves, rtol=3e-4)
        np.testing.assert_allclose(b.tuned.final, a.tuned.final)
        np.testing.assert_allclose(b.held_out.valid, a.held_out.valid, rtol=3e-4)
        assert new.row(name).budget == 3
        assert new.row(name).iqm.value == pytest.approx(old.row(name).iqm.value, 1e-3)
    page = evaluate.render_html(new)
    assert "shipped" in page or "with lopax" in page
    assert put(archive, store).used == []  # nothing is put in twice


def test_some_of_the_seeds_are_enough_others_are_not_there(tuned, tmp_path):
    _, _, archive = tuned
    assert put(archive, Store(tmp_path / "a"), seeds=[1]).used
    done = put(archive, Store(tmp_path / "b"), seeds=[0, 1, 2])
    assert not done.used and "seeds [0, 1] only" in str(done.refused)


def test_whatever_changed_is_refused(tuned, tmp_path):
    _, _, archive = tuned
    fewer = dataclasses.replace(baseline(), learning_rates=(1e-3, 0.1))
    cases = [
        ({"problems": [problem(version="2")]}, "has changed"),
        ({"problems": [problem(num_steps=31)]}, "has changed"),
        ({"specs": [fewer]}, "has changed"),
        ({"problems": [problem(data=DATA + 1)]}, "data here are others"),
    ]
    for i, (changed, says) in enumerate(cases):
        store = Store(tmp_path / str(i))
        done = put(archive, store, **changed)
        assert not done.used and done.refused, changed
        assert all(says in why for why in done.refused.values())
        assert not list(store.keys())


def test_runs_that_begin_elsewhere_are_noticed(tuned, tmp_path):
    _, _, archive = tuned
    store = Store(tmp_path / "store")
    put(archive, store, specs=[baseline()])
    study, _ = evaluate.run_study(
        store, [baseline(), baseline("sgd")], [problem()], SEEDS, measure_cost=False
    )
    shipped.check_first_losses(study)
    study.groups["sgd", "line"].train[:] *= 1.01
    with pytest.raises(ResumeMismatch, match=r"starts 'line' at a loss"):
        shipped.check_first_losses(study)


def test_reduced_runs_beside_full_ones_are_a_hole(tuned, tmp_path):
    full, _, archive = tuned
    store = Store(tmp_path / "store")
    put(archive, store, specs=[baseline()], seeds=[0])
    for key in full.keys():  # noqa: SIM118
        record = full.get(key)
        if record.header["identity"]["seed"] == 1:
            store.put(key, record.header, record.arrays)
    (hole,) = collect(store, [baseline()], [problem()], SEEDS).missing
    assert "reduced" in hole.reason


def test_a_report_says_what_was_not_tuned_here(tuned, tmp_path):
    _, _, archive = tuned
    specs = [evaluate.default_rate("adam", 0.01), baseline()]
    found = judge(
        [problem()], specs, seeds=SEEDS, folder=tmp_path / "out", archive=archive,
        measure_cost=False,
    )  # fmt: skip
    assert found.shipped is not None and found.shipped.used == [("adam", "line")]
    said = (tmp_path / "out" / "report.md").read_text()
    assert "shipped with lopax: adam" in said


def test_archives_are_small_exact_enough_and_checked(tuned, tmp_path):
    _, study, archive = tuned
    values = np.asarray([1.0, -3.14159, 1e-30, np.inf, np.nan, 0.0], np.float32)
    kept = shipped._rounded(values)
    np.testing.assert_allclose(kept, values, rtol=2**-13)
    packed = kept[np.isfinite(kept)].view(np.uint32)
    assert not (packed & 0x7FF).any()
    broken = tmp_path / "broken.npz"
    broken.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(FileFormatError, match="lopax tune"):
        put(broken, Store(tmp_path / "s"))
    untuned = dataclasses.replace(
        study, groups={k: v for k, v in study.groups.items() if k[0] == "adam@0.01"}
    )
    with pytest.raises(IncompleteResults, match="no tuned baseline"):
        evaluate.pack(untuned, tmp_path / "none.npz")
    assert evaluate.archive_of("no such suite") is None


@pytest.mark.slow
def test_the_command_that_makes_an_archive(tmp_path, capsys):
    """`smoke` needs no data. Two steps: what comes out is used by `bench`."""
    archive = tmp_path / "smoke.npz"
    argv = ["tune", "sgd", "smoke", "--num-steps", "3", "--seeds", "1"]
    argv += ["--results", str(tmp_path / "r"), "--archive", str(archive)]
    assert main([*argv, "--workers", "1"]) == 0
    assert "3 tuned baselines" in capsys.readouterr().out
    store = Store(tmp_path / "store")
    problems = evaluate.suite_problems("smoke", num_steps=3)
    done = evaluate.install(
        archive, store, [evaluate.baseline("sgd")], problems, range(1)
    )
    assert len(done.used) == 3 and not done.refused


def test_the_archive_of_lite_fits_what_it_is_for(tmp_path):
    """Every baseline on every task, under the keys that a grid looks for today."""
    archive = evaluate.archive_of("lite")
    assert archive is not None and archive.stat().st_size < 4e6
    with np.load(archive) as arrays:
        cells = json.loads(arrays["index"].tobytes())["cells"]
    data = {cell["task"]: cell["data"] for cell in cells}
    specs = evaluate.optimizer_specs(["baselines"])
    assert {s.name for s in specs} == {cell["optimizer"] for cell in cells}
    problems = evaluate.suite_problems("lite")
    outcome = evaluate.install(
        archive, Store(tmp_path), specs, problems, range(3), lambda p: data[p.name]
    )
    assert not outcome.refused
    assert len(outcome.used) == len(specs) * len(problems)
