"""HUB: one update out of a learned optimizer's and a hand-made one's.

"Guiding Learned Optimizers with Continuous Prompt Tuning" (2023, arXiv 2305.16823),
where it is called a hybrid-update-based strategy. Both optimizers see the same
gradients and the parameters that were really reached, each keeps its own state, and
every element moves by S times the hand-made update plus 1 - S times the learned one.
Nothing is trained.

The published weights S are a softmax of the gradient's magnitudes over all elements of
a tensor. They sum to one, so that in a tensor of n elements the hand-made update counts
1/n: next to nothing. Therefore the default divides them by their largest;
`docs/architectures/hub.md` has the numbers.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lopax._core import leaves, lifting
from lopax._core import tree as trees
from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError, MissingParams
from lopax._core.types import Params, Theta, Updates
from lopax.optax.adapter import optimizer

WEIGHTINGS = ("max", "published", "fixed")


class HubState(NamedTuple):
    """State of `hub`."""

    learned: Any
    hand_made: Any


class Weighting:
    """How much the hand-made update counts, element by element.

    **Arguments:**

    - `name`: "published": softmax(|g| / temperature) over a tensor; "max": the same
        divided by its largest entry, exp((|g| - max |g|) / temperature); "fixed": `mix`
        everywhere.
    - `inverted`: exchange the two optimizers, as published for fine-tuning.

    Raises `ConfigError` for values out of range.
    """

    def __init__(
        self,
        name: str = "max",
        *,
        temperature: float = 1.0,
        mix: float = 0.5,
        inverted: bool = False,
    ):
        self.name, self.temperature = name, temperature
        self.mix, self.inverted = mix, inverted
        check_choice(self, "name", WEIGHTINGS)
        check_range(self, "temperature", above=0.0)
        check_range(self, "mix", low=0.0, high=1.0)

    def __call__(self, grad: Any) -> Any:
        """Weights in [0, 1] of the hand-made update, of the gradient's shape."""
        grad = jnp.asarray(grad, jnp.float32)
        if self.name == "fixed" or not grad.size:
            weights = jnp.full(grad.shape, self.mix, jnp.float32)
        else:
            size = jnp.abs(grad) / self.temperature
            weights = jnp.exp(size - jnp.max(size))
            if self.name == "published":
                weights = weights / jnp.sum(weights)
        return 1.0 - weights if self.inverted else weights


def hub(
    learned: str | optax.GradientTransformation,
    hand_made: optax.GradientTransformation,
    *,
    num_steps: Any = None,
    theta: Theta | None = None,
    weights: str | os.PathLike[str] | None = None,
    weighting: str = "max",
    temperature: float = 1.0,
    mix: float = 0.5,
    inverted: bool = False,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """A hybrid of a learned and a hand-made optimizer, wherever optax is used.

        opt = lopax.hub("celo", optax.adam(1e-3), num_steps=2_000)
        updates, state = opt.update(grads, state, params, value=loss)

    A step whose gradients (or loss) are not finite moves nothing and leaves the
    hand-made optimizer's state as it was; learned optimizers of lopax see to theirs
    themselves.

    **Arguments:**

    - `learned`: an architecture (see `lopax.optimizer`, which `num_steps`, `theta`,
        `weights` and `options` go to), or a transformation that is ready.
    - `hand_made`: with its learning rate: `optax.adam(1e-3)`.
    - `weighting`: how much the hand-made update counts. "max": exp((|g| - max |g|) /
        temperature), the largest entries of a tensor's gradient follow it wholly;
        "published": the same divided by its sum over the tensor; "fixed": `mix`.
    - `inverted`: exchange the two.

    Raises what `lopax.optimizer` raises, and `ConfigError` for values out of range.
    """
    weigh = Weighting(weighting, temperature=temperature, mix=mix, inverted=inverted)
    given = {"num_steps": num_steps, "theta": theta, "weights": weights, **options}
    if isinstance(learned, str):
        rule = optimizer(learned, **given)
    else:
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ConfigError(
                f"hub: {extra[0]}= belongs to a learned optimizer given by name; the "
                "transformation given here is ready as it is"
            )
        rule = optax.with_extra_args_support(learned)
    return mixed(rule, optax.with_extra_args_support(hand_made), weigh)


def mixed(
    learned: optax.GradientTransformationExtraArgs,
    hand_made: optax.GradientTransformationExtraArgs,
    weighting: Weighting,
) -> optax.GradientTransformationExtraArgs:
    """`hub` for two transformations and a weighting."""

    @lifting.own_arithmetic
    def init_fn(params: Params) -> HubState:
        return HubState(learned.init(params), hand_made.init(params))

    @lifting.own_arithmetic
    def update_fn(
        updates: Updates, state: HubState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, HubState]:
        if params is None:
            raise MissingParams("hub")
        grads = leaves.gradients(params, updates)
        updates = leaves.in_place(params, grads)
        finite = lifting.all_finite(jax.tree.leaves(grads), extra.get("value"))
        by_rule, rule_state = learned.update(updates, state.learned, params, **extra)
        by_hand, hand_state = hand_made.update(
            updates, state.hand_made, params, **extra
        )

        def one(grad: Any, u_rule: Any, u_hand: Any, param: Any) -> Any:
            share = weighting(grad)
            mix = share * u_hand + (1.0 - share) * u_rule
            return jnp.where(finite, mix, 0.0).astype(param.dtype)

        parts = (leaves.parts("the update", params, u) for u in (by_rule, by_hand))
        moves = jax.tree.map(one, grads, *parts, leaves.trained(params))
        kept = trees.select(finite, hand_state, state.hand_made)
        return leaves.in_place(params, moves), HubState(rule_state, kept)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # type: ignore[arg-type]
