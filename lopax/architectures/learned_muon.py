"""Learned Muon: a hand-made optimizer at theta = 0, and what is learned on top of it.

The start is Muon (Jordan et al., 2024) as people use it: orthogonalised Nesterov
momentum for matrices, Adam for vectors and embeddings, each at a rate of its own, two
per cent of warm-up, then linear to zero. It works untuned because its steps have a
known size whatever the gradient's. With theta = 0 this rule *is* that optimizer, so
meta-training can only be asked to improve on it. Every part of theta is zero at the
start, acts alone, and can be left out of training by its name:

- `size`, `horizon`, `shape`: log size of the steps per role, the power of the run's
  length, and for matrices the powers of the smaller side and of out / in;
- `schedule`: log multipliers of the schedule at equally spaced knots of the run;
- `momenta`: weights of the gradient and of each momentum, and how they change over the
  run (two time scales whose mixture changes, as the record runs of a 124M GPT found);
- `blend`: how much of the direction that is not orthogonalised is mixed in;
- `network`: a small network per tensor, from features any tensor has (agreement of
  gradient and momenta, signal to noise, step against weight, shape, role, time) to a
  log size, a mixture of the momenta and a blend. Its last layer is zero at first.

Steps of a fixed size suit weights of a usual size. Where a network's weights are far
from what their shapes would have by the usual initialisation, all sizes are multiplied
by that ratio (`unit_ratios`); vectors, embeddings and tensors that start at zero follow
the matrices.

Roles, by name or rank (`_core.routing`): "matrix" (a convolution's kernel is one of
window x in by out), "vector" and "embedding". Needs the horizon, not the loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core import polar, routing
from lopax._core.config import check_choice, check_range
from lopax._core.lifting import Leaf, rms
from lopax._core.optimizer import Info, OptState
from lopax._core.routing import Route
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Key, Params, Scalar, Theta, Updates
from lopax.blocks import accumulators
from lopax.blocks.orthogonalize import orthogonalize
from lopax.blocks.tensor_features import mean
from lopax.blocks.unit_ratios import matrix_shape, unit_ratios
from lopax.nets import initializers, linear

ROLES = ("matrix", "vector", "embedding")
KNOTS = 9
TYPICAL_STEPS = 1000.0
"""Run length at which the learned power of the horizon is one."""
TYPICAL_SIDE = 128.0
TRACE = 0.95
"""Decay of the running averages of a tensor's features."""
NUM_TRACES = 6
NUM_FEATURES = NUM_TRACES + 4 + len(ROLES) + 4
NUM_OUTPUTS = 3


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
    hidden: int = 8
    """Width of the network's hidden layer."""
    learned: bool = True
    """Use theta. False: the hand-made optimizer; a tensor then keeps one momentum."""
    weight_decay: float = 0.0
    """Decoupled; each step removes this times the schedule's step size."""
    routes: tuple[Route, ...] = (
        Route(role="vector", max_rank=1),
        Route(role="embedding", kind="embedding"),
        Route(role="embedding", kind="vocabulary"),
    )
    default_role: str = "matrix"

    def __post_init__(self) -> None:
        check_range(self, "step_mult", above=0.0)
        check_range(self, "warmup", low=0.0, below=1.0)
        check_range(self, "vector_mult", above=0.0)
        check_range(self, "embedding_mult", above=0.0)
        check_range(self, "nesterov", low=0.0, high=1.0)
        check_range(self, "second_decay", low=0.0, below=1.0)
        check_choice(self, "orthogonalizer", polar.CHOICES)
        check_range(self, "hidden", low=1)
        check_range(self, "weight_decay", low=0.0)
        routing.check_roles(self, self.routes, self.default_role, ROLES)


class Adaptive(NamedTuple):
    """State of one tensor."""

    momenta: Float[Array, "K *s"]
    second: Any  # [*s] for vectors and embeddings, () for matrices


