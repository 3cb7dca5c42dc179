"""The `torch.optim.Optimizer` that runs a learned rule."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lopax._core.errors import ConfigError
from lopax.torch import backends, sharding
from lopax.torch import state as states
from lopax.torch import theta as thetas
from lopax.torch.errors import HorizonNotGiven, LossNotGiven, UnsupportedParameter
from lopax.torch.geometry import LAYOUTS, View, factored_axes, matrix_axes, seen
from lopax.torch.losses import ObservedLosses, agree, as_scalar
from lopax.torch.plain import Entry, PlainBackend
from lopax.torch.rows import gather, hand_out
from lopax.torch.rule import Rule, known_settings
from lopax.torch.state import SHARED

# For bookkeeping, of which nothing belongs in a compiled graph.
_outside_graphs: Any = torch.compiler.disable


class Info(NamedTuple):
    """What the optimizer is doing, as tensors on its device (reading one waits)."""

    step_scale: Tensor  # [] the rule's learning-rate-like scalar in the last step
    iteration: Tensor  # [] int32, steps so far, skipped ones included
    skipped: Tensor  # [] int32, steps skipped because something was not finite


class LearnedOptimizer(torch.optim.Optimizer):
    """A learned rule as a torch optimizer; use a subclass, or `optimizer(name, ...)`.

    **Arguments:**

    - `params`: parameters, named parameters, or parameter groups. A group may have its
        own `lr`, `weight_decay` and `layout`, and a `role` for rules that have roles.
    - `num_steps`: the number of `step()` calls of the whole run; may be left out for
        rules without a horizon.
    - `lr`: a factor on every update (schedulers may write it); 1.0 is what the rule
        was trained for.
    - `weight_decay`: decoupled; each step removes `lr * weight_decay` times the rule's
        own step scale of each parameter, so that values customary for AdamW fit.
    - `weights`: a weights file or a name from `lopax.list_weights()`; default: the
        bundled weights of this architecture. Or `theta`: a mapping of arrays.
    - `layout`: how weights of rank >= 2 are stored: "out_in" (torch.nn) or "in_out".
        Decides between axes of one size only; see `lopax.torch.geometry`.
    - `backend`: "plain" (torch operations), "fused" (compiled kernels: CPU with a C
        compiler, CUDA with Triton), or "auto" (fused where it can be had).
    - `process_group`: over which the loss is averaged; None: the default group, if
        torch.distributed is initialised; False: no communication.
    - `config`: settings of the architecture, over those saved with the weights.

    Raises `ConfigError`, `UnknownName`, `HorizonNotGiven`, `StructureMismatch`,
    `BackendUnavailable`; `step` raises `LossNotGiven` and `UnsupportedParameter`.
    """

    rule_class: ClassVar[type[Rule]]

    def __init__(
        self,
        params: Any,
        num_steps: int | None = None,
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        weights: str | os.PathLike[str] | None = None,
        theta: Mapping[str, Any] | None = None,
        layout: str = "out_in",
        backend: str = "auto",
        process_group: Any = None,
        **config: Any,
    ):
        cls = self.rule_class
        self._num_steps = 0 if num_steps is None else _checked_steps(num_steps)
        backends.check(backend)
        loaded = thetas.load(cls.name, theta, weights)
        settings = known_settings(cls.config_class, loaded.config) | config
        self._rule = cls.create(loaded.arrays, settings)
        if num_steps is None and self._rule.needs_horizon:
            raise HorizonNotGiven(cls.name)
        self._wish = backend
        self._process_group = process_group
        self._observed = ObservedLosses()
        self._shared: states.State = {}
        self._scale: Tensor | None = None
        self._per_device: dict[torch.device, tuple[Rule, backends.Backend]] = {}
        defaults = {"lr": lr, "weight_decay": weight_decay, "layout": layout}
        if cls.roles:
            defaults["role"] = None
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, also in the middle of a run: their own state starts at
        zero, what is shared (loss history, scheduler) goes on."""
        param_group = _with_names(param_group)
        merged = {**self.defaults, **param_group}
        for name in ("lr", "weight_decay"):
            if not isinstance(merged[name], Tensor) and not merged[name] >= 0.0:
                raise ConfigError(f"{name} = {merged[name]!r}: must be >= 0")
        if merged["layout"] not in LAYOUTS:
            raise ConfigError(
                f"layout = {merged['layout']!r}: must be one of "
                + ", ".join(map(repr, LAYOUTS))
            )
        roles = self._rule.roles
        if roles and merged.get("role") not in (None, *roles):
            raise ConfigError(
                f"role = {merged['role']!r}: must be one of "
                + ", ".join(map(repr, roles))
            )
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        for param, name in _named(added):
            self._role(param, name, added)  # raises if it cannot be told

    def set_num_steps(self, num_steps: int) -> None:
        """Corrects the length of the run, for programs that learn it late.

        Raises `ConfigError` after the first step: the loss history's memory was laid
        out for the old length.
        """
        if self._shared:
            raise ConfigError("set_num_steps() must come before the first step()")
        self._num_steps = _checked_steps(num_steps)

    def observe(self, loss: Any, *, reduce: str = "mean") -> None:
        """Records the loss the next `step()` will use, for loops that call it bare.

        Several losses before one step (gradient accumulation) are averaged, or with
        `reduce="sum"` added, for micro-batch losses already divided by their number.
        """
        self._observed.add(loss, reduce)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, loss: Any = None
    ) -> Any:
        """One update; returns the closure's result, or `loss`.

        The loss is, in this order: what the closure returns, `loss`, what was observed.
        A step whose loss or any gradient is not finite changes no parameter and no
        state, and is counted.

        Raises `LossNotGiven`, `UnsupportedParameter`, `ConfigError`.
        """
        if closure is not None:
            if loss is not None:
                raise ConfigError("give step() a closure or loss=, not both")
            with torch.enable_grad():
                loss = closure()
        observed = self._observed.take()
        entries = self._entries()
        if entries:
            given = observed if loss is None else loss
            if given is None and self._rule.needs_loss:
                self._without_loss()
            else:
                self._update(entries, 0.0 if given is None else as_scalar(given))
        return loss

    def info(self) -> Info:
        """Reports on the last step, without waiting for it.

        Raises `ConfigError` before the first step.
        """
        if self._scale is None:
            raise ConfigError("info() has nothing to report before the first step()")
        shared = self._shared
        return Info(self._scale, shared["iteration"], shared["skipped"])

    def _without_loss(self) -> None:
        """A bare step with every lr at zero only makes the state.

        `torch.distributed.checkpoint` calls `step()` so before it loads a state.
        """
        if any(float(group["lr"]) != 0.0 for group in self.param_groups):
            raise LossNotGiven(self._rule.name)

    @_outside_graphs
    def _entries(self) -> list[Entry]:
        """The parameters with a gradient, and their states (made if missing)."""
        entries = []
        for index, group in enumerate(self.param_groups):
            for param, name in _named(group):
                grad = param.grad
                if grad is None or 0 in param.shape:
                    continue
                _check(param, grad)
                role = self._role(param, name, group)
                entries.append(self._entry(param, grad, group, index, role))
        return entries

    def _role(self, param: Tensor, name: str | None, group: dict[str, Any]) -> str:
        """What the group asks for, else what the rule makes of name and shape."""
        asked = group.get("role") if self._rule.roles else None
        return asked or self._rule.role(name, tuple(param.shape))

    def _view(self, group: dict[str, Any]) -> View:
        """From the shape of a group's parameter to the one the rule sees."""
        layout, flatten = group["layout"], self._rule.flattens
        return lambda shape: seen(shape, layout, flatten)

    def _entry(
        self, param: Tensor, grad: Tensor, group: dict[str, Any], index: int, role: str
    ) -> Entry:
        state, see = self.state[param], self._view(group)
        shape = see(tuple(param.shape))
        if not state:
            if not self._shared:
                device = sharding.local(param).device
                rule = self._rule.to(device)
                self._shared = states.init_shared(rule, self._num_steps, device)
            specs = states.accumulators(self._rule, shape, group["layout"], role)
            state.update(states.init_param(param, see, specs, self._shared))
        states.follow(state, param)
        own = {k: v for k, v in state.items() if not k.startswith(SHARED)}
        return Entry(
            param=sharding.local(param),
            grad=sharding.local(sharding.match_gradient(param, grad)),
            state={k: sharding.local(v) for k, v in own.items()},
            shape=shape,
            part=see(tuple(sharding.local(param).shape)),
            axes=factored_axes(shape, group["layout"]),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            group=index,
            sharding=sharding.sharding_of(param, same_axes=len(shape) >= param.ndim),
            matrix=matrix_axes(len(shape), group["layout"]),
            role=role,
        )

    def _update(self, entries: list[Entry], value: Any) -> None:
        shared = self._shared
        home = shared["iteration"].device
        by_device: dict[tuple[torch.device, bool], list[Entry]] = {}
        for e in entries:
            key = (e.param.device, e.sharding is not None)
            by_device.setdefault(key, []).append(e)
        jobs = [(*self._on(d, cut), part) for (d, cut), part in by_device.items()]

        flags = [backend.begin(rule, part) for rule, backend, part in jobs]
        bad = torch.stack([flag.to(home) for flag in flags]).any()
        loss = torch.as_tensor(value, dtype=torch.float32)
        loss, bad = agree(loss.to(home), bad, self._process_group)
        if self._process_group is not None:  # which need not hold all shards
            bad = sharding.any_shard(bad, [e.sharding for e in entries])
        finite = torch.isfinite(loss) & ~bad

        members = [(rule, part) for rule, _, part in jobs]
        horizon = shared["num_steps"].clamp_min(1)
        result = self._on(home, False)[0].advance(
            {k: shared[k] for k in shared if k not in states.COUNTERS},
            torch.where(finite, loss, torch.zeros_like(loss)),
            shared["iteration"].float() / horizon.float(),
            gather(members, home),
        )
        told = hand_out(members, result, finite)
        for name, new in result.shared.items():
            shared[name].copy_(torch.where(finite, new, shared[name]))
        shared["iteration"] += 1
        shared["skipped"] += ~finite
        self._scale = result.scale

        alive = finite.float()
        for (rule, backend, _), part in zip(jobs, told, strict=True):
            device = part[0].param.device
            backend.finish(rule, part, result.scale.to(device), alive.to(device))

    def _on(self, device: torch.device, sharded: bool) -> tuple[Rule, backends.Backend]:
        """The rule and its backend on a device; shards go the plain way."""
        if device not in self._per_device:
            rule = self._rule.to(device)
            self._per_device[device] = rule, backends.choose(self._wish, rule, device)
        rule, backend = self._per_device[device]
        return rule, PlainBackend() if sharded else backend

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state dict; it stays usable, and state keeps its float32.

        Raises `StructureMismatch` if it does not fit, and what
        `torch.optim.Optimizer.load_state_dict` raises.
        """
        seen: dict[str, Any] = {}
        # Last of the pre-hooks and first of the post-hooks: what lies between is torch
        # casting the state to the parameters' dtype.
        before = self.register_load_state_dict_pre_hook(lambda _, d: seen.update(d))
        after = self.register_load_state_dict_post_hook(
            lambda _: self._restore(seen), prepend=True
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore(self, state_dict: dict[str, Any]) -> None:
        self._shared, self._scale = {}, None
        saved_ids = [i for g in state_dict["param_groups"] for i in g["params"]]
        places = [(p, n, g) for g in self.param_groups for p, n in _named(g)]
        for saved_id, (param, name, group) in zip(saved_ids, places, strict=True):
            saved = state_dict["state"].get(saved_id)
            if not saved:
                self.state.pop(param, None)
                continue
            shape = self._view(group)(tuple(param.shape))
            role = self._role(param, name, group)
            specs = states.accumulators(self._rule, shape, group["layout"], role)
            expected = {k: spec.shape(shape) for k, spec in specs.items()}
            like = states.init_shared(self._rule, 1, torch.device("cpu"))
            expected |= {k: tuple(v.shape) for k, v in states.refer(like).items()}
            state = states.restore(saved, param, expected, f"parameter {saved_id}")
            if not self._shared:
                self._shared = {
                    k.removeprefix(SHARED): v
                    for k, v in state.items()
                    if k.startswith(SHARED)
                }
            self.state[param] = state | states.refer(self._shared)

    def __getstate__(self) -> dict[str, Any]:
        mine = {k: v for k, v in self.__dict__.items() if k in _KEPT}
        return super().__getstate__() | mine

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_per_device", {})
        self.__dict__.setdefault("_observed", ObservedLosses())


_KEPT = ("_rule", "_num_steps", "_wish", "_process_group", "_shared", "_scale")
"""What a copied or pickled optimizer takes along; backends are found anew."""


def _with_names(group: dict[str, Any]) -> dict[str, Any]:
    """A group of (name, parameter) pairs with the names apart, as torch 2.6 and later
    would do; earlier versions take parameters only."""
    params = group.get("params")
    if params is None or isinstance(params, (Tensor, set)):
        return group
    params = list(params)
    pairs = [p for p in params if isinstance(p, tuple)]
    if len(pairs) != len(params) or not pairs:
        return {**group, "params": params}
    names, tensors = zip(*pairs, strict=True)
    return {**group, "params": list(tensors), "param_names": list(names)}


def _named(group: dict[str, Any]) -> Iterator[tuple[Tensor, str | None]]:
    """A group's parameters with their names as paths, `block/0/weight`, if known."""
    names = group.get("param_names") or [None] * len(group["params"])
    for param, name in zip(group["params"], names, strict=True):
        yield param, None if name is None else name.replace(".", "/")


def _checked_steps(num_steps: Any) -> int:
    if int(num_steps) != num_steps or num_steps < 1:
        raise ConfigError(f"num_steps = {num_steps!r}: must be an integer >= 1")
    return int(num_steps)


def _check(param: Tensor, grad: Tensor) -> None:
    """Raises `UnsupportedParameter` for what the rules are not made for."""
    what = f"a parameter of shape {tuple(param.shape)}"
    if grad.layout != torch.strided:
        raise UnsupportedParameter(
            f"{what} has a sparse gradient: build the layer with sparse=False"
        )
    if not param.is_floating_point():
        raise UnsupportedParameter(
            f"{what} has dtype {param.dtype}: only real floating-point parameters are "
            "supported (split complex ones with torch.view_as_real)"
        )
    sharding.refuse_flattened(param)
