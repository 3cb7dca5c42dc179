"""What a learned rule is in torch, and the seam at which further rules enter.

A rule says what state a tensor has, advances once a step what all tensors share, and
steps a batch of equally shaped tensors. It never sees an optimizer or a process group:
where it needs a sum over a whole tensor it yields its own part and is sent back the
complete sum.
"""

from __future__ import annotations

import abc
import types
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from lopax._core.config import from_dict
from lopax._core.published import translate
from lopax._core.routing import Route
from lopax._core.run import Run
from lopax.rules.element_net import ElementNet, Numbers
from lopax.rules.form import Steps, Sum, complete
from lopax.torch import theta as thetas
from lopax.torch.geometry import Accumulator


class TensorBatch(NamedTuple):
    """B tensors of one shape `*s` and one role, all float32."""

    grads: Tensor  # [B, *s] finite, clipped; the rule may write to it
    params: Tensor  # [B, *s]
    state: dict[str, Tensor]  # each [B, ...]; the rule updates it in place
    shape: tuple[int, ...]  # of the whole tensor, over all shards
    axes: tuple[int, int] | None  # (second largest, largest), None for vectors
    matrix: tuple[int, ...]  # (in, out), (0,) for vectors; see `geometry.matrix_axes`
    cut: int | None  # the axis of which this process has only a part
    scalar: bool  # to the user they have no axes
    role: str  # what `Rule.role` said
    context: Mapping[
        str, Tensor
    ]  # each [B, ...]: what `Rule.advance` told these tensors
    elements: Tensor | None = None  # [B, *s] the network's step, if a kernel made it
    all_reached: bool = False  # whether it is known that `moments.unreached` is none


NOTHING: Mapping[str, Any] = types.MappingProxyType({})


class Rows(NamedTuple):
    """What `Rule.advance` sees of the N tensors of a step, one row each."""

    count: int  # N  # pyright: ignore[reportIncompatibleMethodOverride]
    summaries: Tensor | None  # [N, F] what `summarise` returned, if the rule has it
    carried: dict[str, Tensor]  # each [N, ...]: the states named in `Rule.carried`


class Advance(NamedTuple):
    """What `Rule.advance` returns."""

    shared: dict[str, Tensor]  # the next shared state
    scale: Tensor  # [] the rule's learning-rate-like number
    carried: Mapping[str, Tensor] = NOTHING  # the next rows of the carried states
    context: Mapping[str, Tensor] = NOTHING  # each [N, ...]: for the tensors' steps


