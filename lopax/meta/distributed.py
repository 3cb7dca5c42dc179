"""Meta-training over several devices and processes.

Particles (a search's candidates) are spread over a one-axis mesh of all devices; theta
and the outer optimizer's state are the same everywhere. The gradient is summed over
devices once per outer step, and noise is made from keys where it is used, so a step
sends one array of theta's size. Nothing depends on the number of devices: a checkpoint
written by eight processes continues on one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lopax._core.config import check_range
from lopax._core.errors import ConfigError, PeerLost
from lopax._core.machine import usable_cores
from lopax.estimators.particles import AXIS
from lopax.meta.checkpoint import is_key
from lopax.meta.config import RunConfig

_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE", "heartbeat", "peer", "onnection")
"""What an error that a lost process causes speaks of."""

_SCHEDULERS = ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "TPU_WORKER_HOSTNAMES")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """How the processes of one job find each other.

    Leave all three unset under Slurm, Open MPI or on TPU pods, where JAX reads them
    from the environment.
    """

    coordinator: str | None = None
    """HOST:PORT of process 0."""
    processes: int | None = None
    process_id: int | None = None
    """0 to processes - 1; process 0 writes the run's files."""

    def __post_init__(self) -> None:
        given = (self.coordinator, self.processes, self.process_id)
        if any(x is not None for x in given) and any(x is None for x in given):
            raise ConfigError(
                f"Cluster{given}: give coordinator, processes and process_id, or none"
            )
        if self.processes is not None and self.process_id is not None:
            check_range(self, "processes", low=1)
            check_range(self, "process_id", low=0, below=self.processes)


def connect(cluster: Cluster, timeout: int = 300) -> None:
    """Joins this process to the job; call it before anything touches a device.

    **Arguments:**

    - `timeout`: seconds to wait for the other processes.

    Raises `ConfigError` if nothing says who the others are, `PeerLost` if they do not
    come.
    """
    if cluster.coordinator is None and not any(s in os.environ for s in _SCHEDULERS):
        raise ConfigError(
            "--distributed: found no Slurm, Open MPI or TPU job to read the cluster "
            "from; give --coordinator HOST:PORT --processes N --process-id I"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process_id,
            initialization_timeout=timeout,
        )
    except RuntimeError as error:
        raise PeerLost(
            f"the processes of this job did not find each other in {timeout} s "
            f"({_first_line(error)}); start all of them with the same coordinator and "
            "number of processes"
        ) from None


def particle_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (default: all of the job) for the particle axis."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def request_cpu_devices(count: int | None = None) -> None:
    """Makes `count` virtual CPU devices (default: one for each usable core).

    Each runs its particles on a core of its own, which is much faster than one device
    whose small operations use several threads. Without effect once JAX has started
    its CPU backend, or if XLA_FLAGS says how many there are.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # the backend has started
        jax.config.update(
            "jax_num_cpu_devices", usable_cores() if count is None else count
        )


def default_mesh(run: RunConfig) -> Mesh | None:
    """For one process: the CPU devices, as many as the run's particles (a search's
    candidates) spread evenly over; None for one device, and for accelerators, of which
    one is used."""
    if jax.default_backend() != "cpu":
        return None
    spread = [
        run.estimator_of(p).particles // len(run.tasks)
        if p.search is None
        else p.search.size
        for p in run.phases
    ]
    count = even_devices(spread, min(len(jax.devices()), usable_cores()))
    return particle_mesh(jax.devices()[:count]) if count > 1 else None


def even_devices(particles: Sequence[int], most: int, least: int = 2) -> int:
    """The largest number of devices, at most `most`, that divides each of `particles`
    and leaves at least `least` on every device; one if there is none."""
    fits = (
        n
        for n in range(most, 1, -1)
        if all(count % n == 0 and count // n >= least for count in particles)
    )
    return next(fits, 1)


def place(state: Any, mesh: Mesh | None) -> Any:
    """A `MetaState` on the mesh: the estimator's arrays split along their first axis
    (particles), everything else on every device. Without a mesh, as it is."""
    if mesh is None:
        return state
    split = NamedSharding(mesh, P(AXIS))
    estimator = jax.tree.map(lambda x: put(x, split), state.estimator)
    return replicate(state._replace(estimator=()), mesh)._replace(estimator=estimator)


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays on every device of the mesh; without a mesh, as they are."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: put(x, NamedSharding(mesh, P())), tree)


def put(x: Any, sharding: Any) -> Any:
    """One array (or typed key) on a sharding that may span processes; every process
    holds the same `x`."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if is_key(x):
        data = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def gather(tree: Any) -> Any:
    """Arrays that may be spread over processes as whole host arrays on each of them.

    With several processes, all must call it.
    """
    if jax.process_count() == 1:
        return tree

    def whole(x: Any) -> Any:
        if is_key(x):
            data = whole(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def agree(stop: bool, due: bool) -> tuple[bool, bool]:
    """One decision for all processes: stop if any was asked to; save when process 0
    says it is time (clocks differ). With several processes, all must call it."""
    if jax.process_count() == 1:
        return stop, due
    flags = multihost_utils.process_allgather(np.asarray([stop, due]))
    return bool(flags[:, 0].any()), bool(flags[0, 1])


@contextlib.contextmanager
def peers_may_fail(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Turns a lost connection into `PeerLost` with the way to continue."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # A collective that fails while it is dispatched surfaces as ValueError.
        if jax.process_count() == 1 or not any(w in str(error) for w in _LOST):
            raise
        raise PeerLost(
            f"process {jax.process_index()} of {jax.process_count()} lost another "
            f"process ({_first_line(error)}). The run continues from its last "
            f"checkpoint, on any number of devices: lopax train --resume {folder}"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
