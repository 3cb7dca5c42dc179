"""Choosing how the arithmetic is done: plain torch operations or fused kernels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lopax._core import native_build
from lopax.torch import finite
from lopax.torch.batch import Common
from lopax.torch.errors import BackendUnavailable
from lopax.torch.plain import Entry, PlainBackend
from lopax.torch.rule import Rule

BACKENDS = ("auto", "plain", "fused")


class Backend(Protocol):
    """Steps the entries of one device, in two halves.

    Between them the optimizer learns whether the step counts, and the scheduler runs.
    """

    name: str

    def describe(self) -> str:
        """Its name, and what it does not do and why, for `info()`."""
        ...

    def begin(self, rule: Rule, entries: Sequence[Entry]) -> finite.Look:
        """Whether some gradient is not finite, and whether all are surely within the
        rule's bound. Changes nothing."""
        ...

    def finish(
        self, rule: Rule, entries: Sequence[Entry], common: Common, alive: Tensor
    ) -> Tensor:
        """Updates parameters and states in place.

        Returns [] bool: somewhere the step was not finite. There, parameters stay.
        """
        ...


class Job(NamedTuple):
    """The entries of one device in a step, and who steps them."""

    rule: Rule
    backend: Backend
    entries: Sequence[Entry]

    @property
    def device(self) -> torch.device:
        return self.entries[0].param.device


def choose(requested: str, rule: Rule, device: torch.device) -> Backend:
    """The backend for the entries of `device` that are not sharded.

    Raises `BackendUnavailable` if `requested` is "fused" and there is no fused kernel
    for this rule, its settings and this device; "auto" then falls back to plain.
    """
    if requested == "plain":
        return PlainBackend("it was asked for")
    try:
        return _fused(rule, device)
    except BackendUnavailable as error:
        if requested == "fused":
            raise
        if not error.expected:
            warnings.warn(
                f"{error} The plain rule is used. Set LOPAX_KERNELS=off to silence "
                "this.",
                RuntimeWarning,
                stacklevel=2,
            )
        return PlainBackend(str(error))


def _fused(rule: Rule, device: torch.device) -> Any:
    if native_build.switched_off():
        raise BackendUnavailable("LOPAX_KERNELS is off; use backend='plain'")
    if device.type == "cpu":
        from lopax.torch import fused_cpu

        return fused_cpu.create(rule)
    if device.type == "cuda":
        from lopax.torch import fused_cuda

        return fused_cuda.create(rule)
    raise BackendUnavailable(
        f"there are no fused kernels for device {device.type!r}; use backend='plain'"
    )
