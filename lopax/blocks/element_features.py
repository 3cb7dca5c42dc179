"""What a per-element rule sees: named groups of channels, in the published order.

One declaration gives order, channel count and documentation. Every channel is an
array that broadcasts to the tensor's shape; row and column statistics keep size-1
axes, so that they cost their own size and not the tensor's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax.blocks.accumulators import FactoredViews


class ElementView(NamedTuple):
    """One tensor, after its accumulators were updated with the current gradient."""

    grad: Array  # [*shape], clipped
    param: Array  # [*shape]
    momenta: Array  # [K, *shape]
    second: Array  # [*shape]
    factored: FactoredViews


class FeatureGroup(NamedTuple):
    """A named group of channels."""

    name: str
    channels: int
    compute: Callable[[ElementView], Sequence[Array]]
    meaning: str


def _second_rsqrt(v: ElementView) -> Array:
    return jax.lax.rsqrt(v.second + 1e-6)


def _split(stack: Array) -> list[Array]:
    return [stack[k] for k in range(stack.shape[0])]


CELO_GROUPS: tuple[FeatureGroup, ...] = (
    FeatureGroup("grad", 1, lambda v: [v.grad], "gradient"),
    FeatureGroup(
        "clipped_grad",
        1,
        lambda v: [jnp.clip(v.grad, -0.1, 0.1)],
        "gradient clipped to +-0.1",
    ),
    FeatureGroup("param", 1, lambda v: [v.param], "parameter"),
    FeatureGroup("momenta", 3, lambda v: _split(v.momenta), "momenta"),
    FeatureGroup("second", 1, lambda v: [v.second], "second moment"),
    FeatureGroup(
        "adam",
        3,
        lambda v: _split(v.momenta * _second_rsqrt(v)),
        "momenta over root second moment",
    ),
    FeatureGroup("rsqrt", 1, lambda v: [_second_rsqrt(v)], "1 / root second moment"),
    FeatureGroup(
        "factored_grad",
        3,
        lambda v: _split(v.grad * v.factored.row_scale * v.factored.col_scale),
        "gradient over factored root second moment",
    ),
    FeatureGroup(
        "rms_grad",
        1,
        lambda v: [v.grad * _second_rsqrt(v)],
        "gradient over root second moment",
    ),
    FeatureGroup("row", 3, lambda v: _split(v.factored.row), "row second moment"),
    FeatureGroup("col", 3, lambda v: _split(v.factored.col), "column second moment"),
    FeatureGroup(
        "row_rsqrt",
        3,
        lambda v: _split(jax.lax.rsqrt(v.factored.row + 1e-8)),
        "1 / root row second moment",
    ),
    FeatureGroup(
        "col_rsqrt",
        3,
        lambda v: _split(jax.lax.rsqrt(v.factored.col + 1e-8)),
        "1 / root column second moment",
    ),
    FeatureGroup(
        "factored_momenta",
        3,
        lambda v: _split(v.momenta * v.factored.row_scale * v.factored.col_scale),
        "momenta over factored root second moment",
    ),
)
"""The fourteen groups (30 channels) of VeLO and Celo (Metz et al., 2022, arXiv
2211.09760; Moudgil et al., 2025, arXiv 2501.12670)."""


def _adam_groups(eps: float) -> tuple[FeatureGroup, FeatureGroup, FeatureGroup]:
    """The three groups that divide by sqrt(second moment + eps)."""

    def scale(v: ElementView) -> Array:
        return jax.lax.rsqrt(v.second + eps)

    return (
        FeatureGroup(
            "adam",
            3,
            lambda v: _split(v.momenta * scale(v)),
            "momenta over root second moment",
        ),
        FeatureGroup("rsqrt", 1, lambda v: [scale(v)], "1 / root second moment"),
        FeatureGroup(
            "rms_grad",
            1,
            lambda v: [v.grad * scale(v)],
            "gradient over root second moment",
        ),
    )


def _factored_momenta(vector_eps: float) -> FeatureGroup:
    """Momenta over the factored root second moment, where vectors, which have no
    factors, use rsqrt(second moment + `vector_eps`)."""

    def compute_group(v: ElementView) -> list[Array]:
        if v.grad.ndim == 1:
            return _split(v.momenta * jax.lax.rsqrt(v.factored.row + vector_eps))
        return _split(v.momenta * v.factored.row_scale * v.factored.col_scale)

    return FeatureGroup(
        "factored_momenta", 3, compute_group, "momenta over factored root second moment"
    )


_BY_NAME = {g.name: g for g in CELO_GROUPS}

VELO_GROUPS: tuple[FeatureGroup, ...] = (*CELO_GROUPS[:-1], _factored_momenta(0.0))
"""VeLO's fourteen groups (30 channels). The accumulators' own 1e-30 keeps the last
group finite for vectors."""

ADAFAC_GROUPS: tuple[FeatureGroup, ...] = (
    *(_BY_NAME[n] for n in ("grad", "param", "momenta", "second", "adam", "rsqrt")),
    *(_BY_NAME[n] for n in ("factored_grad", "row", "col", "row_rsqrt", "col_rsqrt")),
    _factored_momenta(1e-6),
)
"""Twelve groups (28 channels) of Adafac-MLP and STAR (Metz et al., 2022, arXiv
2203.11860; Harrison et al., 2022, arXiv 2209.11208)."""

_ADAM, _RSQRT, _RMS_GRAD = _adam_groups(1e-8)

CELO2_MATRIX_GROUPS: tuple[FeatureGroup, ...] = tuple(
    {"adam": _ADAM, "rsqrt": _RSQRT, "rms_grad": _RMS_GRAD}.get(g.name, g)
    for g in CELO_GROUPS
)
"""Celo's fourteen groups with a smaller epsilon (Moudgil et al., 2026, arXiv
2602.19142)."""

CELO2_VECTOR_GROUPS: tuple[FeatureGroup, ...] = CELO2_MATRIX_GROUPS[:9]
"""The first nine of them (15 channels): tensors without rows and columns."""


def count(groups: Sequence[FeatureGroup]) -> int:
    """Total number of channels."""
    return sum(g.channels for g in groups)


def compute(groups: Sequence[FeatureGroup], view: ElementView) -> list[Array]:
    """All channels in order."""
    channels: list[Array] = []
    for group in groups:
        found = list(group.compute(view))
        assert len(found) == group.channels, group.name
        channels += found
    return channels
