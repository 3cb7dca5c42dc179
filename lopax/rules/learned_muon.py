"""Learned Muon: a hand-made optimizer at theta = 0, and what is learned on top of it.

The start is Muon (Jordan et al., 2024) as people use it: orthogonalised Nesterov
momentum for matrices, Adam for vectors and embeddings, each at a rate of its own, two
per cent of warm-up, then linear to zero. It works untuned because its steps have a
known size whatever the gradient's. With theta = 0 this rule *is* that optimizer, so
meta-training can only be asked to improve on it. Every part of theta is zero at the
start, acts alone, and can be left out of training by its name:

- `size`, `horizon`, `shape`: log size of the steps per role, the power of the run's
  length, and for matrices the powers of the smaller side and of out / in;
- `kernels`: log size that kernels of convolutions have beside a matrix's;
- `schedule`: log multipliers of the schedule at equally spaced knots of the run;
- `momenta`: weights of the gradient and of each momentum, and how they change over the
  run (two time scales whose mixture changes, as the record runs of a 124M GPT found);
- `signal`: larger steps where the next gradient goes against the momentum, and where
  it goes with it: in between there is noise (`momentum_features.confirmed`);
- `history`: sizes by the history of the loss, through the features of Celo's scheduler;
- `outputs`: the power of an output's size that its weights are divided by, as NorMuon
  does (`output_norms`);
- `blend`: how much of the direction that is not orthogonalised is mixed in;
- `elements`: Celo2's per-element network, added to a matrix's direction before that is
  orthogonalised (`element_direction`);
- `network`: a small network per tensor, from features any tensor has (agreement of
  gradient and momenta, signal to noise, step against weight, shape, role, time) to a
  log size, a mixture of the momenta and a blend.

The last layers of both networks are zero at first. Where weights are far from the
usual size of their shapes, or none is a matrix, steps follow them (`unit_ratios`).
Roles, by name or rank (`_core.routing`): "matrix" (a convolution's kernel is one of
window x in by out), "vector" and "embedding". Needs the horizon; `history` the loss.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

from lopax._core import polar, routing
from lopax._core.config import check_choice, check_range
from lopax._core.routing import Route
from lopax._core.run import Run
from lopax.rules import (
    element_direction,
    form,
    layers,
    loss_history,
    momentum_features,
    muon_matrix,
    muon_numbers,
    time_features,
    unit_ratios,
)
from lopax.rules.element_net import check_decays
from lopax.rules.form import (
    COUNT,
    EACH,
    Advance,
    Keeps,
    Place,
    Rows,
    StepContext,
    Steps,
)
from lopax.rules.momentum_features import NUM_TRACES, ROLES
from lopax.rules.muon_numbers import Carried, Shared
from lopax.rules.ops import Array, Draw, Ops


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedMuonConfig:
    """Settings of `LearnedMuon`: the hand-made optimizer that training starts from."""

    step_mult: float = 0.05
    """Spectral norm of a square matrix's step at the peak of the schedule."""
    warmup: float = 0.02
    """Share of the run over which steps grow to their full size."""
    vector_mult: float = 0.3
    """Size of a vector's step, in units of `step_mult`."""
    embedding_mult: float = 1.0
    nesterov: float = 0.05
    """Weight of the gradient beside the first momentum's, which has the rest."""
    decays: tuple[float, ...] = (0.95, 0.99)
    """Of the momenta. The hand-made optimizer uses the first."""
    second_decay: float = 0.99
    """Of the second moment of vectors and embeddings."""
    orthogonalizer: str = "quintic"
    """How matrices are orthogonalised, one of `_core.polar.CHOICES`: as Muon does, or
    ("auto") as cheaply as their shapes allow."""
    orthogonalize_every: int = 1
    """Matrices move, so many times as far, in every so many-th step only; in between
    their gradients go into the momenta."""
    hidden: int = 8
    """Width of the network's hidden layer."""
    learned: bool = True
    """Use theta. False: the hand-made optimizer; a tensor then keeps one momentum."""
    network: bool = True
    """Have the network. False: theta has its 26 global numbers only, and no features
    are computed."""
    signal: bool = True
    """Measure what of the momentum the next gradient confirms. False: theta has no
    `signal`, and nothing is summed for it."""
    kernels: bool = False
    """Let kernels of convolutions have a size of their own."""
    history: bool = False
    """Let sizes follow the history of the loss, which must then be given."""
    elements: int = 0
    """Units a layer of the per-element network in a matrix's direction, which then
    keeps Celo2's accumulators, too; 0: none."""
    outputs: bool = False
    """Let theta say how far the outputs of a matrix are brought to steps of one length.
    A matrix then keeps a number for each of its outputs."""
    blend: bool = True
    """Mix in the direction that is not orthogonalised. False: theta has no `blend`, the
    network no such output, and steps of matrices are a little cheaper."""
    weight_decay: float = 0.0
    """Decoupled; each step removes this times the schedule's step size."""
    routes: tuple[Route, ...] = (
        Route(role="vector", max_rank=1),
        Route(role="embedding", kind="embedding"),
        Route(role="embedding", kind="vocabulary"),
    )
    default_role: str = "matrix"

    def __post_init__(self) -> None:
        for name in ("step_mult", "vector_mult", "embedding_mult"):
            check_range(self, name, above=0.0)
        check_range(self, "warmup", low=0.0, below=1.0)
        check_range(self, "nesterov", low=0.0, high=1.0)
        check_range(self, "second_decay", low=0.0, below=1.0)
        check_decays(self, "decays", number=None)
        check_choice(self, "orthogonalizer", polar.CHOICES)
        check_range(self, "orthogonalize_every", low=1)
        check_range(self, "hidden", low=1)
        check_range(self, "elements", low=0)
        check_range(self, "weight_decay", low=0.0)
        routing.check_roles(self, self.routes, self.default_role, ROLES)


