"""How a matrix is made nearly orthogonal: methods, their numbers, and their cost.

X = U S V^T becomes U f(S) V^T with f near one, by odd polynomials applied in rounds,
x -> a x + b x^3 + c x^5. The numbers are here, once, for `blocks.orthogonalize` (JAX)
and `torch.orthogonalize`. Nothing here needs an array.

`floor` is where f arrives: singular values above `floor` times the norm of the start
end in [low, high], smaller ones below high.

| method | start | rounds | floor | low, high | products of a square matrix |
|---|---|---|---|---|---|
| quintic | Frobenius | 5 | 0.0015 | 0.67, 1.21 | 15 |
| gram | Frobenius | 5 | 0.0015 | 0.67, 1.21 | 19 |
| polar | Frobenius | 5 | 0.0011 | 0.86, 1.13 | 15 |
| cubic | Schatten-4 | 5 | 0.0070 | 0.77, 1.31 | 10 |
| express | Schatten-4 | 4 | 0.0030 | 0.78, 1.22 | 12 |
| | | 5 | 0.0010 | 0.86, 1.14 | 15 |
| turbo | row sums | 4 | 0.0052 | 0.68, 1.21 | 12 |
| mud | - | 1 | - | - | 2, one with a triangle |

Sources. quintic: Jordan et al., Muon (2024). polar: Amsel et al. (2025, arXiv
2505.16932), slopes lowered by 1 % as published. express: numbers made as theirs are
(each round the best polynomial of degree five on the interval that the one before
arrives in, 1.5 % longer), but for a start from the Schatten-4 norm, which is nearer to
the largest singular value, so that a round fewer is enough. cubic: Huang (2026, arXiv
2606.00371). Schatten-4 norm at the start: Grishina et al. (2025, arXiv 2506.10935). Row
sums of the Gram matrix, one round fewer: Boissin et al., Turbo-Muon (2025, arXiv
2512.04632); the coefficients stay Muon's, for those that go with it elsewhere, (4.0098,
-7.0585, 2.4635), turn the sign of a matrix of rank one. Iterating on the Gram matrix,
with a restart in half precision: Dao et al. (gram-newton-schulz, 2026). mud: Southworth
and Thomas (2026, arXiv 2603.17970).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

Round = tuple[float, float, float]


class Method(NamedTuple):
    """One way to orthogonalise."""

    rounds: tuple[Round, ...]  # a, b, c of each
    start: str  # "frobenius", "schatten", "rows": what the matrix is divided by
    form: str  # "direct", "gram", or "cheaper": by the shape
    solves: int = 0  # passes with a triangular solve, in place of rounds
    low: float = 0.0  # singular values from `floor` on end at or above this
    high: float = 1.0  # all end at or below this
    floor: float = 1.0  # in units of the norm of the start


class Plan(NamedTuple):
    """What is to be done with matrices of one shape."""

    rounds: tuple[Round, ...]
    start: str
    gram: bool  # iterate on the Gram matrix, multiply once at the end
    solves: int
    half: bool = False  # products in bfloat16, from a start that is `HALF_START` of it;
    # `gram` then means two rounds on the Gram matrix at a time


_QUINTIC = ((3.4445, -4.7750, 2.0315),) * 5
_POLAR = tuple(
    (a / 1.01, b / 1.01**3, c / 1.01**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    )
)
_CUBIC = (
    (3.3656576, -3.3420992, 0.0),
    (2.5744352, -1.4957376, 0.0),
    (2.5368962, -1.4312570, 0.0),
    (2.4418906, -1.2764040, 0.0),
    (2.2230472, -0.9630650, 0.0),
)

EXPRESS: Mapping[int, Method] = MappingProxyType(
    {
        4: Method(
            (
                (8.261672, -23.69138, 17.04581),
                (3.990364, -2.885546, 0.5296065),
                (3.481932, -2.535634, 0.4917994),
                (2.501331, -1.80203, 0.4143586),
            ),
            *("schatten", "cheaper", 0, 0.78, 1.22, 0.0030),
        ),
        5: Method(
            (
                (8.345817, -24.01394, 17.29489),
                (4.123677, -2.975166, 0.5393345),
                (3.916939, -2.835857, 0.524222),
                (3.283093, -2.39448, 0.4766563),
                (2.292829, -1.627975, 0.3968111),
            ),
            *("schatten", "cheaper", 0, 0.86, 1.14, 0.0010),
        ),
    }
)
"""The numbers of "express" by their rounds: more reach further down."""
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "quintic": Method(_QUINTIC, "frobenius", "direct", 0, 0.67, 1.21, 0.0015),
        "gram": Method(_QUINTIC, "frobenius", "gram", 0, 0.67, 1.21, 0.0015),
        "polar": Method(_POLAR, "frobenius", "cheaper", 0, 0.86, 1.13, 0.0011),
        "cubic": Method(_CUBIC, "schatten", "cheaper", 0, 0.77, 1.31, 0.0070),
        "express": EXPRESS[4],
        "turbo": Method(_QUINTIC[1:], "rows", "cheaper", 0, 0.68, 1.21, 0.0052),
        "mud": Method((), "rows", "direct", 1),
    }
)
CHOICES = (*METHODS, "auto")
FAR = 512
"""The shorter side up to which "express" takes four rounds, and five beyond. So it is
within 0.26 of the polar factor (relative distance) for normally distributed elements
and for singular values 1, 1/2, 1/3, ... from 16 up to 1024; "quintic" within 0.39.
Values below the floor grow 250-fold or more (485-fold in "quintic"). That matters as
much: momenta of images have many such, and with the 76-fold of three rounds made for a
floor of 0.01 Learned Muon's final losses were 1.15 to 2 times as large."""

