"""State dicts before anything is made of them: whose they are, and in which order.

Parameters are matched by name where both sides have names, else, as torch does, by
their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lopax._core.errors import StructureMismatch
from lopax.torch.groups import Group

_OWNERS = {
    "amsgrad": "torch.optim.Adam or AdamW",
    "nesterov": "torch.optim.SGD",
    "alpha": "torch.optim.RMSprop",
    "lr_decay": "torch.optim.Adagrad",
}


def check_kind(given: Mapping[str, Any]) -> None:
    """Raises `StructureMismatch` for what is no state dict of a lopax optimizer."""
    if not isinstance(given, Mapping):
        raise StructureMismatch(
            f"a state dict of an optimizer is a dict, not a {type(given).__name__}"
        )
    if not {"state", "param_groups"} <= set(given):
        raise StructureMismatch(
            "a state dict of an optimizer has the entries 'state' and 'param_groups'; "
            f"this one has {', '.join(map(repr, [*given][:5])) or 'none'}"
        )
    state, groups = given["state"], given["param_groups"]
    fits = isinstance(state, Mapping) and isinstance(groups, (list, tuple))
    if not fits or not all(isinstance(g, Mapping) and "params" in g for g in groups):
        raise StructureMismatch(
            "the entries of a state dict are a dict 'state' of the parameters' numbers "
            "and a list 'param_groups' of dicts with their 'params'; this one has "
            f"'state' of type {type(state).__name__} and 'param_groups' of type "
            f"{type(groups).__name__}"
        )
    for group in groups:
        if "layout" not in group:
            settings = sorted(set(group) - {"params", "param_names"})
            owner = next((v for k, v in _OWNERS.items() if k in group), None)
            raise StructureMismatch(
                "the state dict is not of a lopax optimizer: its groups have "
                f"{', '.join(settings)}"
                + (f", as those of {owner} have" if owner else "")
                + ". A learned rule keeps other arrays, so it must begin with a new "
                "state: do not load this one."
            )


def in_order(saved: Sequence[Group], groups: Sequence[Group]) -> list[Group] | None:
    """The saved groups in the order of an optimizer's groups and parameters.

    None if their numbers or sizes differ, in whatever order.
    """
    names, known = [_names(g) for g in groups], [_names(g) for g in saved]
    every = [n for k in known if k for n in k]
    if not all(names) or not all(known) or len(set(every)) != len(every):
        return [*saved] if _sizes(saved) == _sizes(groups) else None
    sets = [set(k or ()) for k in known]
    wanted = [set(n or ()) for n in names]
    if len(sets) == len(wanted) and all(w in sets for w in wanted):
        saved = [saved[sets.index(w)] for w in wanted]
    if _sizes(saved) != _sizes(groups):
        return None
    ids = {
        n: i for g in saved for n, i in zip(_names(g) or (), g["params"], strict=True)
    }
    here = {n for w in wanted for n in w}
    rest = iter([i for n, i in ids.items() if n not in here])  # renamed, it seems
    ordered = []
    for group, old in zip(groups, saved, strict=True):
        params = [ids[n] if n in ids else next(rest) for n in _names(group) or ()]
        ordered.append(
            {**old, "params": params, "param_names": [*group["param_names"]]}
        )
    return ordered


def _sizes(groups: Sequence[Group]) -> list[int]:
    return [len(g["params"]) for g in groups]


def _names(group: Group) -> list[str] | None:
    """Without what wrappers put before and into names; [] for an empty group."""
    names = group.get("param_names")
    if names is None or len(names) != len(group["params"]):
        return None if group["params"] else []
    return [n.replace("_orig_mod.", "").removeprefix("module.") for n in names]
