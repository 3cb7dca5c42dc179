"""Muon as people use it, and NorMuon: optax's Muon with a treatment for each role.

Hidden matrices and flat convolution kernels, (window x in) by out, are orthogonalised;
vectors and embeddings go to Adam at rates of their own; the rate has a schedule.

The settings' sources: momentum 0.95 (Nesterov), five quintic rounds and
sqrt(max(1, out / in)) are Jordan et al.'s (2024, github.com/KellerJordan/Muon);
0.2 sqrt(max(in, out)) is Liu et al.'s (2025, arXiv 2502.16982); NorMuon is Li et al.'s
(2025, arXiv 2510.05491), with their decay of 0.95.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lopax._core.config import check_choice, check_range
from lopax._core.types import Params
from lopax.evaluate.baselines.roles import ROLES, Axes, axes_tree, roles_of
from lopax.evaluate.baselines.schedules import check_schedule, schedule_of

SCALINGS = ("shape", "rms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
    """Settings of `muon` and `normuon`.

    A role's number is Adam's rate for it in units of Muon's; None: orthogonalised.
    """

    schedule: str = "linear"
    """One of `schedules.SCHEDULES`."""
    warmup: float = 0.02
    """Share of the run."""
    cooldown: float = 0.2
    """Share of the run, for the schedule "wsd"."""
    beta: float = 0.95
    nesterov: bool = True
    scaling: str = "shape"
    """"shape": sqrt(max(1, out / in)); "rms": 0.2 sqrt(max(in, out))."""
    vectors: float = 0.3
    embeddings: float | None = 1.0
    output: float | None = None
    convolutions: float | None = None
    neurons: float | None = None
    """Decay of NorMuon's second moments of each output; None: Muon."""
    b1: float = 0.9
    """Adam's."""
    b2: float = 0.999
    weight_decay: float = 0.0
    """Decoupled, times the rate; of the orthogonalised tensors."""

    def __post_init__(self) -> None:
        check_schedule(self)
        check_choice(self, "scaling", SCALINGS)
        for name in ("beta", "b1", "b2"):
            check_range(self, name, low=0.0, below=1.0)
        for name in ("vectors", "embeddings", "output", "convolutions"):
            if getattr(self, name) is not None:
                check_range(self, name, low=0.0)
        check_range(self, "vectors", low=0.0)
        if self.neurons is not None:
            check_range(self, "neurons", low=0.0, below=1.0)
        check_range(self, "weight_decay", low=0.0)

    def make(self, num_steps: int, learning_rate: Any) -> optax.GradientTransformation:
        """The transformation for a run of `num_steps` updates."""
        rate = schedule_of(
            num_steps, learning_rate, self.schedule, self.warmup, self.cooldown
        )
        return self.at(rate)

    def at(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """The transformation at given rates."""
        rules: dict[Hashable, optax.GradientTransformation] = {
            role: optax.adam(_times(rate, ratio), b1=self.b1, b2=self.b2)
            for role, ratio in self._ratios().items()
        }
        rules["matrices"] = optax.chain(
            self.direction(),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
        return optax.partition(rules, self.labels)

    def direction(self) -> optax.GradientTransformation:
        """What the rate is multiplied with, for orthogonalised tensors only."""
        parts = [
            contrib.scale_by_muon(
                beta=self.beta,
                nesterov=self.nesterov,
                weight_dimension_numbers=dimension_numbers,
            )
        ]
        if self.neurons is not None:
            parts.append(normalise_neurons(self.neurons))
        return optax.chain(*parts, scale_by_shape(self.scaling))

    def labels(self, params: Params) -> Any:
        """Roles that Adam has; "matrices" for all that is orthogonalised."""
        adam = self._ratios()
        return jax.tree.map(
            lambda role: role if role in adam else "matrices", roles_of(params)
        )

    def _ratios(self) -> dict[str, float]:
        found = {role: getattr(self, role, None) for role in ROLES}
        return {role: ratio for role, ratio in found.items() if ratio is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleFreeMuon:
    """Schedule-free averaging (Defazio et al., 2024, arXiv 2405.15682) of Muon.

    The base optimizer has no momentum, as the method asks for: `b1` takes its place.
    """

    warmup: float = 0.02
    b1: float = 0.9
    vectors: float = 0.3
    embeddings: float | None = 1.0

    def __post_init__(self) -> None:
        check_range(self, "warmup", low=0.0, below=1.0)
        check_range(self, "b1", above=0.0, below=1.0)
        self._base()

    def make(self, num_steps: int, learning_rate: Any) -> optax.GradientTransformation:
        rate = schedule_of(num_steps, learning_rate, "constant", self.warmup)
        # It counts updates from one.
        weight = lambda count: rate(count - 1)  # noqa: E731
        return contrib.schedule_free(self._base().at(rate), weight, b1=self.b1)

    def _base(self) -> Muon:
        return Muon(
            schedule="constant",
            warmup=0.0,
            beta=0.0,
            nesterov=False,
            b1=0.0,
            vectors=self.vectors,
            embeddings=self.embeddings,
        )


def dimension_numbers(params: Params) -> Any:
    """optax's specification of which axes make a matrix (`roles.axes_of`)."""
    return jax.tree.map(
        lambda axes: contrib.MuonDimensionNumbers(*axes),
        axes_tree(params),
        is_leaf=lambda x: isinstance(x, Axes),
    )


def scale_by_shape(scaling: str) -> optax.GradientTransformation:
    """Multiplies each tensor with a factor that depends on its shape (`SCALINGS`)."""

    def scaled(update: Any, axes: Axes) -> Any:
        inputs = math.prod(update.shape[i] for i in axes.inputs)
        outputs = math.prod(update.shape[i] for i in axes.outputs)
        if scaling == "rms":
            return 0.2 * math.sqrt(max(inputs, outputs)) * update
        return math.sqrt(max(1.0, outputs / inputs)) * update

    return optax.stateless(
        lambda updates, _: jax.tree.map(scaled, updates, axes_tree(updates))
    )


class NeuronState(NamedTuple):
    """Second moments of each output's weights; axes of inputs have length 1."""

    second: Any


def normalise_neurons(decay: float, eps: float = 1e-10) -> optax.GradientTransformation:
    """NorMuon's part: each output's weights by the root of their mean square, averaged
    over the run; then the norm of the matrix is what it was before."""

    def mean_square(x: Any, axes: Axes) -> Any:
        return jnp.mean(jnp.square(x), axis=axes.inputs, keepdims=True)

    def norm(x: Any, axes: Axes) -> Any:
        both = (*axes.inputs, *axes.outputs)
        return jnp.sqrt(jnp.sum(jnp.square(x), both, keepdims=True))

    def init(params: Params) -> NeuronState:
        zeros = jax.tree.map(mean_square, params, axes_tree(params))
        return NeuronState(jax.tree.map(jnp.zeros_like, zeros))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        del params
        axes = axes_tree(updates)
        second = jax.tree.map(
            lambda u, a, v: decay * v + (1.0 - decay) * mean_square(u, a),
            updates,
            axes,
            state.second,
        )

        def normalise(u: Any, a: Axes, v: Any) -> Any:
            turned = u / (jnp.sqrt(v) + eps)
            return turned * norm(u, a) / (norm(turned, a) + eps)

        return jax.tree.map(normalise, updates, axes, second), NeuronState(second)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _times(rate: optax.Schedule, ratio: float) -> optax.Schedule:
    return lambda count: ratio * rate(count)