HALF_START, HALF_SIDE, HALF_SPEED = 0.99, 128, 3.5
"""In bfloat16 a largest singular value of one may come out above it, where "cubic"
turns the sign: it starts a little lower. Products in bfloat16 pay from a shorter side
of 128 on, and count as so many times faster. On the Gram matrix they can iterate for
two rounds at most: small singular values are below its rounding errors, and would go
lost, or grow, over more."""


def plan(
    method: str, rounds: int | None, short: int, long: int, half: bool = False
) -> Plan:
    """How to orthogonalise matrices of `short` by `long`.

    "auto" is "express", in bfloat16 where that pays; of a single row or column it is
    the exact answer.

    **Arguments:**

    - `method`: one of `CHOICES`.
    - `rounds`: None for the method's own, by the shape for "express". Fewer leave out
        the first ones, so that small singular values stay smaller and large ones end as
        near one; more repeat the last.
    - `short`: the side of the Gram matrix.
    - `half`: there is fast arithmetic in bfloat16, which "auto" may then use.

    Raises `ValueError` for another method or for rounds below one.
    """
    if method not in CHOICES:
        raise ValueError(
            f"no way to orthogonalise is called {method!r}: choose from "
            f"{', '.join(CHOICES)}"
        )
    if rounds is not None and rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if method == "auto":
        if min(short, long) == 1:
            return Plan((), "frobenius", True, 0)
        best = plan("express", rounds, short, long)
        if not half or min(short, long) < HALF_SIDE:
            return best
        ways = [best._replace(gram=g, half=True) for g in (False, True)]
        fast = min(ways, key=lambda p: flops(p, short, long))
        pays = flops(fast, short, long) < HALF_SPEED * flops(best, short, long)
        return fast if pays else best
    found = METHODS[method]
    if found.solves:
        return Plan((), found.start, False, rounds or found.solves)
    if method == "express":
        # The same numbers for a shard whose Gram matrix is that of the longer side.
        rounds = rounds or (4 if min(short, long) <= FAR else 5)
        found = EXPRESS[min(max(rounds, min(EXPRESS)), max(EXPRESS))]
    steps = found.rounds
    if rounds is not None:
        more = max(0, rounds - len(steps))
        steps = (*steps, *steps[-1:] * more)[-rounds:]
    gram = found.form == "gram"
    if found.form == "cheaper":
        ways = [Plan(steps, found.start, g, 0) for g in (False, True)]
        gram = min(ways, key=lambda p: flops(p, short, long)).gram
    return Plan(steps, found.start, gram, 0)


def blocks(side: int, inner: int, half: bool = False) -> int:
    """Into how many rows and columns of blocks a symmetric product [side, inner] x
    [inner, side] is cut on a CPU; the upper ones are copies of the lower ones.

    Four by four take 0.7 to 0.8 of the time in XLA and torch, two by two 0.8 to 0.85.
    In bfloat16 (`half`), where copies cost more beside the product, it must be larger.
    """
    if side < 512 or (half and side * side * inner < 2**28):
        return 1
    return 4 if side >= 1024 else 2


def flops(plan: Plan, short: int, long: int, whole: bool = False) -> float:
    """Multiplications and additions of the matrix products on a CPU; `whole`: if none
    was cut into blocks."""
    if plan.solves:
        return 3.0 * plan.solves * short * short * long
    if not plan.rounds:
        return 2.0 * short * long

    def symmetric(inner: int) -> float:
        cut = 1 if whole else blocks(short, inner, plan.half)
        return (1.0 + 1.0 / cut) * short * short * inner

    # Rounds on one Gram matrix, made of the matrix before and multiplied with it after.
    together = (2 if plan.half else len(plan.rounds)) if plan.gram else 1
    times = -(-len(plan.rounds) // together)
    squares = sum(c != 0.0 for _, _, c in plan.rounds)
    small = squares + 3 * (len(plan.rounds) - times)
    thin = symmetric(long) + 2.0 * short * short * long
    return thin * times + symmetric(short) * small
