"""What of an inner run the meta-loss is: which data, and which moments of the run.

Every choice is written as contributions of single steps whose mean over the run is the
meta-loss. So every estimator, over windows or over whole runs, has all of them.

The splits, by what the rule may know of them (Metz et al., 2020, arXiv 2009.11243):

- "train": the loss of the batch an update was made from, before the update; free.
- "valid", inner validation: data of the same inner problem that are never trained on
  but may be shown to rules that take a validation loss (`Unroller.validation_every`).
- "extra_valid", outer validation: data that no rule ever sees, in no form.
- "test": kept for reports; as a meta-loss only where a method's definition says so.

Losses on anything but "train" are those of a fresh batch after the update.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lopax._core.config import check_choice, check_range
from lopax._core.task import Task
from lopax._core.types import Key, Params, Scalar, TaskState

SPLITS = ("train", "valid", "extra_valid", "test")
KINDS = ("mean", "last", "min", "last_recompute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """See the module docstring. Raises `ConfigError` for unknown names."""

    kind: str = "mean"
    """Of the run's losses: "mean", "last", "min"; or "last_recompute", the mean over
    fresh batches at the final parameters, as VeLO."""
    split: str = "train"
    recompute: int = 10
    """Batches of "last_recompute"."""

    def __post_init__(self) -> None:
        check_choice(self, "kind", KINDS)
        check_choice(self, "split", SPLITS)
        check_range(self, "recompute", low=1)

    @property
    def looks(self) -> str:
        """When fresh batches are needed: "never", "always" or at the "end"."""
        if self.kind == "last_recompute":
            return "end"
        if self.split == "train":
            return "never"
        return "end" if self.kind == "last" else "always"

    def look(
        self, task: Task, params: Params, task_state: TaskState, key: Key
    ) -> Scalar:
        """[] normalised loss on fresh batches of the split."""
        count = self.recompute if self.kind == "last_recompute" else 1
        losses = jax.vmap(lambda k: task.evaluate(params, task_state, k, self.split))(
            jax.random.split(key, count)
        )
        return task.normalize(jnp.mean(losses)).astype(jnp.float32)

    def contribution(
        self,
        losses: Float[Array, "N C"],
        least: Any,
        final: Bool[Array, "N"],
        horizon: Float[Array, "N"],
    ) -> tuple[Float[Array, "N C"], Any]:
        """What one step adds to the sum that, divided by the run's length, is the
        meta-loss; and the next running minimum (untouched unless it is needed).

        **Arguments:**

        - `least`: [N, C] the run's smallest loss so far, infinite at its start.
        - `final`: whether the step is the run's last.
        """
        length = horizon[:, None]
        if self.kind == "mean":
            return losses, least
        if self.kind == "min":
            # The minimum as a sum of what each step lowers it by, so that every step
            # is credited to the noise that had acted by then.
            lower = jnp.minimum(least, losses)
            start = jnp.where(jnp.isinf(least), 0.0, least)
            return length * (lower - start), lower
        return jnp.where(final[:, None], length * losses, 0.0), least