class Adaptive(NamedTuple):
    """State of one tensor."""

    momenta: Any  # [K, *s]
    second: Any  # [*s] for vectors and embeddings, nothing for matrices
    step: Any
    parts: muon_matrix.Parts


class LearnedMuon(form.Rule):
    """See the module docstring."""

    name: ClassVar[str] = "learned_muon"
    reference: ClassVar[str] = "this project; Muon: Jordan et al., 2024"
    config_class: ClassVar[type] = LearnedMuonConfig
    needs_horizon = True
    roles: ClassVar[tuple[str, ...]] = ROLES
    elementwise: ClassVar[tuple[str, ...]] = ("vector", "embedding")
    num_summaries = momentum_features.NUM_SUMMARIES
    num_starts = 2
    config: LearnedMuonConfig

    @functools.cached_property
    def acts(self) -> LearnedMuonConfig:
        """The settings; without `learned` those of a rule without parts to learn."""
        if self.config.learned:
            return self.config
        off = dict.fromkeys(("network", *muon_numbers.PARTS), False)
        decays = self.config.decays[:1]
        return dataclasses.replace(self.config, decays=decays, elements=0, **off)

    @property
    def needs_loss(self) -> bool:  # type: ignore[override]
        return self.acts.history

    @property
    def summaries_need_gradients(self) -> bool:  # type: ignore[override]
        return self.acts.signal or self.acts.network

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c = self.config
        found = muon_numbers.zeros(draw, 1 + len(c.decays), c)
        if c.network:
            net = momentum_features.init_network(draw, key, c.hidden, 2 + c.blend)
            found["network"] = net
        if c.elements:
            found["elements"] = element_direction.init_theta(draw, key, c.elements)
        return found

    def keeps(self, role: str) -> Adaptive:
        momenta, matrix = Keeps(copies=len(self.acts.decays)), role == "matrix"
        parts = muon_matrix.keeps(self.acts) if matrix else muon_matrix.NOTHING
        return Adaptive(momenta, None if matrix else EACH, COUNT, parts)

    def measure(self, xp: Ops, place: Place, param: Array) -> Steps:
        kind = unit_ratios.KINDS[place.role]
        return (yield from unit_ratios.measure(xp, place, param, kind))

    def init_shared(
        self, xp: Ops, theta: Any, num_steps: Array, starts: Array
    ) -> Shared:
        usual, alone = unit_ratios.usual(xp, starts), unit_ratios.alone(xp, starts)
        signal = xp.zeros((3,)) if self.acts.signal else None
        losses = loss_history.init(xp, num_steps) if self.acts.history else None
        return Shared(usual, alone, signal, losses)

    def init_rows(self, xp: Ops, theta: Any, shared: Shared, starts: Array) -> Carried:
        # Without matrices, vectors take their place, at a matrix's size.
        larger = xp.exp(theta["size"][0] - theta["size"][1]) / self.config.vector_mult
        unit = unit_ratios.with_vectors(xp, starts, shared.usual, shared.alone, larger)
        size = (starts.shape[0], NUM_TRACES)
        return Carried(unit, xp.zeros(size) if self.acts.network else None)

    def summarise(
        self,
        xp: Ops,
        theta: Any,
        place: Place,
        grad: Array,
        state: Adaptive,
        param: Array,
    ) -> Steps:
        given, num = (place, grad, state.momenta), len(self.acts.decays)
        asked = {"signal": self.acts.signal, "network": self.acts.network}
        return momentum_features.summary(xp, *given, num, param, **asked)

    def advance(
        self, xp: Ops, theta: Any, shared: Shared, run: Run, rows: Rows
    ) -> Advance:
        c, done, summaries = self.acts, run.fraction, rows.summaries
        horizon = xp.maximum(run.num_steps * xp.constant(1.0), 1.0)
        scale = c.step_mult * time_features.warm_up(xp, c.warmup, done, horizon)
        scale = scale * (1.0 - done)
        roles = summaries[:, -len(ROLES) :]
        mults = xp.constant((1.0, c.vector_mult, c.embedding_mult))
        sizes = scale * xp.sum(roles * mults, axis=-1) * rows.carried.unit
        start = [c.nesterov, 1.0 - c.nesterov, *(0.0 for _ in c.decays[1:])]
        if not c.learned:
            weights = xp.broadcast_to(xp.constant(start), (rows.count, len(start)))
            return Advance(shared, scale, told={"sizes": sizes, "weights": weights})
        carried = rows.carried
        log_sizes = muon_numbers.log_sizes(xp, theta, summaries, roles, done, horizon)
        weights = muon_numbers.weights(xp, theta, start, done, rows.count)
        blends = theta["blend"] if c.blend else 0.0
        given = shared, summaries, c.decays[0], run, horizon
        heard, shared = muon_numbers.listened(xp, theta, *given)
        log_sizes = log_sizes + heard
        if c.network:
            given = carried.traces, summaries, sizes, run, horizon
            traces, out = momentum_features.network(xp, theta["network"], *given)
            carried = carried._replace(traces=traces)
            log_sizes = log_sizes + out[:, 0]
            weights = weights + muon_numbers.toward_slowest(xp, out[:, 1:2], len(start))
            blends = blends + 0.3 * out[:, 2] if c.blend else blends
        told = {"sizes": sizes * xp.exp(log_sizes), "weights": weights}
        if c.blend:
            told["blends"] = xp.broadcast_to(blends, (rows.count,))
        return Advance(shared, scale, carried, told)

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: Adaptive,
        param: Array,
    ) -> Steps:
        c, place, told = self.acts, at.place, at.told
        decays = xp.constant(c.decays)
        momenta = xp.ema(state.momenta, place.layered(grad), place.per_layer(decays))
        reached = layers.reached(xp, place, momenta)
        steps = state.step + 1.0

        def direction() -> Array:
            correction = 1.0 - decays ** steps[..., None]
            given = told["weights"], correction, grad, momenta
            return muon_numbers.mixed(xp, place, *given)

        second, parts = state.second, state.parts
        if place.role == "matrix":
            delta, parts = yield from muon_matrix.step(
                xp, theta, c, at, direction, grad, parts, param, steps
            )
        else:
            d = c.second_decay
            second = xp.ema(second, xp.square(grad), d)
            known = 1.0 - xp.constant(d) ** steps
            size = place.column(-told["sizes"] * xp.sqrt(known))
            delta = xp.adam(size, direction(), second, place.column(1e-16 * known), 0.0)
        delta = layers.held(xp, delta, reached)
        if c.weight_decay:
            delta = delta - c.weight_decay * at.scale * param
        return delta, Adaptive(momenta, second, state.step, parts)
