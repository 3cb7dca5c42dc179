"""A backend whose tensors keep narrow momenta: some are widened, stepped, narrowed.

Of so many tensors at a time as have `WIDE` elements together, or of a larger one alone,
there are float32 momenta; the backend that steps them knows nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lopax.torch import finite, narrow
from lopax.torch.backends import Backend
from lopax.torch.batch import Common
from lopax.torch.narrow import Stored
from lopax.torch.plain import Entry, PlainBackend
from lopax.torch.rule import Rule

WIDE = 1 << 22


class NarrowBackend:
    """See `backends.Backend`. `make`: a backend for one of the parts, which keeps what
    it knows of its tensors."""

    def __init__(self, make: Callable[[], Backend]):
        self._make = make
        self._looks, self._inner = PlainBackend(), [make()]
        self.name = self._inner[0].name

    def describe(self) -> str:
        return self._inner[0].describe()

    def begin(self, rule: Rule, entries: Sequence[Entry]) -> finite.Look:
        return self._looks.begin(rule, entries)

    def finish(
        self, rule: Rule, entries: Sequence[Entry], common: Common, alive: Tensor
    ) -> Tensor:
        held = torch.zeros((), dtype=torch.bool, device=alive.device)
        asked = finite.can_ask(alive)
        if asked and not alive:
            return held
        for i, part in enumerate(_parts(entries)):
            if i == len(self._inner):
                self._inner.append(self._make())
            inner, found = self._inner[i], _stored(part)
            wide = _opened(part, found)
            inner.begin(rule, wide)
            held = held | inner.finish(rule, wide, common, alive)
            arrays = [x for of_one in found for x in of_one.values()]
            new = [
                e.state[k] for e, names in zip(wide, found, strict=True) for k in names
            ]
            narrow.write(arrays, new, common.updates + 1, None if asked else alive)
        return held


def opened(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """The entries with the state that a rule knows, some at a time; all at once if they
    have it already. What is read may not be written."""
    if not any(_stored(entries)):
        yield entries
        return
    for part in _parts(entries):
        yield _opened(part, _stored(part))


def _parts(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """By the size of whole tensors: all processes must cut alike."""
    part: list[Entry] = []
    total = 0
    for e in entries:
        size = math.prod(e.place.shape)
        if part and total + size > WIDE:
            yield part
            part, total = [], 0
        part.append(e)
        total += size
    if part:
        yield part


def _stored(entries: Sequence[Entry]) -> list[dict[str, Stored]]:
    return [narrow.stored(e.state, 0, e.place.cut or 0) for e in entries]


def _opened(
    entries: Sequence[Entry], found: Sequence[dict[str, Stored]]
) -> list[Entry]:
    """Entries with wide momenta of their own."""
    wide = iter(narrow.widened([x for of_one in found for x in of_one.values()]))
    made = []
    for e, names in zip(entries, found, strict=True):
        gone = [k + narrow.UNITS for k in names]
        rest = {k: x for k, x in e.state.items() if k not in gone}
        made.append(e._replace(state=rest | {k: next(wide) for k in names}))
    return made
