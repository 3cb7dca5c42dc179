"""Small grids with things to collect and things to avoid.

The kind of world on which reinforcement learning itself has been meta-learned (Oh et
al., 2020, arXiv 2007.08794) and on which Optim4RL was trained (Lan et al., 2023, arXiv
2302.01470), in eight sizes.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.types import Count, Flag, Key, Scalar
from lopax.tasks.rl.environment import Environment

MOVES = np.asarray([(r, c) for r in (0, -1, 1) for c in (0, -1, 1)], np.int32)
"""Nine actions: stay, and the eight neighbours."""


class GridState(NamedTuple):
    agent: Count  # cells are numbered row by row
    objects: Int[Array, "k"]  # their cells
    present: Bool[Array, "k"]
    time: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gridworld(Environment):
    """A walled room of `rows` x `columns` cells with `good` objects of reward +1 and as
    many of reward -1.

    Stepping on an object collects it; a bad one ends the episode with probability
    `ending`, the time limit always. A collected object comes back in a random free
    cell with probability `respawn` a step. A move into a wall is no move. Observations
    [rows, columns, objects + 1] are one plane for each object and one for the agent.
    """

    rows: int
    columns: int
    good: int = 1
    respawn: float = 0.5
    ending: float = 0.5
    limit: int = 50

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "good", "limit"):
            check_range(self, name, low=1)
        check_range(self, "respawn", low=0.0, high=1.0)
        check_range(self, "ending", low=0.0, high=1.0)
        if self.rows * self.columns < 2 * self.good + 2:
            raise ConfigError(
                f"Gridworld: {self.rows} x {self.columns} cells are too few for the "
                f"agent, {2 * self.good} objects and a free cell"
            )

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns, 2 * self.good + 1)

    @property
    def num_actions(self) -> int:
        return len(MOVES)

    def reset(self, key: Key) -> tuple[Array, GridState]:
        cells = jax.random.permutation(key, self.rows * self.columns)
        cells = cells[: 2 * self.good + 1].astype(jnp.int32)
        present = jnp.ones((2 * self.good,), bool)
        state = GridState(cells[0], cells[1:], present, jnp.zeros((), jnp.int32))
        return self._observe(state), state

    def step(
        self, key: Key, state: GridState, action: Int[Array, ""]
    ) -> tuple[Array, GridState, Scalar, Flag]:
        end_key, *object_keys = jax.random.split(key, 1 + 2 * self.good)
        agent = self._move(state.agent, action)
        hit = state.present & (state.objects == agent)
        is_good = np.arange(2 * self.good) < self.good
        reward = jnp.sum(jnp.where(hit, np.where(is_good, 1.0, -1.0), 0.0))
        ends = jnp.any(hit & ~is_good) & jax.random.bernoulli(end_key, self.ending)
        objects, present = state.objects, state.present & ~hit
        for i, object_key in enumerate(object_keys):
            # A thing collected now comes back in a later step at the earliest.
            objects, present = self._respawn(
                object_key, i, agent, objects, present, ~state.present[i]
            )
        after = GridState(agent, objects, present, state.time + 1)
        done = ends | (after.time >= self.limit)
        return self._observe(after), after, reward, done

    def _move(self, cell: Count, action: Int[Array, ""]) -> Count:
        place = jnp.stack([cell // self.columns, cell % self.columns])
        target = place + jnp.asarray(MOVES)[action]
        size = np.asarray([self.rows, self.columns])
        inside = jnp.all((target >= 0) & (target < size))
        target = jnp.where(inside, target, place)
        return target[0] * self.columns + target[1]

    def _respawn(
        self,
        key: Key,
        i: int,
        agent: Count,
        objects: Int[Array, "k"],
        present: Bool[Array, "k"],
        absent: Flag,
    ) -> tuple[Int[Array, "k"], Bool[Array, "k"]]:
        """Object i, if it was absent, perhaps back in a free cell."""
        now_key, cell_key = jax.random.split(key)
        back = absent & jax.random.bernoulli(now_key, self.respawn)
        cells = jnp.arange(self.rows * self.columns, dtype=jnp.int32)
        taken = jnp.any((cells[:, None] == objects) & present, axis=1)
        free = ~taken & (cells != agent)
        cell = jax.random.categorical(cell_key, jnp.where(free, 0.0, -jnp.inf))
        objects = objects.at[i].set(jnp.where(back, cell, objects[i]))
        return objects, present.at[i].set(present[i] | back)

    def _observe(self, state: GridState) -> Array:
        cells = jnp.arange(self.rows * self.columns)[:, None]
        things = (cells == state.objects) & state.present
        planes = jnp.concatenate([things, cells == state.agent], axis=1)
        return planes.astype(jnp.float32).reshape(self.observation_shape)


def grids() -> dict[str, Gridworld]:
    """The eight published sizes by name, `small_dense_long` and so on."""
    sizes = {
        ("sparse", "short"): ((3, 8), (10, 12)),
        ("sparse", "long"): ((8, 3), (12, 10)),
        ("dense", "short"): ((4, 6), (9, 13)),
        ("dense", "long"): ((6, 4), (13, 9)),
    }
    return {
        f"{size}_{density}_{length}": Gridworld(
            rows=shape[0],
            columns=shape[1],
            good=good,
            respawn=0.05 if density == "sparse" else 0.5,
            limit=50 if length == "short" else 500,
        )
        for (density, length), shapes in sizes.items()
        for size, good, shape in zip(("small", "big"), (1, 2), shapes, strict=True)
    }
