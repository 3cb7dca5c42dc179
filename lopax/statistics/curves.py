"""What training runs of one optimizer on one task left behind, and how it is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lopax.statistics.tuning import Tuned, tune

METRIC = "metric:"
"""Begins the names of the arrays that metrics are stored as."""
READ_OUT = "train/loss"
"""The metric of optimizers that are judged by an average of their parameters: the
training loss there."""

C = TypeVar("C", bound="Curves")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves of S seeds by L learning rates (L = 1 if the optimizer is not tuned).

    T updates, E evaluations. As arrays (`to_arrays`, `from_arrays`) they have the names
    of the fields, and a metric the name "metric:NAME".
    """

    train: NDArray[np.float32]  # [S, L, T] loss of each step's batch, before the update
    valid: NDArray[np.float32]  # [S, L, E] NaN without held-out data
    test: NDArray[np.float32]  # [S, L, E]
    metrics: dict[str, NDArray[np.float32]]  # "test/accuracy" -> [S, L, E]
    nonfinite: NDArray[np.int32]  # [S, L] steps whose loss was not finite
    updates: NDArray[np.int32]  # [S, L] updates that were finite and not all zero
    diverged: NDArray[np.bool_]  # [S, L] parameters or last loss not finite at the end
    eval_steps: NDArray[np.int64]  # [E] updates made before each evaluation

    @classmethod
    def from_arrays(cls: type[C], arrays: Mapping[str, NDArray[Any]], **more: Any) -> C:
        """From named arrays with the axes above; other names are left alone.

        `more`: the fields of a subclass. Raises `KeyError` if one is missing.
        """
        metrics = [name for name in arrays if name.startswith(METRIC)]
        return cls(
            **{name: arrays[name] for name in _STORED},
            metrics={name.removeprefix(METRIC): arrays[name] for name in metrics},
            **more,
        )

    @classmethod
    def from_seeds(
        cls: type[C], seeds: Sequence[Mapping[str, NDArray[Any]]], **more: Any
    ) -> C:
        """From one mapping of arrays for each seed, as `of_seed` gives them."""
        names = [n for n in seeds[0] if n in _STORED or n.startswith(METRIC)]
        arrays = {n: np.stack([s[n] for s in seeds]) for n in names if n != _SHARED}
        return cls.from_arrays({**arrays, _SHARED: seeds[0][_SHARED]}, **more)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Named arrays with the axes above."""
        arrays = {name: getattr(self, name) for name in _STORED}
        return arrays | {METRIC + name: x for name, x in self.metrics.items()}

    def of_seed(self, index: int) -> dict[str, NDArray[Any]]:
        """The arrays of one seed: [L, ...], and the evaluations' steps [E]."""
        return self._each(lambda x: x[index])

    def of_rate(self, index: int) -> dict[str, NDArray[Any]]:
        """The arrays of one learning rate: [S, ...], and the evaluations' steps [E]."""
        return self._each(lambda x: x[:, index])

    def _each(self, take: Any) -> dict[str, NDArray[Any]]:
        arrays = self.to_arrays()
        return {n: x if n == _SHARED else take(x) for n, x in arrays.items()}

    @property
    def read_out(self) -> NDArray[np.float32] | None:
        """[S, L] final training losses of an optimizer that is judged by an average of
        its parameters; None if the training curve says it all."""
        values = self.metrics.get(READ_OUT)
        return None if values is None else values[..., -1]

    def best(self) -> tuple[Tuned, int]:
        """The sweep over learning rates, and where its best rate is on the L axis."""
        tuned = tune(self.train, self.diverged, read_out=self.read_out)
        return tuned, tuned.index


_SHARED = "eval_steps"
_STORED = tuple(f.name for f in dataclasses.fields(Curves) if f.name != "metrics")
