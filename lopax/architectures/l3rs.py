"""L3RS: a small network sets, layer by layer, how hand-made directions are combined.

Kristiansen et al., "Narrowing the Focus: Learned Optimizers for Pretrained Models"
(2024, arXiv 2408.09310). Made for fine-tuning one given network: the same small MLP
serves every tensor, and what it knows of a tensor beside gradient and weight norms is
an embedding of that tensor, learned with the rest. Nothing is computed per element
but the directions themselves, so a step costs what its base optimizers cost.

Needs the loss and the horizon. With two directions 707 meta-parameters and 8 for each
tensor of the network, 451 without embeddings; all of them act.

What the publication says: one MLP shared by all layers; a trainable embedding per
layer; features of training time, averages of the loss, gradient and weight norms; the
outputs combine the directions of base optimizers (Adam and SGD are named) separately
for each layer and replace learning rate and schedule. What is our reconstruction, for
no code was published: embeddings of 8 numbers; four time features, averages of the loss
over three spans as logarithms, the third norm (largest gradient element) and all scales
of features; 32 hidden units; weights of the directions as a softmax (or, as an option,
any numbers) and a step size within exp(-6) to exp(4) of 3e-3; directions brought to a
root mean square near one.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core import lifting
from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError, StructureMismatch
from lopax._core.optimizer import OptState
from lopax._core.places import Leaf, places_of
from lopax._core.run import Run
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Key, Params, Scalar, Theta
from lopax.blocks.directions import Direction
from lopax.nets import initializers, linear

LOSS_DECAYS = (0.5, 0.9, 0.98)
TIME_CENTRES = (0.1, 0.4, 0.7, 1.0)
NUM_SHARED = len(TIME_CENTRES) + len(LOSS_DECAYS)
NUM_NORMS = 3
WEIGHTINGS = ("softmax", "linear")
ANY = "?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class L3RSConfig:
    """Settings of `L3RS`."""

    tensors: tuple[str, ...] = ()
    """The network it is for, as `tensors_of(params)` writes it: "layer0/w:64,48".
    Every other network is refused. Empty: no embeddings, and any network will do."""
    layer_inputs: bool = True
    """Whether the network sees embedding and norms. False: the same coefficients for
    all tensors, as an ablation."""
    directions: tuple[Direction, ...] = (
        Direction(name="adam"),
        Direction(name="momentum", settings={"decay": 0.9}, unit_rms=True),
    )
    weighting: str = "softmax"
    """"softmax": positive weights of sum one. "linear": any numbers, 1/K at first."""
    hidden: int = 32
    embedding: int = 8
    learning_rate: float = 3e-3
    """Step size before any meta-training."""

    def __post_init__(self) -> None:
        check_choice(self, "weighting", WEIGHTINGS)
        check_range(self, "hidden", low=1)
        check_range(self, "embedding", low=1)
        check_range(self, "learning_rate", above=0.0)
        if not self.directions:
            raise ConfigError("L3RSConfig.directions = (): name at least one")
        names = [text.rpartition(":")[0] for text in self.tensors]
        if "" in names or len(set(names)) != len(names):
            raise ConfigError(
                f"L3RSConfig.tensors = {self.tensors!r}: must be different names with "
                "shapes, such as 'layer0/w:64,48'; tensors_of(params) writes them"
            )


def tensors_of(params: Params, any_size: Sequence[str] = ()) -> tuple[str, ...]:
    """The tensors of a network as `L3RSConfig.tensors` wants them.

    **Arguments:**

    - `any_size`: shell patterns of names ("head/*") whose sizes, but not ranks, may
        differ from those of `params`: heads for other numbers of classes.
    """

    def one(leaf: Leaf) -> str:
        is_open = any(fnmatch.fnmatchcase(leaf.name, p) for p in any_size)
        sizes = (ANY,) * len(leaf.shape) if is_open else leaf.shape
        return f"{leaf.name}:{','.join(map(str, sizes))}"

    return tuple(one(leaf) for leaf in places_of(params))


class LossAverages(NamedTuple):
    means: Float[Array, "3"]  # not bias-corrected
    count: Count  # [] int32, losses seen  # pyright: ignore[reportIncompatibleMethodOverride]


class L3RS(TensorRule[LossAverages, Float[Array, "tensors K"], tuple[Any, ...]]):
    """See the module docstring. A tensor's state is that of each direction."""

    name: ClassVar[str] = "l3rs"
    needs_loss: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = True
    reference: ClassVar[str] = "Kristiansen et al., 2024, arXiv 2408.09310"

    def __init__(self, config: L3RSConfig | None = None):
        self.config = config or L3RSConfig()
        self._directions = [d.build() for d in self.config.directions]
        split = [text.rpartition(":") for text in self.config.tensors]
        self._declared = {name: shape for name, _, shape in split}
        self._row = {name: i for i, name in enumerate(self._declared)}

    @property
    def _has_embeddings(self) -> bool:
        return self.config.layer_inputs and bool(self._row)

    @lifting.own_arithmetic
    def init_theta(self, key: Key) -> Theta:
        c = self.config
        inputs = NUM_SHARED + NUM_NORMS * c.layer_inputs
        k_embedding, k_hidden = jax.random.split(key)
        theta: dict[str, Any] = {}
        if self._has_embeddings:
            inputs += c.embedding
            shape = (len(self._row), c.embedding)
            normal = jax.random.normal(k_embedding, shape, jnp.float32)
            theta["embedding"] = 0.3 * normal
        outputs = len(c.directions) + 1
        theta["hidden"] = initializers.linear(k_hidden, inputs, c.hidden)
        # Zero weights: before any meta-training a sane, constant step.
        zeros = (
            jnp.zeros((c.hidden, outputs), jnp.float32),
            jnp.zeros((outputs,), jnp.float32),
        )
        theta["output"] = {"w": zeros[0], "b": zeros[1]}
        return theta

    def init(self, theta: Theta, params: Params, num_steps: Any = None) -> OptState:
        """Raises `StructureMismatch` for a network other than the declared one."""
        self._check_network(params)
        return super().init(theta, params, num_steps)

    def _check_network(self, params: Params) -> None:
        shapes = {leaf.name: leaf.shape for leaf in places_of(params)}
        found = {name: f"[{_text(shape)}]" for name, shape in shapes.items()}
        expected = {
            name: found[name]
            if name in shapes and _fits(declared, shapes[name])
            else f"[{declared}]"
            for name, declared in self._declared.items()
        }
        if self._declared and expected != found:
            raise StructureMismatch.between(
                f"the network that this {self.name!r} was made for (its setting "
                "`tensors`)",
                expected,
                found,
                "L3RS has learned an embedding of each tensor of one network, which "
                "means nothing to another. Meta-train it for this network with "
                "tensors=tensors_of(params), or use a rule for any network (celo).",
            )

    def init_shared(
        self, theta: Theta, num_steps: Count, num_tensors: int
    ) -> LossAverages:
        del theta, num_steps, num_tensors
        return LossAverages(
            jnp.zeros((len(LOSS_DECAYS),), jnp.float32), jnp.zeros((), jnp.int32)
        )

    def init_tensor(self, theta: Theta, param: Array) -> tuple[Any, ...]:
        del theta
        return tuple(d.init(param) for d in self._directions)

    def summarise(
        self, theta: Theta, leaf: Leaf, grad: Array, state: Any, param: Array
    ) -> Float[Array, "F"]:
        """What the network sees of one tensor; [0] in the ablation."""
        del state
        if not self.config.layer_inputs:
            return jnp.zeros((0,), jnp.float32)
        largest = jnp.max(jnp.abs(grad)) if grad.size else jnp.zeros((), jnp.float32)
        norms = jnp.stack([lifting.rms(grad), lifting.rms(param), largest])
        norms = 0.3 * jnp.log(1e-6 + norms)
        if not self._has_embeddings:
            return norms
        return jnp.concatenate([theta["embedding"][self._row[leaf.name]], norms])

    def advance(
        self,
        theta: Theta,
        shared: LossAverages,
        run: Run,
        summaries: Float[Array, "tensors F"],
    ) -> tuple[LossAverages, Float[Array, "tensors K"], Scalar]:
        c = self.config
        decays = jnp.asarray(LOSS_DECAYS, jnp.float32)
        means = decays * shared.means + (1.0 - decays) * run.loss
        averages = LossAverages(means, shared.count + 1)
        corrected = means / (1.0 - decays ** averages.count.astype(jnp.float32))
        times = jnp.tanh(4.0 * (run.fraction - jnp.asarray(TIME_CENTRES, jnp.float32)))
        common = jnp.concatenate([times, jnp.log(jnp.clip(corrected, 1e-6, 1e6))])
        rows = (len(summaries), NUM_SHARED)
        inputs = jnp.concatenate([summaries, jnp.broadcast_to(common, rows)], axis=1)
        hidden = jax.nn.relu(linear.apply(theta["hidden"], inputs))
        outputs = linear.apply(theta["output"], hidden)
        mix, size = outputs[:, :-1], outputs[:, -1:]
        if c.weighting == "softmax":
            weights = jax.nn.softmax(mix, axis=1)
        else:
            weights = 1.0 / mix.shape[1] + mix
        rates = c.learning_rate * jnp.exp(jnp.clip(3.0 * size, -6.0, 4.0))
        return averages, rates * weights, jnp.mean(rates)

    def step(
        self,
        theta: Theta,
        context: Float[Array, "tensors K"],
        index: Leaf,
        grad: Array,
        state: tuple[Any, ...],
        param: Array,
    ) -> tuple[Array, tuple[Any, ...]]:
        del theta
        delta, after = jnp.zeros_like(grad), []
        for k, (settings, rule) in enumerate(
            zip(self.config.directions, self._directions, strict=True)
        ):
            direction: Any
            direction, new = rule.update(grad, state[k], param)
            if settings.unit_rms:
                size = lifting.rms(direction)
                # Zero stays zero, and has a derivative that float32 can hold.
                direction = direction / (jnp.where(size > 0.0, size, 1.0) + 1e-12)
            delta = delta - context[index, k] * direction
            after.append(new)
        return delta, tuple(after)


def _text(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


def _fits(declared: str, shape: tuple[int, ...]) -> bool:
    """Whether a shape is the declared one, up to sizes left open."""
    sizes = declared.split(",") if declared else []
    return len(sizes) == len(shape) and all(
        size in (ANY, str(n)) for size, n in zip(sizes, shape, strict=True)
    )
