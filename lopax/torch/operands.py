"""What of a user's parameters one step works on: plans, states, operands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lopax._core import routing
from lopax._core.routing import Route, Seen
from lopax.torch import restoring, sharding, views
from lopax.torch import state as states
from lopax.torch.geometry import View, seen
from lopax.torch.groups import (
    called,
    named,
)
from lopax.torch.memory import check_operands
from lopax.torch.plain import Entry


class Operands(restoring.Resumable):
    """The part of a learned optimizer that looks at single parameters."""

    _routes: tuple[Route, ...]
    _kinds: Mapping[Tensor, str]
    _plans: dict[Any, states.Plan]

    def _role(self, param: Tensor, name: str | None, group: dict[str, Any]) -> str:
        """What the group asks for, else what the rule makes of name and shape."""
        asked = group.get("role") if self._rule.roles else None
        kind, shape = self._kinds.get(param), self._seen(param, name, group).shape
        return asked or self._rule.role(name, shape, kind, self._routes)

    def _seen(self, param: Tensor, name: str | None, group: dict[str, Any]) -> Seen:
        """What the routes make of a parameter's axes."""
        out_first = group["layout"] == "out_in"
        found = routing.seen(name, tuple(param.shape), self._routes, out_first)
        views.check(param, name, found)
        return found

    def roles(self) -> dict[str, str]:
        """The role of every parameter by name (its place if it has none), "" under a
        rule without roles."""
        every = [(p, n, g) for g in self.param_groups for p, n in named(g)]
        return {n or str(i): self._role(p, n, g) for i, (p, n, g) in enumerate(every)}

    def _view(self, group: dict[str, Any]) -> View:
        """From the shape of a group's parameter to the one the rule sees."""
        layout, flatten = group["layout"], self._rule.flattens
        return lambda shape: seen(shape, layout, flatten)

    def _plan(
        self, param: Tensor, name: str | None, group: dict[str, Any], *place: int
    ) -> states.Plan:
        whole, part = param.shape, sharding.local(param).shape
        key = (place, name, whole, part, group["layout"], group.get("role"))
        if key not in self._plans:
            sharding.refuse_flattened(param)
            see, found = self._view(group), self._seen(param, name, group)
            shape = see(found.shape)
            self._plans[key] = states.Plan.of(
                self._rule,
                shape,
                see(tuple(part)) if found.unchanged else shape,
                group["layout"],
                self._role(param, name, group),
                called(name, *place),
                found,
            )
        return self._plans[key]

    def _own(self, param: Tensor, plan: states.Plan) -> tuple[states.State, bool]:
        """What is local of a parameter's own state (made if missing), and whether
        kernels may have its addresses."""
        state, device = self.state[param], sharding.local(param).device
        if state and state.get("shared_iteration") is not self._shared.get("iteration"):
            like = states.init_shared(self._rule.to(device), 1, device)
            self._shared = restoring.adopt(self.state, self._shared, like)
            self._compare_lengths()
        if not state:
            if not self._shared:
                self._begin(device)
            state.update(states.init_param(param, plan, self._shared))
        return states.check(state, plan, device)

    def _each(
        self,
        param: Tensor,
        grad: Tensor,
        plan: states.Plan,
        group: dict[str, Any],
        index: int,
    ) -> list[Entry]:
        """A parameter's entry, or those of the tensors that are stacked in it."""
        whole = self._entry(param, grad, plan, group, index)
        if plan.seen.unchanged:
            return [whole]
        parts = zip(
            views.opened(whole.param, plan.seen),
            views.opened(whole.grad, plan.seen),
            views.parts(whole.state, plan.seen),
            strict=True,
        )
        return [whole._replace(param=p, grad=g, state=s) for p, g, s in parts]

    def _entry(
        self,
        param: Tensor,
        grad: Tensor,
        plan: states.Plan,
        group: dict[str, Any],
        index: int,
    ) -> Entry:
        where = sharding.local(param)
        grad = sharding.local(sharding.match_gradient(param, grad))
        addressable = check_operands(where, grad, plan.what)
        arrays, known = self._own(param, plan)
        same_axes = len(plan.shape) >= param.ndim
        return Entry(
            param=where,
            grad=grad,
            state=arrays,
            shape=plan.shape,
            part=plan.part,
            axes=plan.axes,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            group=index,
            sharding=sharding.sharding_of(param, same_axes=same_axes),
            matrix=plan.matrix,
            role=plan.role,
            addressable=addressable and known,
        )

    def _begin(self, device: torch.device) -> None:
        """Makes what tensors share, before the first step."""
        rule = self._rule.to(device)
        self._shared = states.init_shared(rule, self._num_steps, device)
