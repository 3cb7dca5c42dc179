"""A task out of plain functions, whatever network library they use."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core.errors import ConfigError, TaskError
from lopax._core.task import Task, check_batches
from lopax._core.types import Batch, Key, Params, Scalar, TaskState
from lopax.tasks.sources import pick_split, random_below, take

_LOSS_FORMS = "loss(params), loss(params, batch) or loss(params, key, batch)"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FunctionTask(Task):
    """What `from_functions` makes. A pytree: `data` are its leaves."""

    init_fn: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    loss_fn: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    loss_arity: int = dataclasses.field(metadata={"static": True})
    batch_fn: Callable[..., Any] | None = dataclasses.field(metadata={"static": True})
    batch_arity: int = dataclasses.field(metadata={"static": True})
    metrics_fn: Callable[..., Any] | None = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})
    bound: float = dataclasses.field(metadata={"static": True})
    data: dict[str, Any] | None = None

    def init(self, key: Key) -> tuple[Params, TaskState]:
        return self.init_fn(key), None

    def batch(self, key: Key, split: str = "train") -> Batch:
        if self.data is not None:
            arrays = pick_split(self.data, split)
            size = jax.tree.leaves(arrays)[0].shape[0]
            indices = random_below(key, self.batch_size, size)
            return jax.tree.map(lambda a: take(a, indices), arrays)
        if self.batch_fn is not None:
            return self.batch_fn(*(key, split)[: self.batch_arity])
        return None

    def loss(
        self, params: Params, task_state: TaskState, key: Key, batch: Batch
    ) -> tuple[Scalar, TaskState]:
        arguments = {1: (params,), 2: (params, batch), 3: (params, key, batch)}
        loss = self.loss_fn(*arguments[self.loss_arity])
        shape = getattr(loss, "shape", None)
        if shape is None and isinstance(loss, (int, float)):
            shape = ()
        if shape != ():
            what = (
                type(loss).__name__ if shape is None else f"an array of shape {shape}"
            )
            raise TaskError(
                f"loss returned {what}, must be a scalar; take the mean over the batch "
                "and return nothing beside it"
            )
        return jnp.asarray(loss, jnp.float32), task_state

    def metrics(
        self, params: Params, task_state: TaskState, key: Key, split: str
    ) -> dict[str, Scalar]:
        """The user's metrics on the batch that `evaluate` draws with this key."""
        if self.metrics_fn is None:
            return {}
        batch_key, _ = jax.random.split(key)
        return self.metrics_fn(params, self.batch(batch_key, split))

    @property
    def loss_bound(self) -> float:
        return self.bound


def from_functions(
    init: Callable[[Any], Any],
    loss: Callable[..., Any],
    batch: Callable[..., Any] | None = None,
    *,
    data: Any = None,
    batch_size: int = 64,
    metrics: Callable[[Any, Any], Mapping[str, Any]] | None = None,
    loss_bound: float = 1e3,
) -> FunctionTask:
    """A task from plain JAX functions.

        def init(key): return {"w": jnp.zeros((30,)), "b": jnp.zeros(())}
        def loss(params, batch):
            x, y = batch
            return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)
        task = lopax.tasks.from_functions(init, loss, data=(x_train, y_train))

    **Arguments:**

    - `init`: `init(key) -> params`, any pytree of arrays.
    - `loss`: `loss(params)`, `loss(params, batch)` or `loss(params, key, batch)` -> [].
    - `batch`: `batch(key)` or `batch(key, split) -> batch`, traceable by jit; or None.
    - `data`: instead of `batch`, a pytree of arrays that share their first axis, from
      which batches are drawn with replacement; or {"train": ..., "valid": ...,
      "test": ...} of such. Without splits, every split draws from the same arrays.
    - `metrics`: `metrics(params, batch) -> {name: []}`, reported beside the loss.
    - `loss_bound`: where the meta-loss is clipped; set it to a bit above the loss of
      an untrained model.

    Raises `TaskError` if a function takes other arguments, the loss is no scalar, the
    parameters are no arrays, the data do not share their first axis, or batches do not
    follow from their key alone (a wrapped iterator).
    """
    for name, value in (("init", init), ("loss", loss)):
        if not callable(value):
            raise TaskError(f"{name} must be a function, is {type(value).__name__}")
    if batch is not None and data is not None:
        raise TaskError("batch and data both say where batches come from; give one")
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size!r}: must be at least 1")
    task = FunctionTask(
        init_fn=init,
        loss_fn=loss,
        loss_arity=_arity("loss", loss, (1, 2, 3), _LOSS_FORMS),
        batch_fn=batch,
        batch_arity=0
        if batch is None
        else _arity("batch", batch, (1, 2), "batch(key) or batch(key, split)"),
        metrics_fn=metrics,
        batch_size=batch_size,
        bound=float(loss_bound),
        data=None if data is None else _check_data(data),
    )
    if task.loss_arity > 1 and batch is None and data is None:
        raise TaskError("loss takes a batch: give batch=... or data=... as well")
    _check_shapes(task)
    return task


def _arity(name: str, function: Callable, allowed: tuple[int, ...], forms: str) -> int:
    """How many positional arguments to call `function` with."""
    kinds = inspect.Parameter
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise TaskError(f"{name} has no readable signature; wrap it in a def") from None
    positional = [
        p
        for p in parameters
        if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        and p.default is kinds.empty
    ]
    needs_keyword = [
        p.name
        for p in parameters
        if p.kind is kinds.KEYWORD_ONLY and p.default is kinds.empty
    ]
    if len(positional) not in allowed or needs_keyword:
        raise TaskError(
            f"{name}{inspect.signature(function)} cannot be called by a task; write "
            f"{forms}"
        )
    return len(positional)


def _check_data(data: Any) -> dict[str, Any]:
    """Data by split, as device arrays."""
    named = isinstance(data, Mapping) and set(data) <= {"train", "valid", "test"}
    splits = dict(data) if named and "train" in data else None
    if splits is None:
        splits = dict.fromkeys(("train", "valid", "test"), data)
    for split, arrays in splits.items():
        lengths = {jnp.shape(a)[:1] for a in jax.tree.leaves(arrays)}
        if len(lengths) != 1 or lengths in ({()}, {(0,)}):
            raise TaskError(
                f"data of split {split!r} have leading sizes {sorted(lengths)}; all "
                "arrays must share one first axis, of at least one example"
            )
    return jax.tree.map(jnp.asarray, splits)


def _check_shapes(task: FunctionTask) -> None:
    """Draws two batches, and traces the other functions without computing anything."""
    key = jax.random.key(0)
    if task.batch_fn is not None:
        check_batches(task, "from_functions", key)
    params, _ = jax.eval_shape(task.init, key)
    leaves = jax.tree.leaves(params)
    if not leaves or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves):
        found = ", ".join(f"{x.dtype}{list(x.shape)}" for x in leaves) or "nothing"
        raise TaskError(f"init must return floating-point arrays, returned {found}")
    batch = jax.eval_shape(task.batch, key)
    jax.eval_shape(task.loss, params, None, key, batch)
