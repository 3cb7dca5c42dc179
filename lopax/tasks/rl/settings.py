"""Agents as plain settings: what recipes and the table of tasks hold."""

from __future__ import annotations

import dataclasses
from typing import Any

from lopax._core.config import from_dict
from lopax._core.errors import UnknownName
from lopax.tasks.networks import check_sizes
from lopax.tasks.rl.a2c import A2C, A2CConfig, Agent
from lopax.tasks.rl.networks import ActorCritic
from lopax.tasks.rl.ppo import PPO, PPOConfig
from lopax.tasks.rl.registry import environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class A2CSettings(A2CConfig):
    """An actor-critic agent in a named environment."""

    environment: str
    hidden: tuple[int, ...] = (64,)
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "hidden")
        check_sizes(self, "channels")

    def build(self) -> A2C:
        network = ActorCritic(hidden=self.hidden, channels=self.channels)
        return A2C(
            environment=environment(self.environment), network=network, config=self
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOSettings(PPOConfig):
    """A PPO agent in a named environment."""

    environment: str
    hidden: tuple[int, ...] = (64,)
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "hidden")
        check_sizes(self, "channels")

    def build(self) -> PPO:
        network = ActorCritic(hidden=self.hidden, channels=self.channels)
        return PPO(
            environment=environment(self.environment), network=network, config=self
        )


AGENTS: dict[str, Any] = {"a2c": A2CSettings, "ppo": PPOSettings}
"""The algorithms, and the settings that describe them."""


def agent_task(algorithm: str, environment: str, **settings: Any) -> Agent:
    """An agent in a named environment as a task.

        agent_task("a2c", "catch", hidden=(64,), envs=16)

    Raises `UnknownName` for an algorithm, environment or setting that does not exist,
    `ConfigError` for values out of range, `MissingExtra` for a gymnax environment
    without gymnax, `TaskError` for one the agent cannot act in.
    """
    if algorithm not in AGENTS:
        raise UnknownName("agent", algorithm, AGENTS)
    values = {**settings, "environment": environment}
    return from_dict(AGENTS[algorithm], values, where=f"agent {algorithm!r}").build()
