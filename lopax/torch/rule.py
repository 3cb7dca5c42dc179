"""Runs a rule of `lopax.rules` in torch: the driver between it and the optimizer.

What a rule calls `lead` is the number of equal tensors here. The arrays of its state
have the names of their fields in an optimizer's state; those of what is shared and of
rows are joined by "_" where named tuples are nested. A rule never sees an optimizer or
a process group: where it needs a sum over a whole tensor it yields its own part and is
sent back the complete sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor

from lopax._core.routing import Route, role_of
from lopax._core.run import Run
from lopax.rules import element_plain, form, loss_history
from lopax.rules.element_net import ElementNet, Numbers
from lopax.rules.element_rule import ElementRule
from lopax.rules.form import Place, StepContext, Steps
from lopax.rules.ops import Ops
from lopax.torch import finite, structure
from lopax.torch.batch import Advance, Common, Rows, TensorBatch
from lopax.torch.geometry import Accumulator
from lopax.torch.ops import TorchOps


class Rule:
    """A `lopax.rules.form.Rule`, which has settings, and its meta-parameters on one
    device."""

    def __init__(self, rule: form.Rule, theta: dict[str, Tensor]):
        self.rule, self.config, self.theta = rule, rule.config, theta
        self.name, self.roles = rule.name, rule.roles
        self.needs_loss = rule.needs_loss
        self.needs_horizon, self.flattens = rule.needs_horizon, rule.flattens
        self.grad_clip, self.num_starts = rule.grad_clip, rule.num_starts
        self.elementwise = rule.elementwise
        self.summarises = bool(rule.num_summaries)
        self.sees_gradients = self.summarises and rule.summaries_need_gradients
        self.only_elements = isinstance(rule, ElementRule) and rule.only_elements
        self.tree = structure.nested(theta)
        self.device = next(iter(theta.values())).device
        self._constants: dict[Any, Any] = {}
        # What is shared and the rows, of one tensor: their structure, and first rows
        # where those do not go by the tensor.
        self._like_shared = self._shared_of(1, None)
        starts = self._zeros(1, self.num_starts)
        self._like_rows = self._rows_of(self._like_shared, starts)
        self._first_rows = structure.flat(self._like_rows)

    def to(self, device: Any) -> Self:
        """The same rule with its tensors on `device`."""
        moved = {k: v.to(device) for k, v in self.theta.items()}
        return type(self)(self.rule, moved)

    @property
    def carried(self) -> tuple[str, ...]:
        """The arrays of a tensor's state that `advance` steps, not `step`."""
        return tuple(self._first_rows)

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
        if not self.roles:
            return ""
        c = self.config
        return role_of(name, shape, (*routes, *c.routes), c.default_role, kind)

    def element_net(self, role: str) -> ElementNet | None:
        """The network of which the step of tensors with this role is made, for rules
        that have one; kernels may compute it."""
        rule = self.rule
        return rule.element_net(role) if isinstance(rule, ElementRule) else None

    def numbers(self, told: Mapping[str, Tensor], common: Common) -> Numbers:
        """What that network's step is, for tensors that were told this, each [B, ...]:
        arrays [R, ...] and a scale [R], R the number of tensors, or 1 for all."""
        rule = cast(ElementRule, self.rule)
        found = rule.numbers(self._ops(), self.tree, common.scale, told, common.told)
        network = {
            name: x if x.ndim > (2 if name[0] == "w" else 1) else x.unsqueeze(0)
            for name, x in found.network.items()
        }
        return Numbers(network, found.decays, found.scale.reshape(-1))

    def factor(self, place: Place) -> float:
        """What a tensor's step is multiplied by beside the scale of its `numbers`."""
        return cast(ElementRule, self.rule).factor(place)

    def accumulators(self, place: Place) -> dict[str, Accumulator]:
        """The arrays (float32) of one tensor's state."""
        found, starts = {}, self.rule.starts(self._ops(), self.tree)
        for name, keeps in structure.arrays(self.rule.keeps(place.role)).items():
            axes = keeps.axes(place)
            if axes is None:
                continue
            start = starts.get(name)
            if start is not None and keeps.copies and keeps.each:
                start = start.reshape(-1, *(1,) * (len(axes) + bool(keeps.units)))
            behind = (keeps.units,) if keeps.units else ()
            found[name] = Accumulator(keeps.copies, axes, start, behind=behind)
        for name, (first,) in self._first_rows.items():
            start = None if self.num_starts else first  # None: measured
            found[name] = Accumulator(0, (), start, behind=tuple(first.shape))
        return found

    def _ops(self, alive: Tensor | None = None) -> Ops:
        return cast(Ops, TorchOps(self.device, self._constants, alive))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def _count(self, n: int) -> Tensor:
        return torch.tensor(n, dtype=torch.int32, device=self.device)

    def _shared_of(self, num_steps: int, starts: Tensor | None) -> Any:
        starts = self._zeros(1, self.rule.num_starts) if starts is None else starts
        horizon = self._count(num_steps)
        return self.rule.init_shared(self._ops(), self.tree, horizon, starts)

    def _rows_of(self, shared: Any, starts: Tensor) -> Any:
        return self.rule.init_rows(self._ops(), self.tree, shared, starts)

    def init_shared(
        self, num_steps: int, starts: Tensor | None = None
    ) -> dict[str, Tensor]:
        """State common to all tensors, on the rule's device.

        **Arguments:**

        - `starts`: [N, S] what `measure` said of all tensors; None: not known.
        """
        shared = self._shared_of(num_steps, starts)
        return {k: v.clone() for k, v in structure.flat(shared).items()}

    def init_rows(
        self, shared: Mapping[str, Tensor], starts: Tensor
    ) -> dict[str, Tensor]:
        """The first values of the states named in `carried`, each [N, ...], for rules
        that measure tensors."""
        return structure.flat(self._rows_of(self._shared(shared), starts))

    def retime(
        self, shared: Mapping[str, Tensor], old: int, num_steps: int
    ) -> dict[str, Tensor]:
        """What is shared, for a run of `num_steps` that was begun as one of `old`."""
        counts = self._count(old), self._count(num_steps)
        own = self._shared(shared)
        return structure.flat(loss_history.retimed(self._ops(), own, *counts))

    def _shared(self, shared: Mapping[str, Tensor]) -> Any:
        """The rule's own form of what is shared."""
        return structure.filled(self._like_shared, shared)

    def measure(self, batch: TensorBatch) -> Steps:
        """[B, S] numbers about the first values of tensors, whose state and gradients
        are not there yet."""
        return self.rule.measure(self._ops(), batch.place, batch.params)

    def summarise(self, batch: TensorBatch, shared: Mapping[str, Tensor]) -> Steps:
        """[B, F] summaries of B tensors, for `advance`; nothing is changed.

        **Arguments:**

        - `batch`: with the states from before this step's gradients, which are there
            for rules that say `sees_gradients` only; it was told nothing.
        """
        xp, state = self._ops(), self._state(batch)
        grads = batch.grads
        if self.sees_gradients:
            grads = _bounded(grads, self.rule.gradient_bound(xp, self._shared(shared)))
        place, params = batch.place, batch.params
        return self.rule.summarise(xp, self.tree, place, grads, state, params)

    def advance(self, shared: dict[str, Tensor], run: Run, rows: Rows) -> Advance:
        """Advances what the tensors share, once a step.

        **Arguments:**

        - `run`: its loss is finite.
        - `rows`: what there is to know of the tensors that have a gradient.
        """
        xp, own = self._ops(), self._shared(shared)
        summaries = rows.summaries
        if summaries is None:
            summaries = self._zeros(rows.count, self.rule.num_summaries)
        empty = {
            k: self._zeros(rows.count, *first.shape)
            for k, (first,) in self._first_rows.items()
        }
        carried = structure.filled(self._like_rows, empty | rows.carried)
        seen = form.Rows(rows.count, summaries, carried)
        found = self.rule.advance(xp, self.tree, own, run, seen)
        told = {k: v.expand(rows.count, *v.shape[1:]) for k, v in found.told.items()}
        bound = self.rule.gradient_bound(xp, own)
        return Advance(
            shared=structure.flat(found.shared),
            common=Common(found.scale, run.updates, found.common, bound),
            carried={} if found.carried is None else structure.flat(found.carried),
            told=told,
        )

    def observe_validation(
        self, shared: dict[str, Tensor], loss: Tensor
    ) -> dict[str, Tensor]:
        """What is shared after a look at the (finite) loss [] on validation data."""
        own = self._shared(shared)
        return structure.flat(self.rule.observe_validation(self._ops(), own, loss))

    def step(self, batch: TensorBatch, common: Common, alive: Tensor) -> Steps:
        """What to add to the parameters, [B, *s]; updates `batch.state` in place.

        **Arguments:**

        - `alive`: [] 1.0, or 0.0 for a skipped step, in which the state must not
            change and the update must be zero. The gradient is finite in any case.
        """
        net = self.element_net(batch.place.role)
        if net is None:
            return (yield from self._own_step(batch, common, alive))
        xp, state, step = self._ops(alive), self._state(batch), batch.elements
        if step is None:
            place, numbers = batch.place, self.numbers(batch.told, common)
            scale, factor = numbers.scale * alive, self.factor(place)
            scale = scale if factor == 1.0 else scale * factor
            numbers = numbers._replace(scale=scale)
            tensor = batch.grads, state, batch.params
            step, _ = yield from element_plain.step(
                xp, place, net, numbers, *tensor, spare=True
            )
        if self.only_elements:
            return step
        rule = cast(ElementRule, self.rule)
        at = _context(batch, common._replace(scale=common.scale * alive))
        return (yield from rule.finish(xp, self.tree, at, step, state, batch.params))

    def _own_step(self, batch: TensorBatch, common: Common, alive: Tensor) -> Steps:
        at, grads = _context(batch, common), _bounded(batch.grads, common.bound)
        delta, new = yield from self.rule.step(
            self._ops(alive), self.tree, at, grads, self._state(batch), batch.params
        )
        # On a CPU nothing has to be waited for.
        known = finite.can_ask(delta)
        if known and delta.data_ptr() == batch.grads.data_ptr():
            delta = delta.clone()  # what is written to must not be the user's gradient
        kept = self.rule.keeps(batch.place.role)
        for name, keeps, value in structure.of_state(kept, new):
            old = batch.state.get(name)
            if old is None:
                continue
            if keeps.counts:
                old += alive
            elif value is not old:
                # Elements that would not be finite stay, as parameters do.
                old.copy_(torch.where((alive > 0.0) & value.isfinite(), value, old))
        if known and alive.item():
            return delta
        return torch.where(alive > 0.0, delta, 0.0)

    def _state(self, batch: TensorBatch) -> Any:
        """A batch's state as the rule's own."""
        return structure.gathered(self.rule.keeps(batch.place.role), batch.state)


def _context(batch: TensorBatch, common: Common) -> StepContext:
    told = batch.told, common.told
    return StepContext(batch.place, common.scale, common.updates, *told)


def _bounded(grads: Tensor, bound: Tensor | None) -> Tensor:
    if bound is None:
        return grads
    return torch.maximum(torch.minimum(grads, bound), -bound)
