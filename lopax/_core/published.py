"""Arrays under published names: every one of them is used, or known not to act."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lopax._core.errors import StructureMismatch

INACTIVE = frozenset(
    f"rnn_params/{layer}/{leaf}"
    for layer in ("linear", "rnn_to_controls")
    for leaf in ("w", "b")
)
"""Arrays of the published schedulers that no output depends on."""


class _Noted(dict[str, Any]):
    """Remembers which of its entries were read by name."""

    def __init__(self, arrays: dict[str, Any]):
        super().__init__(arrays)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def check_theta(rule: str, want: Mapping[str, str], have: Mapping[str, str]) -> None:
    """Raises `StructureMismatch` unless arrays, as text by their names, are a theta."""
    if want != have:
        raise StructureMismatch.between(
            f"theta for architecture {rule!r}",
            want,
            have,
            "Was it trained with another architecture or other sizes?",
        )


def translate(
    rule: str,
    arrays: dict[str, Any],
    translator: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """`translator(arrays)`: arrays under our names, or the same object if these are
    not the rule's published names.

    Raises `StructureMismatch` if the translator misses an array, cannot use its shape,
    or leaves one over (a file of another architecture, or a damaged name).
    """
    given = _Noted(arrays)
    try:
        ours = translator(given)
    except KeyError as missing:
        raise StructureMismatch(
            f"published theta for architecture {rule!r}: there is no array {missing}"
        ) from None
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise StructureMismatch(
            f"published theta for architecture {rule!r}: {error}"
        ) from None
    if ours is given:
        return dict(arrays)
    left = sorted(set(given) - given.read - INACTIVE)
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise StructureMismatch(
            f"published theta for architecture {rule!r}: it has no use for "
            f"{', '.join(map(repr, left[:5]))}{more}. Is it for another architecture, "
            "or is the file damaged?"
        )
    return ours
