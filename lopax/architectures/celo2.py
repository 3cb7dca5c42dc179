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
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core import polar, routing
from lopax._core.config import check_choice, check_range
from lopax._core.lifting import Leaf
from lopax._core.routing import Route
from lopax._core.run import Run
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Flag, Key, Scalar, Theta
from lopax.blocks import element_net, element_rule, moments
from lopax.blocks.moments import Moments
from lopax.blocks.normalize import matrix_rms_scale
from lopax.blocks.orthogonalize import orthogonalize
from lopax.nets import mlp
from lopax.rules import channels
from lopax.rules.element_net import Decays, ElementNet, Epsilons, Numbers

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
        check_range(self, "exp_mult", low=0.0)
        check_range(self, "weight_decay", low=0.0)
        check_range(self, "adam_mult", above=0.0)
        check_range(self, "b1", low=0.0, below=1.0)
        check_range(self, "b2", low=0.0, below=1.0)
        routing.check_roles(self, self.routes, self.default_role, ROLES)
        element_rule.check_backend(self)

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


class AdamMoments(NamedTuple):
    momentum: Float[Array, "*s"]
    second: Float[Array, "*s"]


class Stage(NamedTuple):
    """What all tensors are told in a step."""

    step: Count  # [] int32 updates made before, without skipped ones
    size: Scalar  # [] `step_mult` times the schedule


class _Celo2Rule(TensorRule[Count, Stage, Any]):
    """What both variants do; the state of a tensor depends on its role."""

    needs_loss: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ROLES
    reference: ClassVar[str] = "Moudgil et al., 2026, arXiv 2602.19142"
    param_like: ClassVar[tuple[str, ...]] = ("second",)
    config: Celo2Config

    @property
    def needs_horizon(self) -> bool:  # type: ignore[override]
        return self.config.schedule != "constant"

    def init_theta(self, key: Key) -> Theta:
        c = self.config
        inputs = channels.count(channels.VELO)
        outputs = 2 if c.exp_mult else 1
        return {"rule": mlp.init(key, (inputs, c.hidden, c.hidden, outputs))}

    def init_shared(self, theta: Theta, num_steps: Count, num_tensors: int) -> Count:
        del theta, num_steps, num_tensors
        return jnp.zeros((), jnp.int32)

    def init_leaf(self, theta: Theta, leaf: Leaf, param: Array) -> Any:
        param = self._as_matrices(param)
        if self.role(leaf) == "adam":
            zeros = jnp.zeros(param.shape, jnp.float32)
            return AdamMoments(zeros, zeros)
        return self.init_tensor(theta, param)

    def init_tensor(self, theta: Theta, param: Array) -> Moments:
        del theta
        return moments.init(param)

    def group_key(self, leaf: Leaf) -> str | None:
        role = self.role(leaf)
        return None if role == "adam" or self.by_kernel(leaf) else role

    def by_kernel(self, leaf: Leaf) -> bool:
        """Whether the kernel steps a tensor."""
        if self.role(leaf) == "adam":
            return False
        shape = self._matrix_shape(leaf.shape)
        return element_rule.why_plain(self.config, shape) is None

    def advance(
        self, theta: Theta, shared: Count, run: Run, summaries: Any
    ) -> tuple[Count, Stage, Scalar]:
        del theta, summaries
        size = jnp.asarray(self.config.step_mult, jnp.float32)
        if self.needs_horizon:
            size = size * 0.5 * (1.0 + jnp.cos(jnp.pi * run.fraction))
        return shared + 1, Stage(shared, size), size

    def step(
        self,
        theta: Theta,
        context: Stage,
        index: Leaf,
        grad: Array,
        state: Any,
        param: Array,
    ) -> tuple[Array, Any]:
        role, flat = self.role(index), self._as_matrices(grad)
        param = self._as_matrices(param)
        if role == "adam":
            direction, state = self._adam(context.step, flat, state)
        else:
            net = self.config.element_net
            numbers = Numbers(theta["rule"], DECAYS, -1.0)
            direction, state = element_net.step(net, numbers, flat, state, param)
        delta = self._delta(role, context, direction, state, param)
        return delta.reshape(grad.shape), state

    def step_or_keep(
        self,
        theta: Theta,
        context: Stage,
        index: Leaf,
        grad: Array,
        state: Any,
        param: Array,
        finite: Flag,
        bound: float,
    ) -> tuple[Array, Any]:
        role, flat = self.role(index), self._as_matrices(grad)
        if not self.by_kernel(index):
            return super().step_or_keep(
                theta, context, index, grad, state, param, finite, bound
            )
        param = self._as_matrices(param)
        numbers = Numbers(theta["rule"], DECAYS, -1.0)
        direction, state = element_rule.step_or_keep(
            self.config.element_net, numbers, flat, state, param, finite, bound
        )
        delta = self._delta(role, context, direction, state, param)
        return jnp.where(finite, delta.reshape(grad.shape), 0.0), state

    def _as_matrices(self, x: Array) -> Array:
        """A convolution's kernel as one matrix, if it is to be one."""
        return x.reshape(self._matrix_shape(x.shape))

    def _matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.config.convolutions == "flat" and len(shape) >= 4:
            return math.prod(shape[:-1]), shape[-1]
        return shape

    def _delta(
        self, role: str, context: Stage, direction: Array, state: Any, param: Array
    ) -> Array:
        """Minus the step size times the direction as the role wants it."""
        c, size = self.config, context.size
        if role == "adam":
            size = size * c.adam_mult
        else:
            if role == "orthogonal" and direction.ndim >= 2:
                direction = orthogonalize(direction, c.orthogonalizer)
            direction = direction * matrix_rms_scale(direction, EPS)
            direction = jnp.where(moments.reached(state), direction, 0.0)
        return -size * (direction + c.weight_decay * param)

    def _adam(
        self, step: Count, grad: Array, state: AdamMoments
    ) -> tuple[Array, AdamMoments]:
        """Adam's direction with epsilon under the root."""
        c = self.config
        momentum = c.b1 * state.momentum + (1.0 - c.b1) * grad
        second = c.b2 * state.second + (1.0 - c.b2) * jnp.square(grad)
        state = AdamMoments(momentum, second)
        if c.bias_correction:
            t = (step + 1).astype(jnp.float32)
            momentum = momentum / (1.0 - c.b1**t)
            second = second / (1.0 - c.b2**t)
        return momentum * jax.lax.rsqrt(second + 1e-8), state

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        prefix = "ff_mod_stack/~/"
        w1 = arrays.get(f"{prefix}w1")
        if w1 is None or w1.ndim != 2:
            return arrays
        outputs = (0, 1) if self.config.exp_mult else (0,)
        rule = mlp.from_published(arrays, prefix, len(channels.VELO), outputs)
        return {f"rule/{k}": v for k, v in rule.items()}


class Celo2(_Celo2Rule):
    """See the module docstring. Example: `lopax.optimizer("celo2", theta=theta)`."""

    name: ClassVar[str] = "celo2"

    def __init__(self, config: Celo2Config | None = None):
        self.config = config or Celo2Config()


class Celo2Base(_Celo2Rule):
    """See the module docstring."""

    name: ClassVar[str] = "celo2_base"

    def __init__(self, config: Celo2BaseConfig | None = None):
        self.config = config or Celo2BaseConfig()
