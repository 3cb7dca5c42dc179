"""Meta-training on several devices and in several real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lopax._core.errors import ConfigError
from lopax._core.machine import usable_cores
from lopax._core.tree import named_leaves
from lopax.cli.main import main
from lopax.meta import build_families, distributed, load_recipe, read_log, train
from lopax.meta.distributed import Cluster, connect, even_devices, particle_mesh
from lopax.theta import load_theta

RECIPE = """
name = "shared"
architecture = "celo_adam"
settings = {{ lstm = 4 }}
eval_every = 0
log_every = 2
checkpoint_minutes = {minutes}

[[tasks]]
datasets = ["digits"]
settings = {{ hidden = [4], batch_size = 8 }}

[estimator]
particles = 4
truncation = 5
horizon_low = 4
horizon_high = 12
chunk = 2

[[phases]]
outer_steps = {steps}
"""


def recipe(folder: Path, steps: int = 20, minutes: float = 10.0) -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(steps=steps, minutes=minutes))
    return path


def close(a, b) -> None:
    a, b = named_leaves(a), named_leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """theta after 20 outer steps on one device."""
    folder = tmp_path_factory.mktemp("alone")
    run = load_recipe(recipe(folder))
    return train(run, build_families(run.tasks), folder / "run").theta


def test_particles_spread_evenly_over_as_many_devices_as_they_can():
    assert even_devices([32], 8) == 8
    assert even_devices([8], 8) == 4  # two on each at least
    assert even_devices([40, 8], 16) == 4
    assert even_devices([9], 4) == 3
    assert even_devices([5], 4) == 1


@pytest.mark.parametrize("devices", [2, 4])
def test_the_number_of_devices_changes_nothing(devices, alone, tmp_path):
    run = load_recipe(recipe(tmp_path))
    mesh = particle_mesh(jax.devices()[:devices])
    found = train(run, build_families(run.tasks), tmp_path / "run", mesh=mesh)
    close(alone, found.theta)


def test_a_run_continues_on_another_number_of_devices(alone, tmp_path):
    run = load_recipe(recipe(tmp_path))
    families, folder = build_families(run.tasks), tmp_path / "run"
    calls = iter(range(100))
    stopped = train(
        run,
        families,
        folder,
        mesh=particle_mesh(jax.devices()[:4]),
        should_stop=lambda: next(calls) == 3,
    )
    assert not stopped.finished
    found = train(
        run, families, folder, mesh=particle_mesh(jax.devices()[:2]), resume=True
    )
    close(alone, found.theta)


def test_a_cpu_is_a_device_for_each_core(tmp_path, monkeypatch):
    ask = (
        "import jax; from lopax.meta.distributed import request_cpu_devices; "
        "request_cpu_devices(); print(len(jax.devices()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.strip() == str(usable_cores()), done.stderr
    run = load_recipe(recipe(tmp_path))  # 4 particles, and 8 devices in these tests
    for cores, expected in ((1, None), (2, 2), (8, 2)):
        monkeypatch.setattr(distributed, "usable_cores", lambda n=cores: n)
        mesh = distributed.default_mesh(run)
        assert (None if mesh is None else mesh.size) == expected


def start(process: int, port: int, *arguments: str) -> subprocess.Popen:
    """One process of a job of two, each with one device."""
    command = [sys.executable, "-m", "lopax", "train", *arguments, "--distributed"]
    command += ["--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
    environment = {**os.environ, "XLA_FLAGS": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--process-id", str(process)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_equal_one(alone, tmp_path):
    port, path = free_port(), str(recipe(tmp_path))
    jobs = [start(i, port, path, "--out", str(tmp_path / "run")) for i in (0, 1)]
    said = [job.communicate(timeout=240)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    close(alone, load_theta(tmp_path / "run" / "weights.safetensors"))
    steps = [line["step"] for line in read_log(tmp_path / "run" / "metrics.jsonl")]
    assert steps == list(range(2, 22, 2))  # written once, not once per process


def test_a_killed_process_ends_the_job_and_the_run_continues(tmp_path):
    port, folder = free_port(), tmp_path / "run"
    path = recipe(tmp_path, steps=4000, minutes=1e-4)
    jobs = [start(i, port, str(path), "--out", str(folder)) for i in (0, 1)]
    checkpoint, until = folder / "checkpoint.safetensors", time.monotonic() + 240
    while not checkpoint.exists() and time.monotonic() < until:
        assert jobs[0].poll() is None, jobs[0].communicate()
        time.sleep(0.1)
    jobs[1].send_signal(signal.SIGKILL)
    said = jobs[0].communicate(timeout=120)[0]
    jobs[1].communicate()
    assert jobs[0].returncode == 1, said
    assert "lost another process" in said and f"--resume {folder}" in said
    assert "Traceback" not in said
    # On one device, without the peer.
    run, done = load_recipe(path), []
    outcome = train(
        run,
        build_families(run.tasks),
        folder,
        resume=True,
        listener=lambda p: done.append(p.step),
        should_stop=lambda: len(done) == 2,
    )
    assert not outcome.finished and done[0] > 2


def test_clusters_that_cannot_be(capsys, monkeypatch):
    with pytest.raises(ConfigError, match="coordinator, processes and process_id"):
        Cluster(coordinator="127.0.0.1:1")
    with pytest.raises(ConfigError, match="process_id = 2"):
        Cluster(coordinator="127.0.0.1:1", processes=2, process_id=2)
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="--coordinator HOST:PORT"):
        connect(Cluster())
    arguments = ["--coordinator", "127.0.0.1:1", "--processes", "1"]
    assert main(["train", *arguments, "--process-id", "0"]) == 2
    assert "--distributed" in capsys.readouterr().err
