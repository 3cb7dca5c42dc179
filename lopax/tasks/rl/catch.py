"""Catch: a ball falls, a paddle at the bottom must be under it (Mnih et al., 2014, in
the form of the bsuite, Osband et al., 2019, arXiv 1908.03568)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lopax._core.config import check_range
from lopax._core.types import Count, Flag, Key, Scalar
from lopax.tasks.rl.environment import Environment


class CatchState(NamedTuple):
    row: Count  # of the ball
    column: Count
    paddle: Count  # its column; it is always in the bottom row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Catch(Environment):
    """Actions: left, stay, right. Reward +1 or -1 when the ball reaches the bottom row,
    which ends the episode after rows - 1 steps. Observations [rows, columns] are one at
    ball and paddle. Random play earns 2 / columns - 1 on average.
    """

    rows: int = 10
    columns: int = 5

    def __post_init__(self) -> None:
        check_range(self, "rows", low=2)
        check_range(self, "columns", low=1)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns)

    @property
    def num_actions(self) -> int:
        return 3

    def reset(self, key: Key) -> tuple[Array, CatchState]:
        column = jax.random.randint(key, (), 0, self.columns, jnp.int32)
        zero = jnp.zeros((), jnp.int32)
        state = CatchState(zero, column, zero + self.columns // 2)
        return self._observe(state), state

    def step(
        self, key: Key, state: CatchState, action: Int[Array, ""]
    ) -> tuple[Array, CatchState, Scalar, Flag]:
        del key
        paddle = jnp.clip(state.paddle + action - 1, 0, self.columns - 1)
        state = CatchState(state.row + 1, state.column, paddle.astype(jnp.int32))
        done = state.row >= self.rows - 1
        won = jnp.where(state.column == state.paddle, 1.0, -1.0)
        return self._observe(state), state, jnp.where(done, won, 0.0), done

    def _observe(self, state: CatchState) -> Array:
        rows, columns = jnp.arange(self.rows)[:, None], jnp.arange(self.columns)
        ball = (rows == state.row) & (columns == state.column)
        paddle = (rows == self.rows - 1) & (columns == state.paddle)
        return (ball | paddle).astype(jnp.float32)
