"""The warnings lopax gives: something trains nothing, or not as it was meant to.

Each is said once for what it is about. All derive from `LopaxWarning`, so that a
program can silence them or make them errors: `warnings.simplefilter("error",
lopax.LopaxWarning)`.
"""

from __future__ import annotations

import sys
import warnings


class LopaxWarning(UserWarning):
    """Something trains nothing, or not as it was meant to."""


class HorizonWarning(LopaxWarning):
    """A run has gone on past the length its optimizer was told."""


class SkippedWarning(LopaxWarning):
    """Step after step is left out, because something is never finite."""


class StepSizeWarning(LopaxWarning):
    """A factor on the rule's steps is far from what the rule was trained for."""


class StackWarning(LopaxWarning):
    """Layers that lie in one array are about to be trained as one tensor."""


class GrowthWarning(LopaxWarning):
    """A parameter has become many times as large as such parameters usually are."""


FACTORS = (0.05, 20.0)
"""A factor on a rule's steps outside these is taken for a mistake."""


def far_from_one(factor: float) -> bool:
    """Whether a factor on every step is likely to be another optimizer's rate.

    Zero is not: it freezes.
    """
    return factor != 0.0 and not FACTORS[0] <= abs(factor) <= FACTORS[1]


def say(message: str, category: type[LopaxWarning]) -> None:
    """Warns in the name of the first caller outside lopax and the frameworks."""
    level, frame = 1, sys._getframe(1)
    own = ("lopax.", "torch.", "jax.", "optax.", "contextlib", "functools")
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(own):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)
