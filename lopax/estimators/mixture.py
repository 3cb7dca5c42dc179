"""One meta-gradient from several estimators, say one for each shape of task.

Tasks of one shape run vmapped in one program; tasks of another shape need another
estimator. A mixture runs them one after the other inside the same compiled step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from lopax._core.errors import ConfigError
from lopax._core.estimator import EstimateInfo, Estimator
from lopax._core.types import Key, Theta


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Estimator):
    """The mean of the estimates of `parts`. Raises `ConfigError` if there is none."""

    parts: Sequence[Estimator]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("Mixture.parts = (): needs at least one estimator")

    @property
    def uses_backprop(self) -> bool:  # type: ignore[override]
        return any(part.uses_backprop for part in self.parts)

    def init(self, theta: Theta, key: Key) -> tuple[Any, ...]:
        keys = jax.random.split(key, len(self.parts))
        return tuple(p.init(theta, k) for p, k in zip(self.parts, keys, strict=True))

    def step(
        self, theta: Theta, state: tuple[Any, ...], key: Key
    ) -> tuple[Theta, tuple[Any, ...], EstimateInfo]:
        keys = jax.random.split(key, len(self.parts))
        grads, states, infos = zip(
            *(
                part.step(theta, s, k)
                for part, s, k in zip(self.parts, state, keys, strict=True)
            ),
            strict=True,
        )
        count = len(self.parts)
        grad = jax.tree.map(lambda *g: sum(g) / count, *grads)
        total: EstimateInfo = jax.tree.map(lambda *x: sum(x), *infos)
        return grad, states, total._replace(loss=total.loss / count)
