"""The template of rules whose step is an element network's, or is made of it."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from lopax._core.config import check_choice
from lopax.rules import form, moments
from lopax.rules.element_net import ElementNet, Numbers
from lopax.rules.form import Place, StepContext, Steps
from lopax.rules.ops import Array, Arrays, Ops

BACKENDS = ("auto", "plain", "fused")


def check_backend(config: Any) -> None:
    """Raises `ConfigError` for a kernel that does not exist."""
    check_choice(config, "backend", BACKENDS)


class ElementRule(form.Rule):
    """The driver steps the network, in the plain form or by a kernel, and hands on
    what it found. Tensors whose role has no network are the rule's own: `step`."""

    only_elements: ClassVar[bool] = True
    """Whether the network's step is the rule's, so that `finish` need not be called."""

    def keeps(self, role: str) -> Any:
        del role
        return moments.KEEPS

    def element_net(self, role: str) -> ElementNet | None:
        """What tensors with this role are stepped by."""
        del role
        return self.config.element_net

    @abc.abstractmethod
    def numbers(
        self, xp: Ops, theta: Any, scale: Array, told: Arrays, common: Arrays
    ) -> Numbers:
        """What the network's step is. It must not go by the tensor but by what it was
        told: a kernel steps tensors of all shapes at once.

        **Arguments:**

        - `scale`, `told`, `common`: what `advance` returned.

        **Returns:** arrays without leading axes, or with those of `told`.
        """

    def factor(self, place: Place) -> float:
        """What a tensor's step is multiplied by beside `Numbers.scale`."""
        del place
        return 1.0

    def finish(
        self, xp: Ops, theta: Any, at: StepContext, step: Array, state: Any, param: Any
    ) -> Steps:
        """What to add to the parameters, of the network's step [*lead, *s] and the
        state after it."""
        del xp, theta, at, state, param
        yield from form.no_sums()
        return step

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: Any,
        param: Array,
    ) -> Steps:
        raise NotImplementedError(f"{self.name!r} has an element network")