class Shared(NamedTuple):
    step: Count  # [] int32 updates made before, without skipped ones
    num_steps: Count  # [] int32 the horizon
    units: Float[Array, "N"]  # ratio of each tensor's size to the usual, see module
    traces: Float[Array, "N 6"]  # running averages of the tensors' features


class StepContext(NamedTuple):
    """What the tensors are told in a step; rows by tensor."""

    step: Count  # [] int32
    sizes: Float[Array, "N"]
    weights: Float[Array, "N 1+K"]  # of the gradient and the momenta
    blends: Float[Array, "N"]
    decay: Scalar  # [] share of a parameter that weight decay removes


class LearnedMuon(TensorRule[Shared, StepContext, Adaptive]):
    """See the module docstring."""

    name: ClassVar[str] = "learned_muon"
    needs_loss: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ROLES
    needs_horizon: ClassVar[bool] = True
    reference: ClassVar[str] = "this project; Muon: Jordan et al., 2024"

    def __init__(self, config: LearnedMuonConfig | None = None):
        self.config = config or LearnedMuonConfig()

    @property
    def decays(self) -> tuple[float, ...]:
        return self.config.decays if self.config.learned else self.config.decays[:1]

    def init_theta(self, key: Key) -> Theta:
        c = self.config

        def zeros(*shape: int) -> Array:
            return jnp.zeros(shape, jnp.float32)

        weights = 1 + len(c.decays)
        return {
            "size": zeros(len(ROLES)),
            "horizon": zeros(len(ROLES)),
            "shape": zeros(2),
            "schedule": zeros(KNOTS),
            "momenta": {"start": zeros(weights), "slope": zeros(weights)},
            "blend": zeros(),
            "network": {
                "hidden": initializers.linear(key, NUM_FEATURES, c.hidden),
                "head": {"w": zeros(c.hidden, NUM_OUTPUTS), "b": zeros(NUM_OUTPUTS)},
            },
        }

    def init_shared(self, theta: Theta, num_steps: Count, num_tensors: int) -> Shared:
        del theta
        return Shared(
            step=jnp.zeros((), jnp.int32),
            num_steps=num_steps,
            units=jnp.ones((num_tensors,), jnp.float32),
            traces=jnp.zeros((num_tensors, NUM_TRACES), jnp.float32),
        )

    def init_tensor(self, theta: Theta, param: Array) -> Adaptive:
        raise NotImplementedError("the state depends on the role: see init_leaf")

    def init_leaf(self, theta: Theta, leaf: Leaf, param: Array) -> Adaptive:
        del theta
        zeros = jnp.zeros((len(self.decays), *param.shape), jnp.float32)
        return Adaptive(zeros, () if self.role(leaf) == "matrix" else zeros[0])

    def see_start(
        self, shared: Shared, places: Sequence[Leaf], tensors: Sequence[Array]
    ) -> Shared:
        matrices = [self.role(leaf) == "matrix" for leaf in places]
        return shared._replace(units=unit_ratios(tensors, matrices))

    def update(
        self,
        theta: Theta,
        grads: Updates,
        state: OptState,
        params: Params,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[Updates, OptState, Info]:
        # The horizon may have been changed from outside (`lopax.extend`).
        shared = state.shared._replace(num_steps=state.num_steps)
        state = state._replace(shared=shared)
        return super().update(theta, grads, state, params, value=value, **extra)

    def summarise(
        self, theta: Theta, leaf: Leaf, grad: Array, state: Adaptive, param: Array
    ) -> Float[Array, "F"]:
        """The tensor's features of this step, before the common ones."""
        del theta
        shape = matrix_shape(param.shape)
        smaller, ratio = min(shape), shape[1] / max(shape[0], 1)
        role = self.role(leaf)
        static = [
            math.log(max(smaller, 1) / TYPICAL_SIDE) / 2.0,
            math.log(max(ratio, 1e-9)) / 2.0,
            1.0 if len(param.shape) >= 3 else 0.0,
            *(1.0 if role == r else 0.0 for r in ROLES),
        ]
        if not self.config.learned:
            return jnp.asarray([0.0] * (NUM_TRACES + 1) + static, jnp.float32)
        momenta = state.momenta
        fast, slow = momenta[0], momenta[-1]
        power = {
            "g": mean(jnp.square(grad)),
            "f": mean(jnp.square(fast)),
            "s": mean(jnp.square(slow)),
        }
        traces = [
            _cosine(mean(grad * fast), power["g"], power["f"]),
            _cosine(mean(grad * slow), power["g"], power["s"]),
            _cosine(mean(fast * slow), power["f"], power["s"]),
            _log_ratio(power["f"], power["g"]),
            _log_ratio(power["s"], power["f"]),
            _log_ratio(mean(jnp.square(grad)), mean(jnp.abs(grad)) ** 2),
        ]
        weight = jnp.log(rms(param) + 1e-30)
        return jnp.concatenate(
            [jnp.stack([*traces, weight]), jnp.asarray(static, jnp.float32)]
        )

    def advance(
        self,
        theta: Theta,
        shared: Shared,
        value: Any,
        fraction: Scalar,
        summaries: Float[Array, "N F"],
    ) -> tuple[Shared, StepContext, Scalar]:
        del value
        c = self.config
        horizon = jnp.maximum(shared.num_steps, 1).astype(jnp.float32)
        ramp = jnp.maximum(c.warmup * horizon, 1.0)
        warm = jnp.minimum((fraction * horizon + 1.0) / ramp, 1.0)
        scale = c.step_mult * warm * (1.0 - fraction)
        roles = summaries[:, -len(ROLES) :]
        mults = jnp.asarray([1.0, c.vector_mult, c.embedding_mult], jnp.float32)
        sizes = scale * jnp.dot(roles, mults, precision="highest") * shared.units
        num = summaries.shape[0]
        start = [c.nesterov, 1.0 - c.nesterov, *(0.0 for _ in self.decays[1:])]
        weights = jnp.broadcast_to(jnp.asarray(start, jnp.float32), (num, len(start)))
        blends = jnp.zeros((num,), jnp.float32)
        traces = shared.traces
        if c.learned:
            traces = TRACE * traces + (1.0 - TRACE) * summaries[:, :NUM_TRACES]
            seen = 1.0 - jnp.power(TRACE, (shared.step + 1).astype(jnp.float32))
            log_sizes = self._log_sizes(theta, summaries, roles, fraction, horizon)
            inputs = _features(
                traces / seen, summaries, jnp.log(sizes + 1e-30), fraction, horizon
            )
            net = theta["network"]
            out = linear.apply(
                net["head"], jnp.tanh(linear.apply(net["hidden"], inputs))
            )
            out = 3.0 * jnp.tanh(out / 3.0)
            sizes = sizes * jnp.exp(log_sizes + out[:, 0])
            learned = theta["momenta"]
            weights = weights + learned["start"] + learned["slope"] * fraction
            if weights.shape[1] > 2:  # from the fast momenta to the slowest
                moved = 0.3 * out[:, 1]
                weights = weights.at[:, 1].add(-moved).at[:, -1].add(moved)
            blends = theta["blend"] + 0.3 * out[:, 2]
        next_shared = shared._replace(step=shared.step + 1, traces=traces)
        context = StepContext(shared.step, sizes, weights, blends, scale)
        return next_shared, context, scale

    def _log_sizes(
        self,
        theta: Theta,
        summaries: Array,
        roles: Array,
        fraction: Scalar,
        horizon: Any,
    ) -> Float[Array, "N"]:
        """The learned part of the log sizes, but for the network's."""
        length = jnp.log(horizon / TYPICAL_STEPS)
        per_role = theta["size"] + theta["horizon"] * length
        log_sizes = jnp.dot(roles, per_role, precision="highest")
        shapes = 2.0 * summaries[:, NUM_TRACES + 1 : NUM_TRACES + 3]
        shaped = jnp.dot(shapes, theta["shape"], precision="highest")
        place = fraction * (KNOTS - 1)
        hats = jnp.maximum(
            0.0, 1.0 - jnp.abs(place - jnp.arange(KNOTS, dtype=jnp.float32))
        )
        knots = jnp.dot(hats, theta["schedule"], precision="highest")
        return log_sizes + roles[:, 0] * shaped + knots

    def step(
        self,
        theta: Theta,
        context: StepContext,
        index: Leaf,
        grad: Array,
        state: Adaptive,
        param: Array,
    ) -> tuple[Array, Adaptive]:
        del theta
        row = int(index)
        decays = jnp.asarray(self.decays, jnp.float32).reshape(-1, *(1,) * grad.ndim)
        momenta = decays * state.momenta + (1.0 - decays) * grad
        steps = (context.step + 1).astype(jnp.float32)
        weights = context.weights[row]
        unbiased = weights[1:] / (1.0 - jnp.power(decays.reshape(-1), steps))
        direction = weights[0] * grad + jnp.tensordot(unbiased, momenta, 1)
        second = state.second
        if self.role(index) == "matrix":
            rows, columns = matrix_shape(grad.shape)
            flat = direction.reshape(rows, columns)
            moved = orthogonalize(flat, self.config.orthogonalizer)
            if self.config.learned:
                plain = math.sqrt(min(rows, columns)) * _unit(flat)
                moved = moved + context.blends[row] * (plain - moved)
            moved = math.sqrt(max(1.0, columns / max(rows, 1))) * moved
            moved = moved.reshape(grad.shape)
        else:
            d = self.config.second_decay
            second = d * second + (1.0 - d) * jnp.square(grad)
            moved = direction * jax.lax.rsqrt(second / (1.0 - d**steps) + 1e-16)
        delta = -context.sizes[row] * moved
        delta = jnp.where(accumulators.reached(momenta), delta, 0.0)
        if self.config.weight_decay:
            delta = delta - self.config.weight_decay * context.decay * param
        return delta, Adaptive(momenta, second)


def _unit(x: Array) -> Array:
    """x over its Frobenius norm; zero for zero."""
    largest = jnp.max(jnp.abs(x), initial=0.0)
    x = x / jnp.maximum(largest, 1e-30)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x)), 1e-12))


