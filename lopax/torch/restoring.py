"""State that comes from outside: from a state dict, or set by another program.

Everything is validated before anything is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lopax._core.errors import StructureMismatch
from lopax._core.numbers import whole_steps
from lopax._core.warned import HorizonWarning, say
from lopax.torch import narrow_saved, sharding
from lopax.torch import state as states
from lopax.torch.groups import Group, named
from lopax.torch.memory import describe, described
from lopax.torch.rule import Rule
from lopax.torch.state import SHARED, Plan, State
from lopax.torch.state_dicts import check_kind, in_order

_HINT = (
    "Was it saved by another rule, for another model, in another precision, or with "
    "another layout?"
)


def restore(saved: Any, param: Tensor, plan: Plan, like: State) -> State:
    """Copies of saved tensors on the parameter's device, in the dtype they have, but
    for momenta that were kept in another format than the plan says.

    (`torch.optim.Optimizer` would cast them to the parameter's dtype, and would share
    memory with the state dict where no cast is needed.)

    **Arguments:**

    - `like`: what tensors share in this rule, for its shapes and dtypes.

    Raises `StructureMismatch` if names, shapes or dtypes are not those of the rule.
    """
    want = {k: describe(v) for k, v in states.refer(like).items()}
    for name, spec in plan.specs.items():
        placements = sharding.placements_for(param, spec)
        text = described(spec.dtype, spec.shape(plan.place.shape))
        want[name] = sharding.spread(text, placements)
    found = saved if isinstance(saved, Mapping) else {"": saved}
    found = narrow_saved.converted(found, param, plan)
    have = {k: describe(v) for k, v in found.items()}
    if want != have:
        raise StructureMismatch.between(
            f"the saved optimizer state of {plan.what}", want, have, _HINT
        )
    return {k: _copy(v, param.device) for k, v in found.items()}


def _copy(x: Tensor, device: torch.device) -> Tensor:
    copied = x.detach().to(device, copy=True)
    if sharding.is_dtensor(x):
        return copied
    return copied.resolve_neg().contiguous()


def common(found: Sequence[State]) -> State:
    """What several parameters' states say is shared: a part of the first.

    Raises `StructureMismatch` if they do not agree on where the run is.
    """
    first = {k: v for k, v in found[0].items() if k.startswith(SHARED)}
    for name in ("num_steps", "iteration"):
        values = {int(state[f"{SHARED}{name}"]) for state in found}
        if len(values) > 1:
            raise StructureMismatch(
                f"the states of the parameters are of different runs: {name} is "
                + " and ".join(map(str, sorted(values)))
            )
    return {k.removeprefix(SHARED): v for k, v in first.items()}


def adopt(
    known: Mapping[Any, State],
    shared: State,
    like: State,
) -> State:
    """What is shared, once a program has set states itself: `optimizer.state[p] = ...`.

    As long as one parameter refers to what was shared, that goes on; else what the
    states carry counts. All states refer to it afterwards.

    Raises `StructureMismatch` if there is nothing of the kind, and changes nothing.
    """
    foreign = [s for s in _states(known) if not _refers(s, shared)]
    if not shared or len(foreign) == len([*_states(known)]):
        want = {k: describe(v) for k, v in states.refer(like).items()}
        for state in foreign:
            have = {k: describe(v) for k, v in state.items() if k.startswith(SHARED)}
            if want != have:
                raise StructureMismatch.between(
                    "an optimizer state that was set from outside", want, have, _HINT
                )
        device = next(iter(like.values())).device
        shared = {k: _copy(v, device) for k, v in common(foreign).items()}
    for state in foreign:
        state.update(states.refer(shared))
    return shared


def _states(known: Mapping[Any, State]) -> Iterator[State]:
    return (s for p, s in known.items() if isinstance(p, Tensor) and s)


def _refers(state: State, shared: State) -> bool:
    return bool(shared) and state.get(f"{SHARED}iteration") is shared["iteration"]


class Resumable(torch.optim.Optimizer):
    """The part of a learned optimizer that loads a state and changes its length."""

    _rule: Rule
    _num_steps: int
    _on_resume: str | None
    _shared: State
    _scale: Tensor | None

    def _plan(self, param: Tensor, name: str | None, group: Group, *place: int) -> Plan:
        raise NotImplementedError

    def _check_settings(
        self, merged: Mapping[str, Any], *, running: bool = False
    ) -> None:
        raise NotImplementedError

    def set_num_steps(self, num_steps: int) -> None:
        """The length of the whole run, for programs that learn it late or train on.

        In the middle of a run, or after loading a state: the fraction of training done
        becomes steps made / `num_steps`, and the averages of the loss get the time
        constants of the new length and keep their values (as `lopax.extend` does).
        """
        self._num_steps = whole_steps(num_steps)
        if self._shared:
            old = int(self._shared["num_steps"])
            kept = {k: v for k, v in self._shared.items() if k not in states.COUNTERS}
            rule = self._rule.to(self._shared["num_steps"].device)
            changed = rule.retime(kept, old, self._num_steps)
            for name, value in changed.items():
                self._shared[name].copy_(value)
            self._shared["num_steps"].fill_(self._num_steps)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state dict; it stays usable, and state keeps its float32.
        Momenta are brought to this optimizer's `momentum_dtype`, whatever it was.

        Everything is checked first: a dict that is refused changes nothing. Parameters
        are matched by name where the optimizer and the dict have names. If the dict is
        of a run of another length, `on_resume` says which one counts, and without it a
        warning does.

        Raises `StructureMismatch` if it does not fit, and what
        `torch.optim.Optimizer.load_state_dict` raises.
        """
        check_kind(state_dict)
        loaded: list[tuple[dict[Tensor, State], State]] = []

        def check(_: Any, given: dict[str, Any]) -> dict[str, Any] | None:
            check_kind(given)
            groups = in_order(given["param_groups"], self.param_groups)
            if groups is None:
                return None  # torch refuses it
            pairs = zip(self.param_groups, groups, strict=True)
            groups = [
                {k: g[k] for k in self.defaults if k in g and k not in saved} | saved
                for g, saved in pairs
            ]
            loaded[:] = [self._restored(groups, given["state"])]
            ids = {i for g in groups for i in g["params"]}
            rest = {k: v for k, v in given["state"].items() if k not in ids}
            return {**given, "state": rest, "param_groups": groups}

        def commit(_: Any) -> None:
            found, shared = loaded[0]
            self.state.update(found)
            self._shared, self._scale = shared, None
            self._compare_lengths()

        # Last of the pre-hooks and first of the post-hooks.
        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(commit, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restored(
        self, groups: list[dict[str, Any]], saved: Mapping[Any, Any]
    ) -> tuple[dict[Tensor, State], State]:
        """Each parameter's state, and what they share; changes nothing."""
        like = states.init_shared(self._rule, 1, torch.device("cpu"))
        found: dict[Tensor, State] = {}
        for index, (group, new) in enumerate(
            zip(self.param_groups, groups, strict=True)
        ):
            self._check_settings(new, running=True)
            ids = enumerate(zip(new["params"], named(group), strict=True))
            for place, (i, (param, name)) in ids:
                state = saved.get(i)
                if state is not None and not (isinstance(state, dict) and not state):
                    plan = self._plan(param, name, new, index, place)
                    found[param] = restore(state, param, plan, like)
        shared = common([*found.values()]) if found else {}
        for state in found.values():
            state.update(states.refer(shared))
        return found, shared

    def _compare_lengths(self) -> None:
        """After loading: another length than this optimizer was made for."""
        mine, shared = self._num_steps, self._shared
        if not shared or not self._rule.needs_horizon:
            return
        saved, done = int(shared["num_steps"]), int(shared["iteration"])
        if saved == mine:
            return
        if self._on_resume == "saved":
            return
        if self._on_resume == "new":
            self.set_num_steps(mine)
            return
        say(
            f"the loaded state is of a run of {saved} steps, of which {done} are done, "
            f"and this optimizer was made for {mine}: the saved {saved} count, and the "
            f"schedule ends there. optimizer.set_num_steps({mine}) after loading, or "
            'on_resume="new" where the optimizer is made, goes on with the new length; '
            'on_resume="saved" silences this.',
            HorizonWarning,
        )
