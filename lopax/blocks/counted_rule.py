"""The template of rules whose tensors share nothing but the number of steps made."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Generic, TypeVar

import jax.numpy as jnp

from lopax._core.run import Run
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Scalar, Theta

S = TypeVar("S")


class CountedRule(TensorRule[Count, Count, S], Generic[S]):
    """Needs neither the loss nor the horizon. Each tensor's step receives the number
    of updates made before it [] int32; skipped ones do not count."""

    needs_loss: ClassVar[bool] = False
    needs_horizon: ClassVar[bool] = False

    @abc.abstractmethod
    def step_scale(self, theta: Theta) -> Any:
        """[] the learning-rate-like scalar to report."""

    def init_shared(self, theta: Theta, num_steps: Count, num_tensors: int) -> Count:
        del theta, num_steps, num_tensors
        return jnp.zeros((), jnp.int32)

    def advance(
        self, theta: Theta, shared: Count, run: Run, summaries: Any
    ) -> tuple[Count, Count, Scalar]:
        del run, summaries
        scale = jnp.asarray(self.step_scale(theta), jnp.float32)
        return shared + 1, shared, scale