def _cosine(product: Scalar, power_a: Scalar, power_b: Scalar) -> Scalar:
    return product * jax.lax.rsqrt(power_a * power_b + 1e-30)


def _log_ratio(power_a: Scalar, power_b: Scalar) -> Scalar:
    """log sqrt(a / b) within +- 4, over 2."""
    log = 0.5 * (jnp.log(power_a + 1e-30) - jnp.log(power_b + 1e-30))
    return 0.5 * jnp.clip(log, -4.0, 4.0)


def _features(
    traces: Array, summaries: Array, log_sizes: Array, fraction: Scalar, horizon: Any
) -> Float[Array, "N F"]:
    """The network's inputs, each of order one."""
    num = summaries.shape[0]
    weight, static = summaries[:, NUM_TRACES], summaries[:, NUM_TRACES + 1 :]
    against = 0.25 * jnp.clip(log_sizes - weight, -8.0, 8.0)
    common = jnp.stack(
        [
            2.0 * fraction - 1.0,
            jnp.exp(-fraction / 0.05),
            jnp.exp(-(1.0 - fraction) / 0.05),
            0.5 * jnp.log(horizon / TYPICAL_STEPS),
        ]
    )
    common = jnp.broadcast_to(common, (num, 4))
    return jnp.concatenate([traces, against[:, None], static, common], axis=1)
