"""Nearly orthogonal matrices in torch, also of sharded tensors.

The twin of `lopax.blocks.orthogonalize`, by the same plans (`_core.polar`). Its matrix
products follow `torch.set_float32_matmul_precision`; autocast does not reach them. A
sharded matrix costs one message for its scale and one for each Gram matrix: one in all
where the plan iterates on that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator

import torch
from torch import Tensor

from lopax._core import polar
from lopax.torch import finite
from lopax.torch.batch import Sum, complete
from lopax.torch.errors import UnsupportedParameter
from lopax.torch.product import Onto, commuting, gram, product

SMALL_ROW = 1e-5
"""For "mud": rows below this after the solve depend on earlier ones, and stay small."""

Sums = Generator[list[Sum], list[Tensor], Tensor]


def orthogonalize(
    x: Tensor,
    method: str = "auto",
    rounds: int | None = None,
    half: bool | None = None,
) -> Tensor:
    """Approximately U V^T for each matrix X = U S V^T [*n, r, c].

    As `lopax.blocks.orthogonalize.orthogonalize`, where the promises are; in float32,
    but for "auto" with `half`. `half`: whether "auto" multiplies in bfloat16, as
    `torch.optim.Muon` always does; None where `fast_half` says so.

    Raises `ValueError` for a method that is not in `_core.polar.CHOICES`, rounds below
    one, or a vector.
    """
    if x.ndim < 2:
        raise ValueError(
            f"only matrices can be orthogonalised, got shape {tuple(x.shape)}"
        )
    y, shape = x.float().unsqueeze(0), tuple(x.shape)
    matrix = (x.ndim - 2, x.ndim - 1)
    return complete(steps(y, matrix, shape, None, method, rounds, half))[0].to(x.dtype)


@functools.cache
def fast_half(device: torch.device) -> bool:
    """Whether this device multiplies in bfloat16 several times as fast."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    there = [getattr(torch.cpu, n, lambda: False)() for n in names]
    return device.type == "cpu" and any(there)


def steps(
    x: Tensor,
    matrix: tuple[int, int],
    shape: tuple[int, ...],
    cut: int | None,
    method: str,
    rounds: int | None,
    half: bool | None = None,
) -> Sums:
    """The Gram matrix is that of the shorter side, unless the shorter side is the one
    that is sharded: only a sum over the cut axis can be completed."""
    rows, cols = matrix
    if shape[rows] > shape[cols]:
        rows, cols = cols, rows
    if half is None:  # a compiled step does not ask the machine
        half = not torch.compiler.is_compiling() and fast_half(x.device)
    plan = polar.plan(method, rounds, shape[rows], shape[cols], half)
    if cut == rows:
        if plan.start == "rows":
            raise UnsupportedParameter(
                f"orthogonalizer {method!r} needs whole rows, and a parameter of shape "
                f"{shape} is sharded along axis {cut}, its shorter one: use 'auto' or "
                "'quintic'"
            )
        rows, cols = cols, rows
        plan = polar.plan(method, rounds, shape[rows], shape[cols], half)
    y = x.movedim((1 + rows, 1 + cols), (-2, -1))
    if cut is not None or not _ordinary(y):
        (size,) = yield [Sum(y.abs().sum((-2, -1), keepdim=True), (rows, cols))]
        mean = size / math.sqrt(shape[rows] * shape[cols])
        # Neither the sum nor the squares of what is left can leave float32's range.
        # Powers of two round nothing.
        power = -torch.where(size > 0.0, mean, 1.0).log2().round()
        half_way = torch.floor(0.5 * power)
        y = y * torch.exp2(half_way) * torch.exp2(power - half_way)
    if plan.solves:
        y = yield from _decorrelate(y, cols, plan.solves)
    elif plan.half:
        y = yield from _iterate_half(y, cols, plan, cut is None)
    elif plan.rounds:
        y = yield from _iterate(y, cols, plan)
    else:
        square = y.square().sum((-2, -1), keepdim=True)
        (square,) = yield [Sum(square, (rows, cols))]
        y = y * torch.rsqrt(torch.where(square > 0.0, square, 1.0))
    return y.movedim((-2, -1), (1 + rows, 1 + cols))


def _ordinary(y: Tensor) -> bool:
    """Whether it is known that fourth powers of the norms are far within float32."""
    if not finite.can_ask(y):
        return False
    norms = torch.linalg.vector_norm(y, dim=(-2, -1)).flatten().tolist()
    return all(n == 0.0 or 1e-8 < n < 1e8 for n in norms)


