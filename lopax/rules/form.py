"""What a learned rule is, whichever framework runs it.

A rule is data (its configuration, the shapes of its meta-parameters and of what it
keeps) and a few small functions of arrays. It sees one tensor as [*lead, *s]: `s` is
the tensor's shape, of rank one or more, and `lead` whatever the driver batches over (()
in JAX, which has `vmap`; the number of equal tensors in torch). So a rule counts axes
from the end and leaves what is in front alone; `Place` has the helpers for it.

Sums over a whole tensor are requests (`yield [Sum(...)]`), because in torch a tensor
may be spread over processes: the driver completes those of all tensors in one message.
"""

from __future__ import annotations

import abc
from collections.abc import Generator, Mapping
from typing import Any, ClassVar, NamedTuple

from lopax._core.run import Run
from lopax.rules.ops import Array, Arrays, Draw, Ops
from lopax.rules.place import Place, Sum

Steps = Generator[list[Sum], list[Array], Any]
"""Yields sums to be completed, is sent them complete, returns the result."""


class Keeps(NamedTuple):
    """One array of a tensor's state: `(copies, *shape)`, without the first entry if
    `copies` is 0; with `units`, so many numbers behind each element. All zeros at
    first, unless the rule's `starts` says otherwise."""

    copies: int = 0
    each: bool = True  # an entry per element; else the tensor has one
    units: int = 0
    counts: bool = False  # the updates made of this tensor before; the driver counts
    line: str = ""  # one of `LINES`: an entry per row, column or output, not element

    def axes(self, place: Place) -> tuple[int, ...] | None:
        """The tensor's axes that the array has; None: the tensor has no such array."""
        if self.line == "output":
            return place.reading[-1:]
        if self.line == "vector":
            return place.all_axes if place.factored is None else None
        if self.line and place.factored is None:
            return None
        if self.line:
            d1, d0 = place.factored or (0, 0)
            gone = d0 if self.line == "row" else d1
            return tuple(a for a in place.all_axes if a != gone)
        return place.all_axes if self.each else ()


LINES = ("row", "col", "vector", "output")
"""What a factored moment keeps: an entry per row (all but the largest axis), per column
(all but the second largest), or, of vectors, which have neither, per element. "output":
an entry per index of the output's axis alone."""


EACH = Keeps()
COUNT = Keeps(each=False, counts=True)
"""A field of the state that the driver fills: updates made of the tensor before this
one, float32 [*lead]. In torch tensors may join late or be left out of a step."""


def counted(keeps: Any) -> set[str]:
    """The fields that the driver fills, of what `Rule.keeps` returned."""
    fields = keeps._asdict().items()
    return {k for k, v in fields if isinstance(v, Keeps) and v.counts}


class Rows(NamedTuple):
    """What `advance` sees of the N tensors of a step."""

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # N, may be 0
    summaries: Array  # [N, F] what `summarise` returned
    carried: Any  # the rule's `Rows`, [N, ...] each


class Advance(NamedTuple):
    """What `advance` returns."""

    shared: Any  # the next shared state
    scale: Array  # [] the rule's learning-rate-like number, for reports
    carried: Any = None  # the next rows; None: as they were
    told: Mapping[str, Array] = {}  # each [N, ...]: a row per tensor
    common: Mapping[str, Array] = {}  # small arrays for every tensor


class StepContext(NamedTuple):
    """What one step of a tensor goes by."""

    place: Place
    scale: Array  # [] what `advance` returned
    updates: Array  # [] updates made before this one
    told: Arrays  # each [*lead, ...]
    common: Arrays


