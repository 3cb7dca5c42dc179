"""Runs a rule of `lopax.rules` in JAX: the driver between it and `TensorRule`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core import tree as trees
from lopax._core.lifting import Leaf
from lopax._core.optimizer import OptState
from lopax._core.run import Run
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.architectures.jax_ops import JaxDraw, JaxOps
from lopax.rules import form
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
        cls.needs_loss, cls.needs_horizon = rule.needs_loss, rule.needs_horizon
        cls.roles = rule.roles
        cls.takes_validation = rule.takes_validation

    def __init__(self, config: Any = None):
        self.rule = self.rule_class(config)
        self.config = self.rule.config
        self.grad_clip = self.rule.grad_clip  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def param_like(self) -> tuple[str, ...]:  # type: ignore[override]
        # Whatever the role: one that has none of the field's elements excludes it.
        each = [
            {
                field
                for field, keeps in self.rule.keeps(role)._asdict().items()
                if keeps is not None
                and keeps.each
                and not (keeps.copies or keeps.units)
            }
            for role in self.roles or ("",)
        ]
        first = self.rule.keeps((self.roles or ("",))[0])
        return tuple(f for f in first._fields if all(f in found for found in each))

    def place(self, leaf: Leaf) -> Place:
        """The tensor as its rule knows it."""
        shape = leaf.shape or (1,)
        role = self.role(leaf) if self.roles else ""
        return Place(shape, not leaf.shape, role, tuple(range(len(shape))))

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
            form.complete(self.rule.measure(XP, self.place(leaf), x))
            for leaf, x in zip(places, tensors, strict=True)
        ]
        return self._begin(theta, num_steps, jnp.stack(starts))

    def _begin(
        self, theta: Theta, num_steps: Count, starts: Float[Array, "N S"]
    ) -> Shared:
        common = self.rule.init_shared(XP, theta, num_steps, starts)
        return Shared(common, self.rule.init_rows(XP, theta, common, starts))

    def init_tensor(self, theta: Theta, param: Array) -> Any:
        raise NotImplementedError("the state may depend on the role: see init_leaf")

    def init_leaf(self, theta: Theta, leaf: Leaf, param: Array) -> Any:
        keeps = self.rule.keeps(self.role(leaf) if self.roles else "")
        starts = self.rule.starts(XP, theta)
        fields = keeps._asdict().items()
        found = {k: _first(v, param.shape, starts.get(k)) for k, v in fields}
        return type(keeps)(**found)

    def gradient_bound(self, shared: Shared) -> Any:
        found = self.rule.gradient_bound(XP, shared.common)
        return self.grad_clip if found is None else jnp.minimum(found, self.grad_clip)

    def summarise(
        self, theta: Theta, leaf: Leaf, grad: Array, state: Any, param: Array
    ) -> Any:
        if not self.rule.num_summaries:
            return None
        steps = self.rule.summarise(XP, theta, self.place(leaf), grad, state, param)
        return form.complete(steps)

    def advance(
        self, theta: Theta, shared: Shared, run: Run, summaries: Any
    ) -> tuple[Shared, Told, Scalar]:
        if summaries is None:
            summaries = jnp.zeros((0, 0), jnp.float32)
        rows = Rows(summaries.shape[0], summaries, shared.rows)
        found = self.rule.advance(XP, theta, shared.common, run, rows)
        carried = shared.rows if found.carried is None else found.carried
        scale = jnp.asarray(found.scale, jnp.float32)
        told = Told(dict(found.told), dict(found.common), scale, run.updates)
        return Shared(found.shared, carried), told, scale

    def step(
        self,
        theta: Theta,
        context: Told,
        index: Leaf,
        grad: Array,
        state: Any,
        param: Array,
    ) -> tuple[Array, Any]:
        told = {name: rows[int(index)] for name, rows in context.told.items()}
        at = StepContext(
            self.place(index), context.scale, context.updates, told, context.common
        )
        updates = context.updates.astype(jnp.float32)
        keeps = self.rule.keeps(at.place.role)
        counted = dict.fromkeys(form.counted(keeps), updates)
        delta, new = form.complete(
            self.rule.step(XP, theta, at, grad, state._replace(**counted), param)
        )
        return delta, new._replace(**dict.fromkeys(counted, ()))

    def observe_validation(self, state: OptState, loss: Any) -> OptState:
        if not self.takes_validation:
            return state
        loss = jnp.asarray(loss, jnp.float32)
        shared: Shared = state.shared
        seen = self.rule.observe_validation(XP, shared.common, loss)
        kept = trees.select(jnp.isfinite(loss), seen, shared.common)
        return state._replace(shared=shared._replace(common=kept))

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        return self.rule.translate_published(arrays)


def _first(keeps: Keeps | None, shape: tuple[int, ...], start: Any) -> Any:
    """The first value of one array of a tensor's state; () for what is not kept."""
    if keeps is None or keeps.counts:
        return ()
    lead = (keeps.copies,) if keeps.copies else ()
    tail = (keeps.units,) if keeps.units else ()
    zeros = jnp.zeros((*lead, *(shape if keeps.each else ()), *tail), jnp.float32)
    if start is None:
        return zeros
    if keeps.copies and keeps.each:
        start = start.reshape((-1, *(1,) * (zeros.ndim - 1)))
    return zeros + start