def _iterate(y: Tensor, cols: int, plan: polar.Plan) -> Sums:
    (square,) = yield [Sum(gram(y), (cols,))]
    scale = _start(square, plan.start)
    square = scale * square * scale.mT
    total, last = None, len(plan.rounds) - 1
    for i, coefficients in enumerate(plan.rounds):
        factor = _polynomial(square, coefficients)
        if plan.gram:
            total = factor if total is None else commuting(total, factor)
            if i < last:
                square = commuting(commuting(square, factor), factor)
            continue
        y = product(factor * scale.mT if i == 0 else factor, y)
        if i < last:
            (square,) = yield [Sum(gram(y), (cols,))]
    return y if total is None else product(total * scale.mT, y)


def _iterate_half(y: Tensor, cols: int, plan: polar.Plan, whole: bool) -> Sums:
    """With products in bfloat16, as many of them at once as there are matrices.

    `whole`: nothing is to be added to sums.
    """
    # What is stored on its side is multiplied from the right, and comes back as it was
    # stored: copies cost more.
    turned = y.stride(-2) < y.stride(-1)
    z = y.mT if turned else y
    shape, several = z.shape, math.prod(z.shape[:-2]) != 1
    x = z.bfloat16().contiguous()
    x = x.flatten(0, -3) if several else x.reshape(x.shape[-2:])

    def summed(z: Tensor) -> Sums:
        found = gram(z.mT if turned else z)
        if not whole:
            (found,) = yield [Sum(found.float(), (cols,))]
        return found.bfloat16()

    square = yield from summed(x)
    # Not into the factors of `Onto`: oneDNN compiles a program for each value of beta.
    start = (polar.HALF_START * _start(square.float(), plan.start)).bfloat16()
    x, square = x * start, square * start.float().square()
    square, together = square.bfloat16(), 2 if plan.gram else 1
    for i in range(0, len(plan.rounds), together):
        if i:
            square = yield from summed(x)
        pair = plan.rounds[i : i + together]
        a, factor, b = _factor(square, pair)
        operands = (x, factor) if turned else (factor, x)
        x = product(*operands, Onto(x, a, b))
    x = x.float().reshape(shape)
    return x.mT if turned else x


def _factor(
    square: Tensor, rounds: tuple[polar.Round, ...]
) -> tuple[float, Tensor, float]:
    """(a, F, b): one or two rounds multiply a matrix with this Gram matrix by a + b F.

    The multiples of one are apart, so that they are not rounded.
    """
    (a, b, c), *more = rounds
    if not more:
        if not c:
            return a, square, b
        return a, commuting(square, square, Onto(square, b, c)), 1.0
    first = commuting(square, square, Onto(square, b, c)) if c else b * square
    half = commuting(first, square, Onto(square, a))  # of the second Gram matrix
    then = commuting(half, first, Onto(half, a))
    d, second, scale = _factor(then, (*more,))
    both = first.mul(d).add_(second, alpha=a * scale)
    return a * d, commuting(second, first, Onto(both, 1.0, scale)), 1.0


def _polynomial(square: Tensor, coefficients: polar.Round) -> Tensor:
    """a + b G + c G^2 [*n, k, k]."""
    a, b, c = coefficients
    factor = b * square
    if c:
        factor.add_(commuting(square, square), alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


def _start(square: Tensor, start: str) -> Tensor:
    """What the rows of the matrix are multiplied by, [*n, 1, 1] or [*n, k, 1], so that
    no singular value is above one."""
    if start == "rows":
        bound = square.abs().sum(-1, keepdim=True)
    elif start == "schatten":
        rows = torch.linalg.vector_norm(square, dim=-1, keepdim=True)
        bound = torch.linalg.vector_norm(rows, dim=-2, keepdim=True)
    else:
        bound = square.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return torch.rsqrt(torch.where(bound > 0.0, bound, 1.0))


def _decorrelate(y: Tensor, cols: int, passes: int) -> Sums:
    """Gram-Schmidt with the inner products of the rows as they came: rows of length
    one, the lower triangle of their Gram matrix solved away, rows of length one."""
    for _ in range(passes):
        y = yield from _unit_rows(y, cols, 0.0)
        (square,) = yield [Sum(gram(y), (cols,))]
        y = torch.linalg.solve_triangular(square, y, upper=False, unitriangular=True)
        y = yield from _unit_rows(y, cols, SMALL_ROW)
    return y


def _unit_rows(y: Tensor, cols: int, least: float) -> Sums:
    (square,) = yield [Sum(y.square().sum(-1, keepdim=True), (cols,))]
    norm = torch.sqrt(torch.where(square > 0.0, square, 1.0))
    return y / norm.clamp_min(least)
