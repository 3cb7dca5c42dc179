"""Runs a rule of `lopax.rules` in JAX: the driver between it and `TensorRule`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core import lifting
from lopax._core import tree as trees
from lopax._core.optimizer import OptState
from lopax._core.places import Leaf
from lopax._core.run import Run
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Flag, Key, Scalar, Theta
from lopax.architectures import elements
from lopax.architectures.first_state import first_state
from lopax.architectures.jax_ops import JaxDraw, JaxOps
from lopax.rules import element_plain, form
from lopax.rules.element_net import ElementNet, Numbers
from lopax.rules.element_rule import ElementRule
from lopax.rules.form import Keeps, Place, Rows, StepContext
from lopax.rules.ops import Ops

XP = cast(Ops, JaxOps())


class Shared(NamedTuple):
    """What is not of one tensor's state alone."""

    common: Any  # the rule's own, the same for all tensors
    rows: Any  # the rule's rows, [tensors, ...] each


class Told(NamedTuple):
    """What the tensors are told in a step."""

    told: dict[str, Array]  # each [tensors, ...]
    common: dict[str, Array]
    scale: Scalar
    updates: Count


class Described(TensorRule[Shared, Told, Any]):
    """A `lopax.rules.form.Rule` as a learned optimizer; subclasses name the rule."""

    rule_class: ClassVar[type[form.Rule]]
    config: Any

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        rule = cls.rule_class
        cls.name, cls.reference = rule.name, rule.reference
        cls.roles = rule.roles
        cls.takes_validation = rule.takes_validation
        cls.sees_tensors = rule.sees_tensors

    def __init__(self, config: Any = None):
        self.rule = self.rule_class(config)
        self.config = self.rule.config
        self.needs_loss = self.rule.needs_loss  # pyright: ignore[reportAttributeAccessIssue]
        self.needs_horizon = self.rule.needs_horizon  # pyright: ignore[reportAttributeAccessIssue]
        self.grad_clip = self.rule.grad_clip  # pyright: ignore[reportAttributeAccessIssue]
        self.unrolled: bool | None = getattr(self.config, "unrolled", None)
        self.xp = cast(Ops, JaxOps(self.unrolled))
        if isinstance(self.rule, ElementRule):
            for role in self.roles or ("",):
                net = self.rule.element_net(role)
                if net is not None:
                    elements.check_backend(self.config, net)

    @property
    def param_like(self) -> tuple[str, ...]:  # type: ignore[override]
        # Whatever the role: one that has none of the field's elements excludes it.
        found = [
            [
                field
                for field, keeps in self.rule.keeps(role)._asdict().items()
                if isinstance(keeps, Keeps) and keeps == form.EACH
            ]
            for role in self.roles or ("",)
        ]
        return tuple(f for f in found[0] if all(f in fields for fields in found))

    def place(self, leaf: Leaf) -> Place:
        """The tensor as its rule knows it."""
        shape = self._shape(leaf.shape) or (1,)
        role = self.role(leaf) if self.roles else ""
        return Place(shape, not leaf.shape, role, tuple(range(len(shape))))

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.rule.flattens and len(shape) > 3:
            return math.prod(shape[:-1]), shape[-1]
        return shape

    def _seen(self, x: Array) -> Array:
        """A tensor's array in the shape its rule knows."""
        shape = self._shape(x.shape)
        return x if shape == x.shape else x.reshape(shape)

    @lifting.own_arithmetic
    def init_theta(self, key: Key) -> Theta:
        return self.rule.init_theta(JaxDraw(), key)

    def init_shared(self, theta: Theta, num_steps: Count, num_tensors: int) -> Shared:
        starts = jnp.zeros((num_tensors, self.rule.num_starts), jnp.float32)
        return self._begin(theta, num_steps, starts)

    def see_start(
        self,
        theta: Theta,
        shared: Shared,
        num_steps: Count,
        places: Sequence[Leaf],
        tensors: Sequence[Array],
    ) -> Shared:
        if not (self.rule.num_starts and tensors):
            return shared
        starts = [
            form.complete(self.rule.measure(self.xp, self.place(leaf), self._seen(x)))
            for leaf, x in zip(places, tensors, strict=True)
        ]
        return self._begin(theta, num_steps, jnp.stack(starts))

    def _begin(
        self, theta: Theta, num_steps: Count, starts: Float[Array, "N S"]
    ) -> Shared:
        common = self.rule.init_shared(self.xp, theta, num_steps, starts)
        return Shared(common, self.rule.init_rows(self.xp, theta, common, starts))

    def init_tensor(self, theta: Theta, param: Array) -> Any:
        raise NotImplementedError("the state may depend on the role: see init_leaf")

    def init_leaf(self, theta: Theta, leaf: Leaf, param: Array) -> Any:
        del param
        place, starts = self.place(leaf), self.rule.starts(self.xp, theta)
        return first_state(self.rule.keeps(place.role), place, starts)

    def gradient_bound(self, shared: Shared) -> Any:
        found = self.rule.gradient_bound(self.xp, shared.common)
        return self.grad_clip if found is None else jnp.minimum(found, self.grad_clip)

    def summarise(
        self, theta: Theta, leaf: Leaf, grad: Array, state: Any, param: Array
    ) -> Any:
        if not self.rule.num_summaries:
            return None
        place, grad, param = self.place(leaf), self._seen(grad), self._seen(param)
        return form.complete(
            self.rule.summarise(self.xp, theta, place, grad, state, param)
        )

    def advance(
        self, theta: Theta, shared: Shared, run: Run, summaries: Any
    ) -> tuple[Shared, Told, Scalar]:
        if summaries is None:
            summaries = jnp.zeros((0, 0), jnp.float32)
        rows = Rows(summaries.shape[0], summaries, shared.rows)
        found = self.rule.advance(self.xp, theta, shared.common, run, rows)
        carried = shared.rows if found.carried is None else found.carried
        scale = jnp.asarray(found.scale, jnp.float32)
        told = Told(dict(found.told), dict(found.common), scale, run.updates)
        return Shared(found.shared, carried), told, scale

    def group_key(self, leaf: Leaf) -> Hashable:
        rule = self.rule
        if not isinstance(rule, ElementRule) or rule.num_summaries:
            return None  # its steps may go by what single tensors were told
        # A call to the kernel costs little however many there are.
        return None if self.by_kernel(leaf) else self.place(leaf)

    def step(
        self,
        theta: Theta,
        context: Told,
        index: Leaf,
        grad: Array,
        state: Any,
        param: Array,
    ) -> tuple[Array, Any]:
        at, seen = self._context(context, index), (self._seen(grad), self._seen(param))
        found = self._numbers(theta, at)
        if found is None:
            updates = context.updates.astype(jnp.float32)
            counted = dict.fromkeys(
                form.counted(self.rule.keeps(at.place.role)), updates
            )
            held, rule = state._replace(**counted), self.rule
            delta, new = form.complete(
                rule.step(self.xp, theta, at, seen[0], held, seen[1])
            )
            new = new._replace(**dict.fromkeys(counted, ()))
        else:
            net, numbers = found
            delta, new = form.complete(
                element_plain.step(
                    self.xp, at.place, net, numbers, seen[0], state, seen[1]
                )
            )
            delta = self._finished(theta, at, delta, new, seen[1])
        return delta.reshape(grad.shape), new

    def by_kernel(self, leaf: Leaf) -> bool:
        place = self.place(leaf)
        net = self._net(place.role)
        if net is None:
            return False
        return elements.why_plain(self.config, net, place) is None

    def long_step(self, leaf: Leaf) -> bool:
        return self._net(self.place(leaf).role) is not None

    def step_or_keep(
        self,
        theta: Theta,
        context: Told,
        index: Leaf,
        grad: Array,
        state: Any,
        param: Array,
        finite: Flag,
        bound: Any,
    ) -> tuple[Array, Any, Array | None]:
        at = self._context(context, index) if self.by_kernel(index) else None
        found = None if at is None else self._numbers(theta, at)
        if at is None or found is None:
            return super().step_or_keep(
                theta, context, index, grad, state, param, finite, bound
            )
        (net, numbers), flat = found, self._seen(param)
        delta, new, seen = elements.step_or_keep(
            *(net, at.place, numbers, self._seen(grad), state, flat),
            *(finite, bound, self.unrolled),
        )
        if not cast(ElementRule, self.rule).only_elements:
            delta = self._finished(theta, at, delta, new, flat)
            delta, seen = jnp.where(finite, delta, 0.0), None
        return delta.reshape(grad.shape), new, seen

    def _context(self, context: Told, leaf: Leaf) -> StepContext:
        told = {name: rows[int(leaf)] for name, rows in context.told.items()}
        place = self.place(leaf)
        return StepContext(place, context.scale, context.updates, told, context.common)

    def _net(self, role: str) -> ElementNet | None:
        rule = self.rule
        return rule.element_net(role) if isinstance(rule, ElementRule) else None

    def _numbers(
        self, theta: Theta, at: StepContext
    ) -> tuple[ElementNet, Numbers] | None:
        """A tensor's element network and its numbers, if it has one."""
        rule, net = self.rule, self._net(at.place.role)
        if net is None or not isinstance(rule, ElementRule):
            return None
        numbers = rule.numbers(self.xp, theta, at.scale, at.told, at.common)
        factor = rule.factor(at.place)
        if factor != 1.0:
            numbers = numbers._replace(scale=numbers.scale * factor)
        return net, numbers

    def _finished(
        self, theta: Theta, at: StepContext, delta: Array, state: Any, param: Array
    ) -> Array:
        rule = cast(ElementRule, self.rule)
        return form.complete(rule.finish(self.xp, theta, at, delta, state, param))

    @lifting.own_arithmetic
    def observe_validation(self, state: OptState, loss: Any) -> OptState:
        if not self.takes_validation:
            return state
        loss = jnp.asarray(loss, jnp.float32)
        shared: Shared = state.shared
        seen = self.rule.observe_validation(self.xp, shared.common, loss)
        kept = trees.select(jnp.isfinite(loss), seen, shared.common)
        return state._replace(shared=shared._replace(common=kept))

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return self.rule.translate_published(arrays)
