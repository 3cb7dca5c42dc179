"""Fused kernels for CUDA devices: which rules have some, and their launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lopax._core.sizes import SizeBounds
from lopax.rules.celo import Celo
from lopax.rules.celo_adam import CeloAdam
from lopax.rules.channels import ELEMENT, GROUPS, places
from lopax.rules.element_net import ARRAYS, ElementNet
from lopax.torch.batch import NOTHING, Common
from lopax.torch.cuda_backend import FusedCUDA
from lopax.torch.cuda_tables import CHUNK, ITEM, OUT, Tables
from lopax.torch.errors import BackendUnavailable
from lopax.torch.plain import Entry
from lopax.torch.rule import Rule

BLOCK = 512  # elements of a program at a time
RED = 64  # tiles of the factored sums
ROWS = 1024
PACKED = (
    tuple(g.name for g in GROUPS.values() if g.over == ELEMENT),
    *(("row", "row_rsqrt"), ("col", "col_rsqrt")),
)
"""The order of the channels whose first-layer weights the kernels are given."""


def create(rule: Rule) -> FusedCUDA:
    """The backend for a rule.

    Raises `BackendUnavailable` without Triton, or if there is no kernel for the rule.
    """
    try:
        import triton  # noqa: F401
    except ImportError:
        raise BackendUnavailable(
            "the fused CUDA kernels need Triton (pip install triton); or use "
            "backend='plain'"
        ) from None
    net = rule.element_net("")
    if isinstance(rule.rule, Celo) and net is not None:
        reason = _not_covered(net)
        if reason is None:
            return FusedCelo(rule)
        raise BackendUnavailable(f"{rule.name!r}: {reason}; use backend='plain'")
    if isinstance(rule.rule, CeloAdam):
        return FusedCeloAdam(rule)
    raise BackendUnavailable(
        f"there is no fused CUDA kernel for {rule.name!r}; use backend='plain'"
    )


def _not_covered(net: ElementNet) -> str | None:
    """What of a network the Triton kernels cannot do; None if they cover it."""
    fixed = ElementNet(
        hidden=4,
        exp_mult=net.exp_mult,
        epsilons=net.epsilons,
        bounds=net.bounds or SizeBounds(),
    )
    differ = [k for k, v in fixed._asdict().items() if v != getattr(net, k)]
    if not differ:
        return None
    told = ", ".join(f"{k} = {getattr(net, k)}" for k in differ)
    return f"the CUDA kernel is not for {told}"


class FusedCelo(FusedCUDA):
    """Celo: a statistics pass and an apply pass, with small kernels around them."""

    def __init__(self, rule: Rule):
        super().__init__(rule)
        net = rule.element_net("")
        assert net is not None and net.bounds is not None, "see create"
        zero = torch.zeros((), dtype=torch.float32, device=self._device)
        numbers = rule.numbers(NOTHING, Common(zero, zero))
        w0, *rest = (numbers.network[name] for name in ARRAYS)
        parts = [*(w0[0, list(places(names))] for names in PACKED), *rest]
        self._theta = torch.cat([p.flatten() for p in parts])
        momenta, second, factored = (1.0 - d for d in numbers.decays)
        self._rates = torch.cat([momenta, second])
        self._factored = factored
        self._exp_mult, self._bounds = net.exp_mult, net.bounds
        self._epsilons = net.epsilons

    def _examine(self, tables: Tables, flaw: Tensor) -> None:
        from lopax.torch import celo_triton_factors

        kernels: Any = celo_triton_factors
        kernels.factor_sums[(len(tables.sums),)](
            tables.geometry,
            tables.pointers,
            tables.sums,
            tables.scratch,
            flaw,
            self._limit,
            GRAD=tables.grad_type,
            OUT=OUT,
            RED=RED,
            CHUNK=CHUNK,
            num_warps=8,
        )

    def _advance(
        self, tables: Tables, members: list[Entry], scale: Tensor, alive: Tensor
    ) -> None:
        from lopax.torch import celo_triton, celo_triton_factors

        factors: Any = celo_triton_factors
        kernels: Any = celo_triton
        t, count = tables, len(members)
        if t.sizes is None:
            between = [self._bounds.of(e.place.shape, e.place.matrix) for e in members]
            t.sizes = torch.tensor(between, dtype=torch.float32, device=self._device)
        where = (t.geometry, t.pointers)
        seen = (self._limit, self._epsilons.second, self._epsilons.vector)
        types = {"PARAM": t.param_type, "GRAD": t.grad_type}
        factors.factor[(count, 2)](
            *where,
            t.scratch,
            self._theta,
            self._factored,
            alive,
            self._epsilons.channel,
            BLOCK=ROWS,
            num_warps=8,
        )
        if len(t.groups):
            factors.row_scales[(len(t.groups),)](
                *where, t.groups, t.scratch, alive, BLOCK=ROWS, num_warps=8
            )
        kernels.update[(len(t.items),)](
            *where,
            t.items,
            t.scratch,
            self._rates,
            alive,
            *seen,
            **types,
            BLOCK=BLOCK,
            ITEM=ITEM,
        )
        kernels.fold[(count,)](
            t.geometry,
            t.scratch,
            self._theta,
            t.sizes,
            scale,
            alive,
            self._epsilons.channel,
            ITEMS=128,
        )
        kernels.apply[(len(t.items),)](
            *where,
            t.settings,
            t.items,
            t.scratch,
            self._theta,
            scale,
            alive,
            self._exp_mult,
            *seen,
            **types,
            BLOCK=BLOCK,
            ITEM=ITEM,
        )


class FusedCeloAdam(FusedCUDA):
    """Celo-Adam: one pass to find flaws, one to step."""

    def __init__(self, rule: Rule):
        super().__init__(rule)
        self._b1, self._b2 = rule.config.b1, rule.config.b2

    def _examine(self, tables: Tables, flaw: Tensor) -> None:
        from lopax.torch import adam_triton

        kernels: Any = adam_triton
        kernels.find_flaw[(len(tables.items),)](
            tables.geometry,
            tables.pointers,
            tables.items,
            flaw,
            self._limit,
            GRAD=tables.grad_type,
            BLOCK=BLOCK,
            ITEM=ITEM,
        )

    def _advance(
        self, tables: Tables, members: list[Entry], scale: Tensor, alive: Tensor
    ) -> None:
        from lopax.torch import adam_triton

        kernels: Any = adam_triton
        steps = [e.state["step"] for e in members]
        torch._foreach_add_(steps, alive)  # pyright: ignore[reportPrivateImportUsage]
        t = torch.stack(steps).clamp_min(1.0)
        corrections = torch.stack([1.0 - self._b1**t, 1.0 - self._b2**t], 1)
        kernels.adam[(len(tables.items),)](
            tables.geometry,
            tables.pointers,
            tables.settings,
            corrections,
            tables.items,
            scale,
            alive,
            1.0 - self._b1,
            1.0 - self._b2,
            self._limit,
            PARAM=tables.param_type,
            GRAD=tables.grad_type,
            BLOCK=BLOCK,
            ITEM=ITEM,
        )
