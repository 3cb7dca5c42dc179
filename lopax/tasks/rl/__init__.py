"""Reinforcement learning as tasks: environments, and agents that learn to act."""

from __future__ import annotations

from lopax.tasks.rl.a2c import A2C, A2CConfig, Agent
from lopax.tasks.rl.cartpole import CartPole
from lopax.tasks.rl.catch import Catch
from lopax.tasks.rl.environment import Environment, check_environment
from lopax.tasks.rl.gridworld import Gridworld
from lopax.tasks.rl.gymnax_environment import from_gymnax
from lopax.tasks.rl.networks import ActorCritic
from lopax.tasks.rl.ppo import PPO, PPOConfig
from lopax.tasks.rl.registry import ENVIRONMENTS, environment
from lopax.tasks.rl.settings import AGENTS, A2CSettings, PPOSettings, agent_task

__all__ = [
    "A2C",
    "AGENTS",
    "ENVIRONMENTS",
    "PPO",
    "A2CConfig",
    "A2CSettings",
    "ActorCritic",
    "Agent",
    "CartPole",
    "Catch",
    "Environment",
    "Gridworld",
    "PPOConfig",
    "PPOSettings",
    "agent_task",
    "check_environment",
    "environment",
    "from_gymnax",
]
