"""Next-token prediction over padded examples."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.task import Task
from lopax._core.types import Batch, Key, Params, Scalar, TaskState
from lopax.tasks.language_models import LanguageModel
from lopax.tasks.sources import Source
from lopax.tasks.tokens import PAD


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LanguageTask(Task):
    """Mean cross-entropy of the token after each token that is not padding.

    As published, the target behind an example's last token (padding) counts, and
    dropout, where a model has it, is on in evaluation as well.
    """

    source: Source
    model: LanguageModel = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})

    def init(self, key: Key) -> tuple[Params, TaskState]:
        return self.model.init(key), None

    def batch(self, key: Key, split: str = "train") -> Batch:
        return self.source.draw(key, split, self.batch_size)

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        tokens, targets = batch
        losses = cross_entropy(self.model.apply(params, tokens, key), targets)
        counted = (tokens != PAD).astype(losses.dtype)
        return jnp.sum(losses * counted) / jnp.sum(counted), task_state


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Per token [...], of logits [..., v]. The target's logit is gathered: for large
    vocabularies a one-hot row per token would be far bigger than the model."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
