"""The cart-pole balancing problem (Barto, Sutton and Anderson, 1983)."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lopax._core.config import check_range
from lopax._core.types import Count, Flag, Key, Scalar
from lopax.tasks.rl.environment import Environment

GRAVITY, FORCE, SECONDS = 9.8, 10.0, 0.02
CART, POLE, HALF_LENGTH = 1.0, 0.1, 0.5
FURTHEST, STEEPEST = 2.4, 12.0 * math.pi / 180.0


class CartPoleState(NamedTuple):
    motion: Float[Array, "4"]  # position, velocity, angle, angular velocity
    time: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class CartPole(Environment):
    """Two actions push the cart left or right by 10 N for 0.02 s (an Euler step).
    Reward 1 a step until the cart is 2.4 m away, the pole leans by 12 degrees, or
    `limit` steps are over; random play lasts about 22 steps. Observations [4]:
    position, velocity, angle, angular velocity.
    """

    limit: int = 500

    def __post_init__(self) -> None:
        check_range(self, "limit", low=1)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (4,)

    @property
    def num_actions(self) -> int:
        return 2

    def reset(self, key: Key) -> tuple[Array, CartPoleState]:
        motion = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return motion, CartPoleState(motion, jnp.zeros((), jnp.int32))

    def step(
        self, key: Key, state: CartPoleState, action: Int[Array, ""]
    ) -> tuple[Array, CartPoleState, Scalar, Flag]:
        del key
        _, speed, angle, spin = state.motion
        force = jnp.where(action == 1, FORCE, -FORCE)
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        total, moment = CART + POLE, POLE * HALF_LENGTH
        push = (force + moment * jnp.square(spin) * sine) / total
        inertia = HALF_LENGTH * (4.0 / 3.0 - POLE * jnp.square(cosine) / total)
        turn = (GRAVITY * sine - cosine * push) / inertia
        pull = push - moment * turn * cosine / total
        rates = jnp.stack([speed, pull, spin, turn])
        after = CartPoleState(state.motion + SECONDS * rates, state.time + 1)
        fallen = jnp.abs(after.motion[2]) > STEEPEST
        away = jnp.abs(after.motion[0]) > FURTHEST
        done = fallen | away | (after.time >= self.limit)
        return after.motion, after, jnp.ones(()), done