class Rule(abc.ABC):
    """A learned rule with its settings. It has no arrays of its own: theta, what is
    shared, rows and states are handed in, as nested dicts and named tuples."""

    name: ClassVar[str]
    reference: ClassVar[str]
    config_class: ClassVar[type]
    needs_loss: bool = False
    needs_horizon: bool = False
    grad_clip: ClassVar[float] = 1000.0
    """Gradients are clipped to +- this before anything sees them."""
    roles: ClassVar[tuple[str, ...]] = ()
    """What the configuration's `routes` may call a tensor; () if all are alike."""
    elementwise: ClassVar[tuple[str, ...]] = ()
    """Roles whose step is the same for parts of a tensor: a driver may step large ones
    a part at a time, so that what is between stays in the processor's cache."""
    sees_tensors: ClassVar[bool] = True
    """Whether the step of an element depends on others of its tensor, so that a stack
    of tensors is not stepped as they are."""
    takes_validation: ClassVar[bool] = False
    num_summaries: int = 0
    """F, for rules with `summarise`."""
    summaries_need_gradients: bool = True
    """Whether `summarise` looks at them."""
    flattens: bool = False
    """Whether tensors of four or more axes (convolutions) are one matrix to it: all
    axes but the output's together."""
    num_starts: int = 0
    """S, for rules with `measure`."""

    def __init__(self, config: Any = None):
        self.config = self.config_class() if config is None else config

    @abc.abstractmethod
    def init_theta(self, draw: Draw, key: Any) -> Any:
        """Fresh meta-parameters: nested dicts of what `draw` returns."""

    @abc.abstractmethod
    def keeps(self, role: str) -> Any:
        """The state of one tensor: a named tuple with a `Keeps` for each array, None
        for what is not kept, or such a named tuple again. The arrays' own names tell
        them apart."""

    def starts(self, xp: Ops, theta: Any) -> Arrays:
        """First values other than zero of fields of the state: [copies] or [units]."""
        del xp, theta
        return {}

    def measure(self, xp: Ops, place: Place, param: Array) -> Steps:
        """[*lead, S] numbers about a tensor's first values, for the two below."""
        raise NotImplementedError(f"{self.name!r} does not measure tensors")

    def init_shared(self, xp: Ops, theta: Any, num_steps: Array, starts: Array) -> Any:
        """State common to all tensors: a named tuple.

        **Arguments:**

        - `num_steps`: [] the horizon, 0 without one.
        - `starts`: [N, S] what `measure` said of all tensors.
        """
        del xp, theta, num_steps, starts
        return ()

    def init_rows(self, xp: Ops, theta: Any, shared: Any, starts: Array) -> Any:
        """What `advance` carries from step to step of each tensor: a named tuple of
        [N, ...], N the number of rows of `starts` [N, S]."""
        del xp, theta, shared, starts
        return ()

    def gradient_bound(self, xp: Ops, shared: Any) -> Any:
        """[] a bound that moves, within `grad_clip`; None: there is none."""
        del xp, shared
        return None

    def summarise(
        self, xp: Ops, theta: Any, place: Place, grad: Array, state: Any, param: Array
    ) -> Steps:
        """[*lead, F] numbers about a tensor, for `advance`. `state` is the one before
        this gradient; nothing is changed."""
        raise NotImplementedError(f"{self.name!r} has no summaries")

    @abc.abstractmethod
    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        """Advances what the tensors share, once a step."""

    @abc.abstractmethod
    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: Any,
        param: Array,
    ) -> Steps:
        """(what to add to the parameters [*lead, *s], the next state).

        `grad` is finite and clipped.
        """

    def observe_validation(self, xp: Ops, shared: Any, loss: Array) -> Any:
        """What is shared after a look at the (finite) loss [] on validation data."""
        del xp, loss
        return shared

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Published path names and arrays to ours, flat; the same object if they are
        not the rule's published ones."""
        return arrays


def complete(steps: Steps) -> Any:
    """Runs a rule on tensors that are whole: every sum is complete as it is."""
    try:
        sums = next(steps)
        while True:
            sums = steps.send([s.value for s in sums])
    except StopIteration as done:
        return done.value


def no_sums() -> Steps:
    """For `yield from` in a step that needs no sums over a tensor."""
    yield from ()
