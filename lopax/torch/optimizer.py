"""The `torch.optim.Optimizer` that runs a learned rule."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lopax._core import narrow as formats
from lopax._core import routing
from lopax._core.config import check_one_of
from lopax._core.errors import ConfigError
from lopax._core.numbers import whole_steps
from lopax._core.routing import Route
from lopax.rules import form
from lopax.torch import backends, narrow, restoring, step, views
from lopax.torch import state as states
from lopax.torch import theta as thetas
from lopax.torch.backends import Job
from lopax.torch.batch import NOTHING
from lopax.torch.errors import HorizonNotGiven, LossNotGiven
from lopax.torch.groups import (
    check_settings,
    named,
    with_names,
)
from lopax.torch.losses import (
    ObservedLosses,
    as_scalar,
    processes,
)
from lopax.torch.observing import Observing
from lopax.torch.plain import Entry
from lopax.torch.rule import Rule
from lopax.torch.settings import known_settings, with_settings
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
    momentum_dtype: str = "float32"  # what momenta are kept in between steps


class LearnedOptimizer(Observing):
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
    - `momentum_dtype`: "float32", "bfloat16" or "int8" (in blocks, of tensors with two
        or more axes), what momenta are kept in between steps.
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
        momentum_dtype: str = "float32",
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
        check_one_of("backend", backend, backends.BACKENDS)
        if on_resume not in (None, "saved", "new"):
            raise ConfigError(f"on_resume = {on_resume!r}: must be 'saved' or 'new'")
        loaded = thetas.load(cls.name, theta, weights)
        asked = {**known_settings(cls, loaded.config), **settings, **config}
        rule = with_settings(cls, asked)
        self._rule = Rule(rule, thetas.to_torch(rule, loaded.arrays))
        if num_steps is None and self._rule.needs_horizon:
            raise HorizonNotGiven(cls.name)
        formats.check(momentum_dtype, cls.name, narrow.has_momenta(rule))
        self._momentum_dtype = momentum_dtype
        self._requested, self._compilable = backend, compilable
        self._process_group = process_group
        self._on_resume = on_resume
        self._shared: states.State = {}
        self._scale: Tensor | None = None
        self._make_anew()
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
        entries = self._with_gradients()
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
        return Info(self._scale, *counts, self.roles(), used, self._momentum_dtype)

    def _without_loss(self) -> None:
        """A bare step with every lr at zero only makes the state.

        `torch.distributed.checkpoint` calls `step()` so before it loads a state.
        """
        if any(float(group["lr"]) != 0.0 for group in self.param_groups):
            raise LossNotGiven(self._rule.name)

    @_outside_graphs
    def _with_gradients(self) -> list[Entry]:
        entries = self._entries()
        for e in entries:
            self._on(e.param.device, False)  # kernels are built outside graphs
        return entries

    def _update(self, entries: list[Entry], loss: Any) -> None:
        if not self._shared:
            self._begin(self._home(loss))
        home = self._shared["iteration"].device
        by_device: dict[tuple[torch.device, bool], list[Entry]] = {}
        for e in entries:
            key = (e.param.device, e.sharding is not None or not e.addressable)
            by_device.setdefault(key, []).append(e)
        jobs = [Job(*self._on(*key), part) for key, part in by_device.items()]
        rule, group = self._on(home, False)[0], self._process_group
        found = step.take(jobs, rule, self._shared, loss, group)
        last = torch.zeros_like(found.scale) if self._scale is None else self._scale
        self._scale = torch.where(found.finite, found.scale, last)  # of one that counts
        self._notice(entries, found.held)

    @_outside_graphs
    def _notice(self, entries: list[Entry], held: Tensor) -> None:
        groups = self.param_groups
        self._watch.after_step(self._rule, self._shared, entries, groups, held)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._watch.restart()

    load_state_dict.__doc__ = restoring.Resumable.load_state_dict.__doc__

    def __getstate__(self) -> dict[str, Any]:
        mine = {k: v for k, v in self.__dict__.items() if k in _KEPT}
        return super().__getstate__() | mine

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_watch" not in self.__dict__:  # copied; torch calls it for state dicts, too
            self._make_anew()

    def _make_anew(self) -> None:
        """What a copied or pickled optimizer does not take along."""
        self._observed, self._watch = ObservedLosses(), Watch()
        self._plans, self._starts = {}, {}
        self._per_device = {}


_KEPT = (
    *("_rule", "_num_steps", "_requested", "_compilable"),
    *("_process_group", "_on_resume", "_momentum_dtype"),
    *("_shared", "_scale", "_routes", "_kinds"),
)
"""What a copied or pickled optimizer takes along; backends are found anew."""