class Rule(abc.ABC):
    """One learned rule with its settings and its meta-parameters on one device."""

    name: ClassVar[str]
    needs_loss: ClassVar[bool]
    needs_horizon: ClassVar[bool]
    config_class: ClassVar[type]
    grad_clip: ClassVar[float] = 1000.0
    roles: ClassVar[tuple[str, ...]] = ()
    """Roles a parameter group may ask for; empty if all tensors are treated alike."""
    flattens: ClassVar[bool] = False
    """Tensors of four or more axes are matrices to it, see `geometry.seen`."""
    only_elements: ClassVar[bool] = False
    """Whether the step is that of `element_net`, and nothing else."""
    carried: ClassVar[tuple[str, ...]] = ()
    """The arrays of a tensor's state that `advance` steps, not `step`."""
    summarises: ClassVar[bool] = False
    """Whether `summarise` is to be called."""
    sees_gradients: ClassVar[bool] = False
    """Whether `summarise` looks at them."""

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
        ours = translate(
            cls.name, dict(arrays), lambda a: cls.translate_published(a, config)
        )
        theta = thetas.to_torch(cls.name, ours, cls.theta_shapes(config))
        return cls(config, theta | cls.constants(config, theta))

    def to(self, device: Any) -> Self:
        """The same rule with its tensors on `device`."""
        moved = {k: v.to(device) for k, v in self.theta.items()}
        return type(self)(self.config, moved)

    @classmethod
    @abc.abstractmethod
    def theta_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the meta-parameters by path name."""

    @classmethod
    def constants(cls, config: Any, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fixed tensors the rule wants beside theta, on its device."""
        del config, theta
        return {}

    @classmethod
    def translate_published(
        cls, arrays: dict[str, np.ndarray], config: Any
    ) -> dict[str, np.ndarray]:
        """Published path names to ours."""
        del config
        return arrays

    def role(
        self,
        name: str | None,
        shape: tuple[int, ...],
        kind: str | None = None,
        routes: tuple[Route, ...] = (),
    ) -> str:
        """How a tensor is treated, for rules that treat some in another way.

        **Arguments:**

        - `name`: the parameter's path `block/0/weight`; None if it is not known.
        - `shape`: as the user has it, () for a scalar; of one tensor of a stack.
        - `kind`: what its module tells, one of `lopax._core.kinds.KINDS`.
        - `routes`: the user's, which come before the rule's own.
        """
        del name, shape, kind, routes
        return ""

    def element_net(self, role: str) -> ElementNet | None:
        """The network of which the step of tensors with this role is made, for rules
        that have one; kernels may compute it. See `elements.step`."""
        del role
        return None

    def numbers(self, context: Mapping[str, Tensor], scale: Tensor) -> Numbers:
        """What that network's step is, for tensors with this context, each [B, ...]:
        arrays [R, ...] and a scale [R], R the number of tensors, or 1 for all.

        `scale`: [] what `advance` returned.
        """
        raise NotImplementedError(f"{self.name!r} has no element network")

    num_starts: ClassVar[int] = 0
    """How many numbers `measure` says of a tensor; 0: it is not called."""

    def measure(self, batch: TensorBatch) -> Steps:
        """[B, S] numbers about the first values of tensors, whose state and gradients
        are not there yet."""
        raise NotImplementedError(f"{self.name!r} does not measure tensors")

    @abc.abstractmethod
    def init_shared(
        self, num_steps: int, starts: Tensor | None = None
    ) -> dict[str, Tensor]:
        """State common to all tensors, on the rule's device.

        **Arguments:**

        - `starts`: [N, S] what `measure` said of all tensors; None: not known.
        """

    def init_rows(
        self, shared: Mapping[str, Tensor], starts: Tensor
    ) -> dict[str, Tensor]:
        """The first values of the states named in `carried`, each [N, ...], for rules
        that measure tensors."""
        del shared, starts
        return {}

    @abc.abstractmethod
    def accumulators(self, rank: int, axes: Any, role: str) -> dict[str, Accumulator]:
        """The arrays (float32) of one tensor's state.

        **Arguments:**

        - `rank`: at least one; scalars count as shape (1,).
        - `axes`: (second largest, largest) axis, None for vectors.
        - `role`: what `role` said.
        """

    def summarise(self, batch: TensorBatch, shared: Mapping[str, Tensor]) -> Steps:
        """[B, F] summaries of B tensors, for `advance`; nothing is changed.

        **Arguments:**

        - `batch`: with the states from before this step's gradients, which are there
            for rules that say `sees_gradients` only; without context.
        """
        raise NotImplementedError(f"{self.name!r} has no summaries")

    @abc.abstractmethod
    def advance(self, shared: dict[str, Tensor], run: Run, rows: Rows) -> Advance:
        """Advances what the tensors share, once a step.

        Must not change `shared` in place: a step that is skipped keeps it.

        **Arguments:**

        - `run`: its loss is finite.
        - `rows`: what there is to know of the tensors that have a gradient.
        """

    def observe_validation(
        self, shared: dict[str, Tensor], loss: Tensor
    ) -> dict[str, Tensor]:
        """What is shared after a look at the (finite) loss [] on validation data."""
        del loss
        return shared

    @abc.abstractmethod
    def step(self, batch: TensorBatch, scale: Tensor, alive: Tensor) -> Steps:
        """What to add to the parameters, [B, *s]; updates `batch.state` in place.

        **Arguments:**

        - `scale`: [] what `advance` returned.
        - `alive`: [] 1.0, or 0.0 for a skipped step, in which the state must not
            change and the update must be zero. The gradient is finite in any case.
        """


def constant(values: Any) -> Tensor:
    """Numbers as a float32 tensor on the CPU, whatever torch's defaults are."""
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def known_settings(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings saved with weights, those the torch rule has.

    The others concern meta-training only (how theta was initialised).
    """
    names: Iterable[str] = cls.__dataclass_fields__  # type: ignore[attr-defined]
    return {k: v for k, v in settings.items() if k in names}


__all__ = [
    "NOTHING",
    "Advance",
    "Rows",
    "Rule",
    "Steps",
    "Sum",
    "TensorBatch",
    "complete",
    "constant",
    "known_settings",
]
