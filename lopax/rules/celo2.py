"""Celo2: a learned direction of fixed size, orthogonalised for hidden matrices.

Moudgil, Knyazev and Belilovsky, "Celo2: Towards Learned Optimization Free Lunch"
(2026, arXiv 2602.19142). Celo's per-element MLP without Celo's scheduler and magnitude:
its output is scaled to unit root mean square per matrix, and times `step_mult`, about
as large as one element should move, it is the step.

Each tensor has a role, by name, rank or predicate (`_core.routing`):

- "orthogonal": the learned direction, orthogonalised as in Muon (`orthogonalizer`);
- "learned": the learned direction;
- "adam": Adam at `adam_mult` times the step.

`celo2` gives vectors, embeddings and layers over a vocabulary to Adam, orthogonalises
the rest, and input and output layers are better listed as "adam" too. `celo2_base`
gives everything to the learned rule.

Published, steps keep their size, and each position of a convolution's window is a
matrix. Two settings change that: with `schedule = "cosine"` the steps fall to
zero over the run, which then needs its length, and `convolutions = "flat"` makes one
matrix of a kernel, (window x in) by out, as Muon does. The bundled weights were trained
with both and include them.

Does not need the loss. 329 meta-parameters (30 -> 8 -> 8 -> 1); the
published tree has 347, of which the magnitude and a third output do not act and are
dropped. Vectors use 15 of the 30 channels.

Parity with the published code is 1e-5 without orthogonalisation and about 1e-4 with it,
because the iteration amplifies rounding in small singular values.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from lopax._core import polar, routing
from lopax._core.config import check_choice, check_range
from lopax._core.routing import Route
from lopax._core.run import Run
from lopax.rules import channels, form, layers, moments, published
from lopax.rules.element_net import Decays, ElementNet, Epsilons, Numbers
from lopax.rules.element_rule import ElementRule, check_backend
from lopax.rules.form import (
    Advance,
    Place,
    Rows,
    StepContext,
    Steps,
    Sum,
)
from lopax.rules.moments import AdamMoments
from lopax.rules.ops import Array, Arrays, Draw, Ops

ROLES = ("orthogonal", "learned", "adam")
SCHEDULES = ("constant", "cosine")
CONVOLUTIONS = ("slices", "flat")
ADAM_ROUTES = routing.vectors_and_tables("adam")
DECAYS = Decays((0.9, 0.99, 0.999), (0.95,), (0.9, 0.99, 0.999))
EPS = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Celo2Config:
    """Settings of `Celo2`; the defaults fit the published weights."""

    hidden: int = 8
    """Width of the MLP's two hidden layers."""
    step_mult: float = 1e-3
    """Root mean square of a step, at the start of the run."""
    schedule: str = "constant"
    """"cosine": steps fall to zero over the run, whose length must then be given."""
    convolutions: str = "slices"
    """What is a matrix in a tensor of four or more axes: the last two at each place of
    the others, or ("flat") the last one against all others together."""
    orthogonalizer: str = "quintic"
    """How hidden matrices are orthogonalised, one of `_core.polar.CHOICES`: as
    published, or ("auto") as cheaply as their shapes allow."""
    orthogonalize_every: int = 1
    """Hidden matrices move, so many times as far, in every so many-th step only; in
    between their gradients go into the accumulators."""
    exp_mult: float = 0.0
    """Scale of a log-magnitude output; 0 (as published) means there is none."""
    weight_decay: float = 0.0
    """Decoupled; each step removes this times the tensor's step size."""
    adam_mult: float = 20.0
    """Step size of the role "adam" in units of `step_mult`."""
    b1: float = 0.9
    b2: float = 0.95
    bias_correction: bool = False
    """Correct Adam's moments; published meta-training does not, deployment does."""
    routes: tuple[Route, ...] = ADAM_ROUTES
    default_role: str = "orthogonal"
    backend: str = "auto"
    """As Celo's; the kernel serves vectors and matrices."""

    def __post_init__(self) -> None:
        check_range(self, "hidden", low=1)
        check_range(self, "step_mult", above=0.0)
        check_choice(self, "schedule", SCHEDULES)
        check_choice(self, "convolutions", CONVOLUTIONS)
        check_choice(self, "orthogonalizer", polar.CHOICES)
        check_range(self, "orthogonalize_every", low=1)
        check_range(self, "exp_mult", low=0.0)
        check_range(self, "weight_decay", low=0.0)
        check_range(self, "adam_mult", above=0.0)
        check_range(self, "b1", low=0.0, below=1.0)
        check_range(self, "b2", low=0.0, below=1.0)
        routing.check_roles(self, self.routes, self.default_role, ROLES)
        check_backend(self)

    @property
    def element_net(self) -> ElementNet:
        return ElementNet(
            hidden=self.hidden,
            outputs=2 if self.exp_mult else 1,
            exp_mult=self.exp_mult,
            vector_channels=channels.CELO2_VECTOR,
            epsilons=Epsilons(second=1e-8, channel=EPS),
            per_matrix=True,
            hold_unreached=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Celo2BaseConfig(Celo2Config):
    """Settings of `Celo2Base`: the learned rule for every tensor."""

    routes: tuple[Route, ...] = ()
    default_role: str = "learned"


class Celo2(ElementRule):
    """See the module docstring. Example: `lopax.optimizer("celo2", theta=theta)`."""

    name: ClassVar[str] = "celo2"
    reference: ClassVar[str] = "Moudgil et al., 2026, arXiv 2602.19142"
    config_class: ClassVar[type] = Celo2Config
    roles: ClassVar[tuple[str, ...]] = ROLES
    only_elements: ClassVar[bool] = False
    elementwise: ClassVar[tuple[str, ...]] = ("adam",)
    config: Celo2Config

    @property
    def needs_horizon(self) -> bool:  # type: ignore[override]
        return self.config.schedule != "constant"

    @property
    def flattens(self) -> bool:  # type: ignore[override]
        return self.config.convolutions == "flat"

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c, net = self.config, self.config.element_net
        sizes = (net.num_channels, c.hidden, c.hidden, net.outputs)
        return {"rule": layers.mlp_init(draw, key, sizes)}

    def keeps(self, role: str) -> Any:
        if role == "adam":
            return moments.ADAM_KEEPS
        return super().keeps(role)

    def element_net(self, role: str) -> ElementNet | None:
        return None if role == "adam" else super().element_net(role)

    def advance(
        self, xp: Ops, theta: Any, shared: Any, run: Run, rows: Rows
    ) -> Advance:
        size = xp.constant(self.config.step_mult)
        if self.needs_horizon:
            size = size * 0.5 * (1.0 + xp.cos(math.pi * run.fraction))
        return Advance(shared, size)

    def numbers(
        self, xp: Ops, theta: Any, scale: Array, told: Arrays, common: Arrays
    ) -> Numbers:
        """The network's step is the direction itself."""
        return Numbers(theta["rule"], moments.fixed(xp, DECAYS), xp.constant(-1.0))

    def finish(
        self, xp: Ops, theta: Any, at: StepContext, step: Array, state: Any, param: Any
    ) -> Steps:
        """Minus the step size times the direction as the role wants it: of unit root
        mean square per matrix, zero where there never was a gradient."""
        place, size = at.place, -at.scale
        if place.role == "orthogonal" and place.rank > 1:
            every, method = self.config.orthogonalize_every, self.config.orthogonalizer

            def moved() -> Steps:
                found = yield from xp.orthogonalize_each(step, place, method)
                return (yield from _of_unit_size(xp, place, found, size * float(every)))

            delta = yield from xp.every(every, at.updates, moved, step.shape)
        else:
            delta = yield from _of_unit_size(xp, place, step, size)
        delta = moments.hold_unreached(xp, place, delta, state)
        if self.config.weight_decay:
            delta = delta - at.scale * self.config.weight_decay * param
        return delta

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: AdamMoments,
        param: Array,
    ) -> Steps:
        """Adam's direction with epsilon under the root."""
        yield from form.no_sums()
        c = self.config
        state = moments.adam(xp, state, grad, c.b1, c.b2)
        second, size = state.second, at.scale * c.adam_mult
        gain = -size
        if c.bias_correction:
            t = at.place.column(state.step + 1.0)
            gain = gain / (1.0 - c.b1**t)
            second = second / (1.0 - c.b2**t)
        delta = xp.adam(gain, state.momentum, second, 1e-8, 0.0)
        if c.weight_decay:
            delta = delta - size * c.weight_decay * param
        return delta, state

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        w1 = arrays.get(f"{published.BANK}w1")
        if w1 is None or w1.ndim != 2:
            return arrays
        outputs = (0, 1) if self.config.exp_mult else (0,)
        rule = published.mlp(arrays, published.BANK, outputs)
        return published.under("rule", rule)


def _of_unit_size(xp: Ops, place: Place, direction: Array, size: Array) -> Steps:
    """`size` times the direction [*lead, *s] at unit root mean square per matrix."""
    over = place.matrix
    behind = tuple(a - place.rank for a in over)
    squares = xp.sum_squares(direction, axis=behind, keepdims=True)
    (squares,) = yield [Sum(squares, over)]
    count = max(math.prod(place.shape[a] for a in over), 1)
    return direction * (size * layers.unit_scale(xp, squares / count, EPS))


class Celo2Base(Celo2):
    """See the module docstring."""

    name: ClassVar[str] = "celo2_base"
    config_class: ClassVar[type] = Celo2BaseConfig
