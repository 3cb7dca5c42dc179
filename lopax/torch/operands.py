"""What of a user's parameters one step works on: plans, states, operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lopax._core import routing
from lopax._core.routing import Route, Seen
from lopax.torch import backends, restoring, sharding, views
from lopax.torch import state as states
from lopax.torch.geometry import View, place_of, seen
from lopax.torch.groups import Group, called, check_supported, named
from lopax.torch.losses import meeting_place
from lopax.torch.memory import check_operands
from lopax.torch.narrow_backend import NarrowBackend
from lopax.torch.plain import Entry, PlainBackend, measurements
from lopax.torch.rule import Rule


class Operands(restoring.Resumable):
    """The part of a learned optimizer that looks at single parameters."""

    _routes: tuple[Route, ...]
    _kinds: Mapping[Tensor, str]
    _plans: dict[Any, states.Plan]
    _starts: dict[Tensor, Tensor]
    _requested: str
    _momentum_dtype: str
    _process_group: Any
    _per_device: dict[torch.device, tuple[Rule, backends.Backend]]

    def _role(self, param: Tensor, name: str | None, group: Group) -> str:
        """What the group asks for, else what the rule makes of name and shape."""
        asked = group.get("role") if self._rule.roles else None
        kind, shape = self._kinds.get(param), self._seen(param, name, group).shape
        return asked or self._rule.role(name, shape, kind, self._routes)

    def _seen(self, param: Tensor, name: str | None, group: Group) -> Seen:
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

    def _view(self, group: Group) -> View:
        """From the shape of a group's parameter to the one the rule sees."""
        layout, flatten = group["layout"], self._rule.flattens
        return lambda shape: seen(shape, layout, flatten)

    def _plan(
        self, param: Tensor, name: str | None, group: Group, *place: int
    ) -> states.Plan:
        whole, part = param.shape, sharding.local(param).shape
        key = (place, name, whole, part, group["layout"], group.get("role"))
        if key not in self._plans:
            sharding.refuse_flattened(param)
            see, found = self._view(group), self._seen(param, name, group)
            shape, role = see(found.shape), self._role(param, name, group)
            place_seen = place_of(shape, group["layout"], role, found.shape == ())
            same_axes = place_seen.rank >= param.ndim
            cut = sharding.sharding_of(param, same_axes=same_axes)
            self._plans[key] = states.Plan.of(
                self._rule,
                place_seen,
                see(tuple(part)) if found.unchanged else shape,
                called(name, *place),
                found,
                self._momentum_dtype,
                0 if cut is None else cut.axis,
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
            if self._rule.num_starts:
                self._start_rows(param, plan, state)
        return states.check(state, plan, device)

    def _entries(self) -> list[Entry]:
        """The parameters with a gradient, and their states (made if missing)."""
        entries = []
        for index, group in enumerate(self.param_groups):
            self._check_settings(group, running=True)
            for place, (param, name) in enumerate(named(group)):
                grad = param.grad
                if grad is None:
                    continue
                if 0 in param.shape:  # nothing to step, but a state like any other's
                    self._own(param, self._plan(param, name, group, index, place))
                    continue
                check_supported(param, grad)
                plan = self._plan(param, name, group, index, place)
                entries += self._each(param, grad, plan, group, index)
        self._starts.clear()  # of parameters without a gradient
        return entries

    def _each(
        self,
        param: Tensor,
        grad: Tensor,
        plan: states.Plan,
        group: Group,
        index: int,
    ) -> list[Entry]:
        """A parameter's entry, or those of the tensors that are stacked in it."""
        grad = sharding.local(sharding.match_gradient(param, grad))
        addressable = check_operands(sharding.local(param), grad, plan.what)
        arrays, known = self._own(param, plan)
        whole = _entry(param, plan)._replace(
            grad=grad,
            state=arrays,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            group=index,
            addressable=addressable and known,
        )
        return _opened(whole, plan)

    def _on(self, device: torch.device, plain: bool) -> tuple[Rule, backends.Backend]:
        """The rule and its backend on a device; shards, and what kernels cannot be
        given, use the plain one."""
        if device not in self._per_device:
            rule = self._rule.to(device)
            self._per_device[device] = (
                rule,
                self._backend(lambda: backends.choose(self._requested, rule, device)),
            )
        rule, backend = self._per_device[device]
        return rule, self._backend(PlainBackend) if plain else backend

    def _backend(self, make: Callable[[], backends.Backend]) -> backends.Backend:
        return make() if self._momentum_dtype == "float32" else NarrowBackend(make)

    def _home(self, loss: Any) -> torch.device:
        """Where what is shared belongs, for a process without a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                return sharding.local(param).device
        return meeting_place(self._process_group, loss)

    def _begin(self, device: torch.device) -> None:
        """Makes what tensors share, before the first step."""
        rule = self._rule.to(device)
        starts = None
        if rule.num_starts:
            plans = []
            for index, group in enumerate(self.param_groups):
                for place, (param, name) in enumerate(named(group)):
                    if measurable(param):
                        plan = self._plan(param, name, group, index, place)
                        plans.append((param, plan))
            self._starts = self._measure(plans)
            if self._starts:
                rows = [x.to(device) for x in self._starts.values()]
                starts = torch.cat(rows)
        self._shared = states.init_shared(rule, self._num_steps, device, starts)

    def _measure(
        self, plans: Sequence[tuple[Tensor, states.Plan]]
    ) -> dict[Tensor, Tensor]:
        """What the rule says of parameters' first values: of each the rows [n, S] of
        the tensors it is seen as."""
        found: dict[Tensor, Tensor] = {}
        for device in dict.fromkeys(sharding.local(p).device for p, _ in plans):
            here = [(p, q) for p, q in plans if sharding.local(p).device == device]
            parts = [
                _opened(_entry(param.detach(), plan), plan) for param, plan in here
            ]
            every = [entry for entries in parts for entry in entries]
            rows = iter(measurements(self._rule.to(device), every))
            for (param, _), entries in zip(here, parts, strict=True):
                found[param] = torch.stack([next(rows) for _ in entries])
        return found

    def _start_rows(
        self, param: Tensor, plan: states.Plan, state: states.State
    ) -> None:
        """The first values of what the rule carries of a parameter, from its own."""
        starts = self._starts.pop(param, None)
        if starts is None:
            starts = self._measure([(param, plan)])[param]
        rule = self._rule.to(starts.device)
        shared = {k: v.to(starts.device) for k, v in self._shared.items()}
        for name, rows in rule.init_rows(shared, starts).items():
            first = rows if plan.seen.copies is not None else rows[0]
            sharding.local(state[name]).copy_(first)


def measurable(param: Tensor) -> bool:
    """Whether a parameter has values to look at."""
    return (
        not torch.nn.parameter.is_lazy(param)
        and param.is_floating_point()
        and param.requires_grad
        and 0 not in param.shape
        and param.device.type != "meta"
    )


def _entry(param: Tensor, plan: states.Plan) -> Entry:
    """A parameter that has no gradient and no state yet."""
    where = sharding.local(param)
    same_axes = plan.place.rank >= param.ndim
    found = sharding.sharding_of(param, same_axes=same_axes)
    return Entry(
        param=where,
        grad=where,
        state={},
        place=plan.place if found is None else plan.place._replace(cut=found.axis),
        part=plan.part,
        sharding=found,
    )


def _opened(whole: Entry, plan: states.Plan) -> list[Entry]:
    """The tensors that are stacked in one."""
    if plan.seen.unchanged:
        return [whole]
    parts = zip(
        views.opened(whole.param, plan.seen),
        views.opened(whole.grad, plan.seen),
        views.parts(whole.state, plan.seen),
        strict=True,
    )
    return [whole._replace(param=p, grad=g, state=s) for p, g, s in parts]
