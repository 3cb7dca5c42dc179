"""Update directions of hand-made optimizers by name, for rules that combine them.

A direction is an optax transformation without a learning rate: like optax's own
`scale_by_...` it points uphill, and whoever uses it subtracts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import optax

from lopax._core.errors import ConfigError
from lopax._core.registry import Registry

Factory = Callable[..., optax.GradientTransformation]

DIRECTIONS: Registry[Factory] = Registry("direction")
"""Name -> a function from settings to a transformation. Add your own:
`DIRECTIONS.add("mine", my_transformation)`; it must be there whenever weights that
name it are loaded."""

DIRECTIONS.add("gradient", optax.identity)
DIRECTIONS.add("momentum", optax.ema)
# Of a gradient that was always zero, the root would have no derivative.
DIRECTIONS.add("adam", functools.partial(optax.scale_by_adam, eps_root=1e-30))
DIRECTIONS.add("adabelief", optax.scale_by_belief)
DIRECTIONS.add("lion", optax.scale_by_lion)
DIRECTIONS.add("rmsprop", optax.scale_by_rms)
DIRECTIONS.add("sign", optax.scale_by_sign)
DIRECTIONS.add("yogi", optax.scale_by_yogi)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Direction:
    """A direction and how large it is."""

    name: str
    """A key of `DIRECTIONS`."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of its factory, JSON values."""
    unit_rms: bool = False
    """Scale the direction of each tensor to a root mean square of one."""

    def __post_init__(self) -> None:
        try:
            self.build()
        except TypeError as error:
            raise ConfigError(
                f"Direction({self.name!r}).settings = {self.settings}: {error}"
            ) from None

    def build(self) -> optax.GradientTransformation:
        """The transformation. Raises `UnknownName`."""
        return DIRECTIONS[self.name](**self.settings)
