"""What a learned rule is in torch, and the seam at which further rules enter.

A rule says what state a tensor has, advances once a step what all tensors share, and
steps a batch of equally shaped tensors. It never sees an optimizer, a process group or
a shard: where it needs a sum over a whole tensor it yields its own part and is sent
back the complete sum.
"""

from __future__ import annotations

import abc
from collections.abc import Generator, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from torch import Tensor

from lopax._core.config import from_dict
from lopax.torch import theta as thetas
from lopax.torch.geometry import Accumulator


class Sum(NamedTuple):
    """A sum over some of a tensor's axes, complete only within the local shard."""

    value: Tensor
    axes: tuple[int, ...]


Steps = Generator[list[Sum], list[Tensor], Tensor]
"""Yields sums to be completed, is sent them complete, returns the update."""


class TensorBatch(NamedTuple):
    """B tensors of one shape `*s`, all float32."""

    grads: Tensor  # [B, *s] finite, clipped
    params: Tensor  # [B, *s]
    state: dict[str, Tensor]  # each [B, ...]; the rule updates it in place
    shape: tuple[int, ...]  # of the whole tensor, over all shards
    axes: tuple[int, int] | None  # (second largest, largest), None for vectors


class Rule(abc.ABC):
    """One learned rule with its settings and its meta-parameters on one device."""

    name: ClassVar[str]
    needs_loss: ClassVar[bool]
    needs_horizon: ClassVar[bool]
    config_class: ClassVar[type]
    grad_clip: ClassVar[float] = 1000.0

    def __init__(self, config: Any, theta: dict[str, Tensor]):
        self.config = config
        self.theta = theta

    @classmethod
    def create(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> Self:
        """From arrays under lopax's or the published path names.

        Raises `UnknownName`, `ConfigError`, `StructureMismatch`.
        """
        where = f"architecture {cls.name!r}"
        config = from_dict(cls.config_class, settings, where=where)
        arrays = cls.translate_published(dict(arrays))
        theta = thetas.to_torch(cls.name, arrays, cls.theta_shapes(config))
        return cls(config, theta | cls.constants(config))

    def to(self, device: Any) -> Self:
        """The same rule with its tensors on `device`."""
        moved = {k: v.to(device) for k, v in self.theta.items()}
        return type(self)(self.config, moved)

    @classmethod
    @abc.abstractmethod
    def theta_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the meta-parameters by path name."""

    @classmethod
    def constants(cls, config: Any) -> dict[str, Tensor]:
        """Fixed tensors the rule wants beside theta, on its device."""
        del config
        return {}

    @classmethod
    def translate_published(
        cls, arrays: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Published path names to ours."""
        return arrays

    @abc.abstractmethod
    def init_shared(self, num_steps: int) -> dict[str, Tensor]:
        """State common to all tensors, on the rule's device."""

    @abc.abstractmethod
    def accumulators(self, rank: int, axes: Any) -> dict[str, Accumulator]:
        """The arrays (float32, zero at first) of one tensor's state.

        **Arguments:**

        - `rank`: at least one; scalars count as shape (1,).
        - `axes`: (second largest, largest) axis, None for vectors.
        """

    @abc.abstractmethod
    def advance(
        self, shared: dict[str, Tensor], loss: Tensor, fraction: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The next shared state and the rule's learning-rate-like scale [].

        Must not change `shared` in place: a step that is skipped keeps it.
        """

    @abc.abstractmethod
    def step(self, batch: TensorBatch, scale: Tensor, alive: Tensor) -> Steps:
        """What to add to the parameters, [B, *s]; updates `batch.state` in place.

        **Arguments:**

        - `scale`: [] what `advance` returned.
        - `alive`: [] 1.0, or 0.0 for a skipped step, in which the state must not
            change and the update must be zero. The gradient is finite in any case.
        """


def complete(steps: Steps) -> Tensor:
    """Runs a rule on tensors that are whole: every sum is complete as it is."""
    try:
        sums = next(steps)
        while True:
            sums = steps.send([s.value for s in sums])
    except StopIteration as done:
        return done.value


def known_settings(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings saved with weights, those the torch rule has.

    The others concern meta-training only (how theta was initialised).
    """
    names: Iterable[str] = cls.__dataclass_fields__  # type: ignore[attr-defined]
    return {k: v for k, v in settings.items() if k in names}
