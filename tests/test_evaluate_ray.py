"""The job list on a real Ray cluster: a killed node, a killed worker, a killed head, an
object store that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lopax._core.errors import ConfigError, MissingExtra
from lopax.evaluate.problem import RunConfig
from lopax.evaluate.refs import optimizer_specs, user_problem
from lopax.evaluate.results.collect import collect
from lopax.evaluate.runs.grid import run_grid
from lopax.evaluate.runs.store import Store

CONFIG = RunConfig(num_steps=4, eval_every=2, eval_batches=1, final_batches=1)
SEEDS = [0, 1]

# In a Ray worker: leaves a mark with the node's name, then is slow enough to be killed.
PROBLEM = """
import os, pathlib, sys, time
import jax, jax.numpy as jnp

if "ray" in sys.modules and sys.modules["ray"].is_initialized():
    import ray
    if ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        node = ray.get_runtime_context().get_node_id()
        name = pathlib.Path(__file__).stem
        mark = pathlib.Path(__file__).parent / "marks" / f"{name}.{node}.{os.getpid()}"
        mark.touch()
        time.sleep(4.0 if SLOW else 0.0)

def init(key): return {"x": 1.0 + 0.1 * jax.random.normal(key, (3,))}
def loss(params): return SCALE * jnp.mean(params["x"] ** 2) + 0.1
"""


def problems(folder):
    (folder / "marks").mkdir()
    made = []
    for i in range(3):
        path = folder / f"bowl{i}.py"
        text = PROBLEM.replace("SCALE", str(1.0 + i)).replace("SLOW", str(i < 2))
        path.write_text(text)
        made.append(user_problem(path, CONFIG))
    return made


def test_unknown_executors_and_a_missing_ray_are_said(tmp_path, monkeypatch):
    specs = optimizer_specs(["sgd@0.1"])
    made = problems(tmp_path)[:1]
    store = Store(tmp_path / "store")
    with pytest.raises(ConfigError, match="processes, ray"):
        run_grid(store, specs, made, [0], executor="slurm")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"lopax\[ray\]"):
        run_grid(store, specs, made, [0], executor="ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray's own, of sockets and processes it leaves
def test_a_cluster_that_loses_a_node_loses_no_result(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    for name in ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "0")
    made, marks = problems(tmp_path), tmp_path / "marks"
    specs = optimizer_specs(["sgd@0.1"])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        doomed = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        killed = []

        def kill():
            """Once a job has begun on the second node, takes that node away."""
            for _ in range(600):
                begun = [m for m in marks.iterdir() if doomed.node_id in m.name]
                if begun:
                    cluster.remove_node(doomed, allow_graceful=False)
                    killed.append(begun[0].name.partition(".")[0])
                    return
                time.sleep(0.1)

        killer = threading.Thread(target=kill)
        killer.start()
        store, events = Store(tmp_path / "store"), []
        options = {"executor": "ray", "measure_cost": False}
        outcome = run_grid(store, specs, made, SEEDS, listener=events.append, **options)
        killer.join()
        assert len(killed) == 1, "no job began on the node that was to be killed"
        tried = [m.name for m in marks.iterdir() if m.name.startswith(killed[0])]
        assert len(tried) == 2  # once there, in vain, and once on the other node
        assert (outcome.done, outcome.failed) == (6, [])
        assert len(list(store.keys())) == 6
        assert [e.kind for e in events].count("done") == 3
        again = run_grid(store, specs, made, SEEDS, **options)
        assert (again.found, again.done) == (6, 0)
    finally:
        ray.shutdown()
        cluster.shutdown()
    check_equals_an_unbroken_run(store, specs, made, tmp_path)


def check_equals_an_unbroken_run(store, specs, made, folder):
    here = Store(folder / "here")
    run_grid(here, specs, made, SEEDS, measure_cost=False)
    there, alone = (collect(s, specs, made, SEEDS) for s in (store, here))
    assert not there.missing
    for problem in made:
        np.testing.assert_allclose(
            there.group("sgd@0.1", problem.name).train,
            alone.group("sgd@0.1", problem.name).train,
            rtol=1e-6,
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_full_object_store_and_a_killed_worker_lose_no_result(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    for name in ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "0")
    made, marks = problems(tmp_path), tmp_path / "marks"
    specs = optimizer_specs(["sgd@0.1"])
    killed = []

    def kill():
        """Once a job has begun that takes a while, kills its process."""
        for _ in range(600):
            begun = [m.name for m in marks.iterdir() if not m.name.startswith("bowl2")]
            if begun:
                killed.append(begun[0].partition(".")[0])
                os.kill(int(begun[0].rpartition(".")[2]), signal.SIGKILL)
                return
            time.sleep(0.1)

    store = Store(tmp_path / "store")
    try:
        ray.init(num_cpus=2, log_to_driver=False, object_store_memory=80 * 2**20)
        full = [ray.put(np.zeros(2**18)) for _ in range(80)]  # twice what there is
        killer = threading.Thread(target=kill)
        killer.start()
        outcome = run_grid(
            store, specs, made, SEEDS, executor="ray", measure_cost=False
        )
        killer.join()
        assert len(full) == 80 and len(killed) == 1
    finally:
        ray.shutdown()
    assert (outcome.done, outcome.failed) == (6, [])
    tried = [m for m in marks.iterdir() if m.name.startswith(killed[0])]
    assert len(tried) == 2
    check_equals_an_unbroken_run(store, specs, made, tmp_path)


DRIVER = """
import pathlib, sys
import ray
from test_evaluate_ray import CONFIG, SEEDS
from lopax.evaluate.runs.grid import run_grid
from lopax.evaluate.refs import optimizer_specs, user_problem
from lopax.evaluate.runs.store import Store

folder = pathlib.Path(sys.argv[1])
made = [user_problem(folder / f"bowl{i}.py", CONFIG) for i in range(3)]
ray.init(num_cpus=1, log_to_driver=False)
run_grid(
    Store(folder / "store"), optimizer_specs(["sgd@0.1"]), made, SEEDS,
    executor="ray", measure_cost=False, listener=lambda e: print(e.kind, flush=True),
)
"""


def offspring(pid: int) -> dict[int, str]:
    """The processes that a process has started, and theirs, with their names."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        child = int(path.parent.name)
        parents[child], names[child] = int(rest.split()[1]), name
    found: dict[int, str] = {}
    while more := [
        c for c, p in parents.items() if p in (pid, *found) and c not in found
    ]:
        found |= {c: names[c] for c in more}
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_head_ends_the_run_and_keeps_what_was_done(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    made, specs = problems(tmp_path), optimizer_specs(["sgd@0.1"])
    (tmp_path / "driver.py").write_text(DRIVER)
    here = str(Path(__file__).parent)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "3",  # of patience, instead of 60
    }
    command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path)]
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as driver,
    ):
        assert driver.stdout is not None
        for line in driver.stdout:
            if line == "done\n":
                break
        processes = offspring(driver.pid)
        for pid, name in processes.items():
            if name in ("gcs_server", "raylet"):
                os.kill(pid, signal.SIGKILL)
        assert "gcs_server" in processes.values()
        assert driver.wait(timeout=120) == 1
    assert "GCS" in (tmp_path / "errors").read_text()
    store = Store(tmp_path / "store")
    kept = len(list(store.keys()))
    assert 2 <= kept < 6
    outcome = run_grid(store, specs, made, SEEDS, measure_cost=False)
    assert (outcome.found, outcome.done) == (kept, 6 - kept)
    check_equals_an_unbroken_run(store, specs, made, tmp_path)
