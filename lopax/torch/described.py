"""Runs a rule of `lopax.rules` in torch: the driver between it and `Rule`.

What a rule calls `lead` is the number of equal tensors here. The fields of its named
tuples are the names in an optimizer's state, joined by "_" where tuples are nested.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from lopax._core.routing import Route, role_of
from lopax._core.run import Run
from lopax.rules import form
from lopax.rules.form import Place, StepContext, Steps
from lopax.rules.ops import Ops, Shapes
from lopax.torch.geometry import Accumulator, reading_order
from lopax.torch.ops import TorchOps
from lopax.torch.rule import Advance, Rows, Rule, TensorBatch

_COMMON, _UPDATES, _BOUND = "common ", "updates", "bound"
"""Names in a batch's context of what is the same for all tensors."""


class Described(Rule):
    """A `lopax.rules.form.Rule` for torch; subclasses name the rule."""

    rule_class: ClassVar[type[form.Rule]]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        rule = cls.rule_class
        cls.name, cls.config_class = rule.name, rule.config_class
        cls.needs_loss, cls.needs_horizon = rule.needs_loss, rule.needs_horizon
        cls.roles = rule.roles
        cls.summarises = cls.sees_gradients = bool(rule.num_summaries)
        cls.num_starts = rule.num_starts

    def __init__(self, config: Any, theta: dict[str, Tensor]):
        super().__init__(config, theta)
        self.rule = self.rule_class(config)
        self.grad_clip = self.rule.grad_clip  # pyright: ignore[reportAttributeAccessIssue]
        self.tree = _nested(theta)
        self.device = next(iter(theta.values())).device
        self._constants: dict[Any, Tensor] = {}
        # What is shared and the rows, of one tensor: their structure, and first rows
        # where those do not go by the tensor.
        self._like_shared = self._shared_of(1, None)
        self._like_rows = self._rows_of(
            self._like_shared, self._zeros(1, self.rule.num_starts)
        )
        self._first_rows = dict(_flat(self._like_rows))

    @property
    def carried(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._first_rows)

    @classmethod
    def theta_shapes(cls, config: Any) -> dict[str, tuple[int, ...]]:
        tree = cls.rule_class(config).init_theta(Shapes(), None)
        return dict(_paths(tree))

    @classmethod
    def translate_published(
        cls, arrays: dict[str, np.ndarray], config: Any
    ) -> dict[str, np.ndarray]:
        return cls.rule_class(config).translate_published(arrays)

    def role(
        self,
        name: str | None,
        shape: tuple[int, ...],
        kind: str | None = None,
        routes: tuple[Route, ...] = (),
    ) -> str:
        if not self.roles:
            return ""
        c = self.config
        return role_of(name, shape, (*routes, *c.routes), c.default_role, kind)

    def accumulators(self, rank: int, axes: Any, role: str) -> dict[str, Accumulator]:
        del axes
        found = {}
        every, starts = tuple(range(rank)), self.rule.starts(self._ops(), self.tree)
        for name, keeps in self.rule.keeps(role)._asdict().items():
            if keeps is None:
                continue
            start = starts.get(name)
            if start is not None and keeps.copies and keeps.each:
                start = start.reshape(-1, *(1,) * (rank + bool(keeps.units)))
            behind = (keeps.units,) if keeps.units else ()
            kept = every if keeps.each else ()
            found[name] = Accumulator(keeps.copies, kept, start, behind=behind)
        for name, (first,) in self._first_rows.items():
            start = None if self.num_starts else first  # None: measured
            found[name] = Accumulator(0, (), start, behind=tuple(first.shape))
        return found

    def _ops(self, alive: Tensor | None = None) -> Ops:
        return cast(Ops, TorchOps(self.device, self._constants, alive))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def _shared_of(self, num_steps: int, starts: Tensor | None) -> Any:
        horizon = torch.tensor(num_steps, dtype=torch.int32, device=self.device)
        starts = self._zeros(1, self.rule.num_starts) if starts is None else starts
        return self.rule.init_shared(self._ops(), self.tree, horizon, starts)

    def _rows_of(self, shared: Any, starts: Tensor) -> Any:
        return self.rule.init_rows(self._ops(), self.tree, shared, starts)

    def init_shared(
        self, num_steps: int, starts: Tensor | None = None
    ) -> dict[str, Tensor]:
        shared = self._shared_of(num_steps, starts)
        return {k: v.clone() for k, v in _flat(shared)}

    def init_rows(
        self, shared: Mapping[str, Tensor], starts: Tensor
    ) -> dict[str, Tensor]:
        return dict(_flat(self._rows_of(self._shared(shared), starts)))

    def _shared(self, shared: Mapping[str, Tensor]) -> Any:
        """The rule's own form of what is shared."""
        return _filled(self._like_shared, shared)

    def measure(self, batch: TensorBatch) -> Steps:
        return self.rule.measure(self._ops(), place_of(batch), batch.params)

    def summarise(self, batch: TensorBatch, shared: Mapping[str, Tensor]) -> Steps:
        xp = self._ops()
        state = self._state(batch)
        bound = self.rule.gradient_bound(xp, self._shared(shared))
        grads = _bounded(batch.grads, bound)
        place = place_of(batch)
        return self.rule.summarise(xp, self.tree, place, grads, state, batch.params)

    def advance(self, shared: dict[str, Tensor], run: Run, rows: Rows) -> Advance:
        xp, own = self._ops(), self._shared(shared)
        summaries = rows.summaries
        if summaries is None:
            summaries = self._zeros(rows.count, self.rule.num_summaries)
        empty = {
            k: self._zeros(rows.count, *first.shape)
            for k, (first,) in self._first_rows.items()
        }
        carried = _filled(self._like_rows, empty | rows.carried)
        found = self.rule.advance(
            xp, self.tree, own, run, form.Rows(rows.count, summaries, carried)
        )
        told = {k: v.expand(rows.count, *v.shape[1:]) for k, v in found.told.items()}
        common = {f"{_COMMON}{k}": v for k, v in found.common.items()}
        common[f"{_COMMON}{_UPDATES}"] = run.updates
        bound = self.rule.gradient_bound(xp, own)
        if bound is not None:
            common[f"{_COMMON}{_BOUND}"] = bound
        for name, value in common.items():
            told[name] = value.expand(rows.count, *value.shape)
        return Advance(
            shared=dict(_flat(found.shared)),
            scale=torch.as_tensor(found.scale, dtype=torch.float32, device=self.device),
            carried={} if found.carried is None else dict(_flat(found.carried)),
            context=told,
        )

    def observe_validation(
        self, shared: dict[str, Tensor], loss: Tensor
    ) -> dict[str, Tensor]:
        own = self._shared(shared)
        return dict(_flat(self.rule.observe_validation(self._ops(), own, loss)))

    def step(self, batch: TensorBatch, scale: Tensor, alive: Tensor) -> Steps:
        told, common = {}, {}
        for name, rows in batch.context.items():
            if name.startswith(_COMMON):
                common[name.removeprefix(_COMMON)] = rows[0]
            else:
                told[name] = rows
        updates, bound = common.pop(_UPDATES), common.pop(_BOUND, None)
        at = StepContext(place_of(batch), scale, updates, told, common)
        state, counts = self._state(batch), form.counted(self.rule.keeps(batch.role))
        delta, new = yield from self.rule.step(
            self._ops(alive),
            self.tree,
            at,
            _bounded(batch.grads, bound),
            state,
            batch.params,
        )
        for name, old in batch.state.items():
            value = getattr(new, name)
            if name in counts:
                old += alive
            elif value is not old:
                # Elements that would not be finite stay, as parameters do.
                old.copy_(torch.where((alive > 0.0) & value.isfinite(), value, old))
        return torch.where(alive > 0.0, delta, 0.0)

    def _state(self, batch: TensorBatch) -> Any:
        """A batch's state as the rule's own."""
        keeps = self.rule.keeps(batch.role)
        return type(keeps)(*(batch.state.get(k) for k in keeps._fields))


def place_of(batch: TensorBatch) -> Place:
    """A batch's tensors as their rule knows them."""
    layout = "out_in" if batch.matrix[-1] == 0 else "in_out"
    reading = reading_order(len(batch.shape), layout)
    return Place(batch.shape, batch.scalar, batch.role, reading, batch.cut)


def _bounded(grads: Tensor, bound: Tensor | None) -> Tensor:
    if bound is None:
        return grads
    return torch.maximum(torch.minimum(grads, bound), -bound)


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def _paths(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _flat(state: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The arrays of (nested) named tuples by name."""
    for name in getattr(state, "_fields", ()):
        value = getattr(state, name)
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _flat(value, f"{prefix}{name}_")


def _filled(like: Any, arrays: Mapping[str, Tensor], prefix: str = "") -> Any:
    """The inverse of `_flat`: the structure of `like` with other arrays."""
    if not hasattr(like, "_fields"):
        return like
    found = [
        arrays[f"{prefix}{name}"]
        if isinstance(value, Tensor)
        else _filled(value, arrays, f"{prefix}{name}_")
        for name, value in zip(like._fields, like, strict=True)
    ]
    return type(like)(*found)
