"""Running particles in cache-sized chunks, on one device or on many.

Every particle's randomness comes from its own key, so neither the chunk size nor the
number of devices changes what is computed (up to the order of float sums).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.estimator import EstimateInfo
from lopax._core.task import TaskFamily
from lopax._core.types import Key, Keys
from lopax.estimators.perturb import ALL
from lopax.estimators.unroll import Window

AXIS = "particles"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParticleSettings:
    """How many particles, what they perturb, and how they are laid out."""

    num_particles: int = 32
    trainable: tuple[str, ...] = ALL
    """Path-name patterns of the meta-parameters that are trained; the others get no
    noise and no gradient."""
    chunk: int | None = None
    """At most so many particles run together (vmapped), one chunk after the other. A
    chunk whose states fit the cache is faster on a CPU. None: all at once."""
    mesh: Mesh | None = None
    """Devices to spread the particles over, along an axis called "particles"."""

    def __post_init__(self) -> None:
        check_range(self, "num_particles", low=1)
        if self.chunk is not None:
            check_range(self, "chunk", low=1)
        if self.mesh is not None and self.num_particles % self.mesh.shape[AXIS]:
            raise ConfigError(
                f"num_particles = {self.num_particles}: must be a multiple of the "
                f"{self.mesh.shape[AXIS]} devices"
            )

    def together(self, local: int) -> int:
        """How many of a device's `local` particles run together: as many as divide
        them evenly and are within `chunk`."""
        most = min(self.chunk or local, local)
        return next(n for n in range(most, 0, -1) if local % n == 0)

    def strata(self, family: TaskFamily) -> jax.Array:
        """[N] int32: which stratum of the family each particle trains on."""
        return jnp.arange(self.num_particles, dtype=jnp.int32) % family.num_strata


def run_chunks(
    family: TaskFamily,
    settings: ParticleSettings,
    chunk_fn: Callable[[Any, jax.Array, Key], tuple[Any, Any]],
    state: Any,
    key: Key,
) -> tuple[Any, Any]:
    """Maps `chunk_fn(state, strata, keys) -> (state, sums)` over all particles.

    State leaves have the particle axis first; `sums` is added over chunks and devices.
    """
    keys = jax.random.split(key, settings.num_particles)
    strata = settings.strata(family)

    def run(state: Any, strata: jax.Array, keys: Keys) -> tuple[Any, Any]:
        local = strata.shape[0]
        size = settings.together(local)
        if size == local:
            state, sums = chunk_fn(state, strata, keys)
        else:
            chunked = jax.tree.map(
                lambda x: x.reshape(local // size, size, *x.shape[1:]),
                (state, strata, keys),
            )
            state, sums = jax.lax.map(lambda args: chunk_fn(*args), chunked)
            state = jax.tree.map(lambda x: x.reshape(local, *x.shape[2:]), state)
            sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
        if settings.mesh is not None:
            sums = jax.lax.psum(sums, AXIS)
        return state, sums

    if settings.mesh is None:
        return run(state, strata, keys)
    return jax.shard_map(
        run,
        mesh=settings.mesh,
        in_specs=(P(AXIS), P(AXIS), P(AXIS)),
        out_specs=(P(AXIS), P()),
        check_vma=False,
    )(state, strata, keys)


def window_sums(window: Window) -> EstimateInfo:
    """A window's report as sums, to be added over chunks; see `finish_info`."""
    valid = jnp.sum(~window.done).astype(jnp.float32)
    return EstimateInfo(
        loss=jnp.sum(window.losses),
        inner_steps=window.losses.shape[-1] * valid,
        finished=jnp.sum(window.done).astype(jnp.float32),
        diverged=jnp.sum(window.diverged).astype(jnp.float32),
    )


def finish_info(sums: EstimateInfo) -> EstimateInfo:
    """Turns the summed loss into the mean over valid steps."""
    return sums._replace(loss=sums.loss / jnp.maximum(sums.inner_steps, 1.0))
