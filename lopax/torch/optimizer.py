"""The `torch.optim.Optimizer` that runs a learned rule."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lopax._core import routing
from lopax._core.errors import ConfigError
from lopax._core.numbers import whole_steps
from lopax._core.routing import Route
from lopax._core.run import Run
from lopax.rules import form
from lopax.torch import backends, restoring, sharding, views
from lopax.torch import state as states
from lopax.torch import theta as thetas
from lopax.torch.batch import NOTHING
from lopax.torch.errors import HorizonNotGiven, LossNotGiven
from lopax.torch.groups import (
    check_settings,
    check_supported,
    named,
    with_names,
)
from lopax.torch.losses import (
    ObservedLosses,
    agree,
    as_scalar,
    meeting_place,
    processes,
)
from lopax.torch.operands import Operands
from lopax.torch.plain import Entry, PlainBackend
from lopax.torch.rows import gather, hand_out
from lopax.torch.rule import Rule, known_settings
from lopax.torch.watch import Watch

# For bookkeeping, of which nothing belongs in a compiled graph.
_outside_graphs: Any = torch.compiler.disable


class Info(NamedTuple):
    """What the optimizer is doing, as tensors on its device (reading one waits)."""

    step_scale: Tensor  # [] the rule's learning-rate-like scalar in the last step
    iteration: Tensor  # [] int32, steps so far, skipped ones included
    skipped: Tensor  # [] int32, steps skipped because something was not finite
    roles: Mapping[str, str] = NOTHING  # of the parameters by name, see `roles()`
    backends: Mapping[str, str] = NOTHING  # by device: which one, and if plain why


class LearnedOptimizer(Operands):
    """A learned rule as a torch optimizer; use a subclass, or `optimizer(name, ...)`.

    **Arguments:**

    - `params`: a model, parameters, named parameters, or parameter groups. A group may
        have its own `lr`, `weight_decay` and `layout`, and a `role` for rules that have
        roles. A model also shows which parameters are embeddings.
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
    - `compilable`: let `torch.compile` trace the step, which takes it a minute or more;
        otherwise a compiled program calls it as it is.
    - `process_group`: over which the loss is averaged; None: the default group, if
        torch.distributed is initialised; False: no communication.
    - `on_resume`: whose `num_steps` counts if a state of a run of another length is
        loaded: "saved", or "new", this optimizer's. None: the saved one, and a warning.
    - `routes`: what is a stack of tensors (experts), which axes are a matrix's, and the
        roles of tensors, for rules that have roles; see `Route`. They come before the
        rule's own routes.
    - `config`: settings of the architecture, over those saved with the weights.
        `settings` is the same for settings that have the name of an argument above
        (`lr` of Optim4RL): `settings={"lr": 0.01}`.

    Raises `ConfigError`, `UnknownName`, `HorizonNotGiven`, `StructureMismatch`,
    `BackendUnavailable`; `step` raises `LossNotGiven` and `UnsupportedParameter`.
    """

    rule_class: ClassVar[type[form.Rule]]

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
        compilable: bool = False,
        process_group: Any = None,
        on_resume: str | None = None,
        routes: Sequence[Route] = (),
        settings: Mapping[str, Any] = NOTHING,
        **config: Any,
    ):
        cls = self.rule_class
        params, self._kinds = views.of_module(params)
        self._routes = routing.checked(routes)
        routing.check_roles(self, self._routes, None, cls.roles)
        self._num_steps = 0 if num_steps is None else whole_steps(num_steps)
        backends.check(backend)
        if on_resume not in (None, "saved", "new"):
            raise ConfigError(f"on_resume = {on_resume!r}: must be 'saved' or 'new'")
        loaded = thetas.load(cls.name, theta, weights)
        asked = {**known_settings(cls, loaded.config), **settings, **config}
        self._rule = Rule.create(cls, loaded.arrays, asked)
        if num_steps is None and self._rule.needs_horizon:
            raise HorizonNotGiven(cls.name)
        self._requested, self._compilable = backend, compilable
        self._process_group = process_group
        self._on_resume = on_resume
        self._observed = ObservedLosses()
        self._watch = Watch()
        self._shared: states.State = {}
        self._scale: Tensor | None = None
        self._plans: dict[Any, states.Plan] = {}
        self._starts: dict[Tensor, Tensor] = {}
        self._per_device: dict[torch.device, tuple[Rule, backends.Backend]] = {}
        defaults = {"lr": lr, "weight_decay": weight_decay, "layout": layout}
        if cls.roles:
            defaults["role"] = None
        super().__init__(params, defaults)
        if theta is None and weights in (None, cls.name):
            self._watch.attention(cls.name, self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, also in the middle of a run: their own state starts at
        zero, what is shared (loss history, scheduler) goes on."""
        param_group = with_names(param_group)
        self._check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        for param, name in named(added):
            if not torch.nn.parameter.is_lazy(param):  # else when it has a shape
                self._role(param, name, added)  # raises if it cannot be told

    def _check_settings(
        self, merged: Mapping[str, Any], *, running: bool = False
    ) -> None:
        """Raises `ConfigError` for what a parameter group may not say."""
        check_settings(merged, self._rule.roles, running=running)

    def observe(self, loss: Any, *, reduce: str = "mean") -> None:
        """Records the loss the next `step()` will use, for loops that call it bare.

        Several losses before one step (gradient accumulation) are averaged, or with
        `reduce="sum"` added, for micro-batch losses already divided by their number.
        Those from before the last `zero_grad()` belong to a step that never came
        (`GradScaler` leaves steps out), and are forgotten.
        """
        self._observed.add(loss, reduce)

    @torch.no_grad()
    def observe_validation(self, loss: Any) -> None:
        """Shows the loss on validation data to rules that take it (RNN-MLP), between
        two steps; the others do not look. One that is not finite changes nothing."""
        if not self._shared:
            self._begin(self._home(loss))
        shared = {k: v for k, v in self._shared.items() if k not in states.COUNTERS}
        home = self._shared["iteration"].device
        value = torch.as_tensor(as_scalar(loss), dtype=torch.float32, device=home)
        seen = self._on(home, False)[0].observe_validation(
            shared, torch.where(value.isfinite(), value, torch.zeros_like(value))
        )
        for name, new in seen.items():
            shared[name].copy_(torch.where(value.isfinite(), new, shared[name]))

    def forget_observed(self) -> None:
        """Drops the losses recorded for a step that will not come."""
        self._observed.take()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._observed.gradients_are_gone()

    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | Any = None, *, loss: Any = None
    ) -> Any:
        """One update; returns the closure's result, or the loss.

        The loss is, in this order: what the closure returns, `loss`, what was observed.
        A tensor or number in the closure's place counts as `loss`. A step whose loss or
        any gradient is not finite changes no parameter and no state, and is counted;
        so does one of which what the tensors share is not. Where only an element's
        new value is not finite, it stays as it was, and the step is counted.

        Warns (`LopaxWarning`) once each where nothing, or little, can be trained.

        Raises `LossNotGiven`, `UnsupportedParameter`, `ConfigError`.
        """
        step = self._step if self._compilable else self._step_outside_graphs
        return step(closure, loss)

    @_outside_graphs
    def _step_outside_graphs(self, closure: Any, loss: Any) -> Any:
        # Arrays made in inference mode could not be written outside of it.
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self._step(closure, loss)
        return self._step(closure, loss)

    @torch.no_grad()
    def _step(self, closure: Any, loss: Any) -> Any:
        if closure is not None:
            given = closure
            if callable(closure):
                with torch.enable_grad():
                    given = closure()
            if given is not None and loss is not None:
                raise ConfigError(
                    "step(): two losses; give a closure or loss=, not both"
                )
            loss = loss if given is None else given
        observed = self._observed.take()
        entries = self._entries()
        # A process that owns nothing takes part: the others wait for its loss.
        if entries or processes(self._process_group) > 1:
            given = observed if loss is None else loss
            if given is None and self._rule.needs_loss:
                self._without_loss()
            else:
                self._update(entries, 0.0 if given is None else as_scalar(given))
        else:
            self._watch.without_gradients(self.param_groups)
        return loss

    def info(self) -> Info:
        """Reports on the last step, without waiting for it.

        Raises `ConfigError` before the first step.
        """
        if self._scale is None:
            raise ConfigError("info() has nothing to report before the first step()")
        shared = self._shared
        counts = shared["iteration"], shared["skipped"]
        used = {str(d): b.describe() for d, (_, b) in self._per_device.items()}
        return Info(self._scale, *counts, self.roles(), used)

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
        for e in entries:
            self._on(e.param.device, False)  # kernels are built outside graphs
        return entries

    def _home(self, loss: Any) -> torch.device:
        """Where what is shared belongs, for a process without a gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                return sharding.local(param).device
        return meeting_place(self._process_group, loss)

    def _update(self, entries: list[Entry], value: Any) -> None:
        if not self._shared:
            self._begin(self._home(value))
        shared = self._shared
        home = shared["iteration"].device
        by_device: dict[tuple[torch.device, bool], list[Entry]] = {}
        for e in entries:
            key = (e.param.device, e.sharding is not None or not e.addressable)
            by_device.setdefault(key, []).append(e)
        jobs = [(*self._on(d, alone), p) for (d, alone), p in by_device.items()]

        looks = [backend.begin(rule, part) for rule, backend, part in jobs]
        jobs = [
            (rule, backend, [e._replace(within=look.within) for e in part])
            for (rule, backend, part), look in zip(jobs, looks, strict=True)
        ]
        none = torch.zeros((), dtype=torch.bool, device=home)
        bad = torch.stack([none, *(look.bad.to(home) for look in looks)]).any()
        loss = torch.as_tensor(value, dtype=torch.float32, device=home)
        loss, bad = agree(loss, bad, self._process_group)
        if self._process_group is not None:  # which need not hold all shards
            bad = sharding.any_shard(bad, [e.sharding for e in entries])
        finite = torch.isfinite(loss) & ~bad

        members = [(rule, part) for rule, _, part in jobs]
        old = {k: shared[k] for k in shared if k not in states.COUNTERS}
        done = shared["iteration"].float() / shared["num_steps"].clamp_min(1).float()
        run = Run(
            loss=torch.where(finite, loss, torch.zeros_like(loss)),
            fraction=done.clamp_max(1.0),  # past the end the schedule holds
            updates=shared["iteration"] - shared["skipped"],
            num_steps=shared["num_steps"],
        )
        rows = gather(members, home, old)
        result = self._on(home, False)[0].advance(old, run, rows)
        # What is not finite here would make every parameter so, now or later.
        common = result.common
        made = (*result.shared.values(), *result.told.values(), common.scale)
        made = (*made, *result.carried.values(), *common.told.values())
        for x in made if common.bound is None else (*made, common.bound):
            finite = finite & torch.isfinite(x).all()
        told = hand_out(members, result, finite)
        for name, new in result.shared.items():
            shared[name].copy_(torch.where(finite, new, shared[name]))
        shared["iteration"] += 1
        shared["skipped"] += ~finite
        last = torch.zeros_like(common.scale) if self._scale is None else self._scale
        self._scale = torch.where(finite, common.scale, last)  # of a step that counts

        alive, halted = finite.float(), none
        for (rule, backend, _), part in zip(jobs, told, strict=True):
            device = part[0].param.device
            held = backend.finish(rule, part, common.to(device), alive.to(device))
            halted = halted | held.to(home)
        shared["skipped"] += halted & finite
        self._notice(entries, halted & finite)

    @_outside_graphs
    def _notice(self, entries: list[Entry], held: Tensor) -> None:
        groups = self.param_groups
        self._watch.after_step(self._rule, self._shared, entries, groups, held)

    def _on(self, device: torch.device, plain: bool) -> tuple[Rule, backends.Backend]:
        """The rule and its backend on a device; shards, and what kernels cannot be
        given, use the plain one."""
        if device not in self._per_device:
            rule = self._rule.to(device)
            chosen = backends.choose(self._requested, rule, device)
            self._per_device[device] = rule, chosen
        rule, backend = self._per_device[device]
        return rule, PlainBackend() if plain else backend

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._watch.restart()

    load_state_dict.__doc__ = restoring.Resumable.load_state_dict.__doc__

    def __getstate__(self) -> dict[str, Any]:
        mine = {k: v for k, v in self.__dict__.items() if k in _KEPT}
        return super().__getstate__() | mine

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_per_device", {})
        self.__dict__.setdefault("_plans", {})
        self.__dict__.setdefault("_starts", {})
        self.__dict__.setdefault("_routes", ())
        self.__dict__.setdefault("_kinds", {})
        self.__dict__.setdefault("_on_resume", None)
        self.__dict__.setdefault("_observed", ObservedLosses())
        self.__dict__.setdefault("_watch", Watch())


_KEPT = (
    *("_rule", "_num_steps", "_requested", "_compilable"),
    *("_process_group", "_on_resume"),
    *("_shared", "_scale", "_routes", "_kinds"),
)
"""What a copied or pickled optimizer takes along; backends are found anew."""
