"""The environments by name."""

from __future__ import annotations

from typing import Any

from lopax._core.registry import Registry
from lopax.tasks.rl.cartpole import CartPole
from lopax.tasks.rl.catch import Catch
from lopax.tasks.rl.gridworld import grids
from lopax.tasks.rl.gymnax_environment import from_gymnax

GYMNAX = "gymnax:"

ENVIRONMENTS: Registry[Any] = Registry("environment")
"""Every environment of lopax by name, made."""

ENVIRONMENTS.add("catch", Catch())
ENVIRONMENTS.add("cartpole", CartPole())
for _name, _grid in grids().items():
    ENVIRONMENTS.add(f"grid_{_name}", _grid)


def environment(name: str) -> Any:
    """The environment called `name`: one of `ENVIRONMENTS`, or `gymnax:NAME` for one of
    gymnax.

    Raises `UnknownName` with near matches, and what `from_gymnax` raises.
    """
    if name.startswith(GYMNAX):
        return from_gymnax(name.removeprefix(GYMNAX))
    return ENVIRONMENTS[name]
