"""What a learned optimizer is, and how a rule for one tensor becomes one for a tree.

`LearnedOptimizer` is the interface: pure in theta, so that whole populations of
thetas can be `vmap`ped. `_core.tensor_rule` has the template nearly every architecture
fills in.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopax._core import lifting, routing
from lopax._core import tree as trees
from lopax._core.errors import (
    ConfigError,
    MissingHorizon,
    MissingParams,
)
from lopax._core.published import check_theta, translate
from lopax._core.run import Run
from lopax._core.types import Count, Flag, Key, Params, Scalar, Theta, Updates


class Info(NamedTuple):
    """What one update reports. Nothing here is carried; unused fields cost nothing."""

    step_scale: Scalar  # the rule's own learning-rate-like scalar; 1 if it has none
    skipped: Flag  # the loss or a gradient was not finite, so nothing was changed
    flaw: Count  # the first tensor that is not; their number: the loss; -1: none is
    clipped: Count  # gradient elements beyond the rule's clipping bound
    update_rms: Any  # per tensor, root mean square of the update
    update_to_weight: Any  # per tensor, update RMS / parameter RMS
    idle: Flag | bool = False  # all gradients of matrices, or of all, are zero


class OptState(NamedTuple):
    """State of a `TensorRule`."""

    iteration: Count  # [] int32, updates seen (skipped ones included)
    num_steps: Count  # [] int32, the horizon; 0 for rules without one
    skipped: Count  # [] int32, updates skipped so far
    shared: Any  # what all tensors share
    tensors: Any  # the parameters' structure, with each leaf replaced by its state

    def run(self, loss: Any) -> Run:
        """Where the run is, for the rule."""
        horizon = jnp.maximum(self.num_steps, 1).astype(jnp.float32)
        return Run(
            loss=loss,
            fraction=jnp.minimum(self.iteration.astype(jnp.float32) / horizon, 1.0),
            updates=self.iteration - self.skipped,
            num_steps=self.num_steps,
        )


class LearnedOptimizer(abc.ABC):
    """A family of optimizers indexed by theta.

    Instances are static (they hold only a configuration) and hashable by identity;
    everything that changes or is learned is passed in.
    """

    name: ClassVar[str]
    needs_loss: ClassVar[bool]
    needs_horizon: ClassVar[bool]
    takes_validation: ClassVar[bool] = False
    sees_tensors: ClassVar[bool] = True
    """False: elements are stepped alike, whatever tensor they lie in."""
    reference: ClassVar[str]

    @abc.abstractmethod
    def init_theta(self, key: Key) -> Theta:
        """Fresh meta-parameters: nested dicts of float32 arrays."""

    @abc.abstractmethod
    def init(self, theta: Theta, params: Params, num_steps: Any = None) -> Any:
        """State before the first update.

        **Arguments:**

        - `num_steps`: [] int, the number of updates the run will make; may be traced.

        Raises `MissingHorizon` if the rule needs `num_steps` and it is `None`.
        """

    @abc.abstractmethod
    def update(
        self,
        theta: Theta,
        grads: Updates,
        state: Any,
        params: Params,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[Updates, Any, Info]:
        """One step: what to add to the parameters, the next state, and a report.

        **Arguments:**

        - `value`: [] the loss at `params`, the one `grads` came from.
        - `extra`: ignored, as optax expects of every update.

        Raises `MissingLoss` / `MissingParams` if the rule needs what was not given.
        """

    def routed(self, routes: Any) -> LearnedOptimizer:
        """This rule, told more about a user's tensors by `lopax.Route`s; raises
        `ConfigError` if it cannot use them."""
        if not routing.checked(routes):
            return self
        raise ConfigError(f"{self.name!r} takes no routes: leave routes= out")

    def observe_validation(self, state: Any, loss: Scalar) -> Any:
        """State after a look at the loss [] on validation data, between two updates.

        Rules with `takes_validation` use it, the others return the state unchanged. A
        non-finite loss changes nothing.
        """
        del loss
        return state

    @lifting.own_arithmetic
    def theta_from_arrays(self, arrays: Mapping[str, Any]) -> Theta:
        """Theta from a flat mapping of path names, ours or the published ones.

        Raises `StructureMismatch` showing expected against found.
        """
        expected = jax.eval_shape(self.init_theta, jax.random.key(0))
        arrays = translate(self.name, dict(arrays), self._translate_published)
        want = trees.describe(expected)
        have = {k: trees.describe_leaf(np.asarray(v)) for k, v in arrays.items()}
        check_theta(self.name, want, have)
        return trees.map_named(lambda name, _: jnp.asarray(arrays[name]), expected)

    def theta_to_arrays(self, theta: Theta) -> dict[str, np.ndarray]:
        """The inverse of `theta_from_arrays`, under our own path names."""
        return {k: np.asarray(v) for k, v in trees.named_leaves(theta).items()}

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Published path names to ours; architectures with published weights do it."""
        return arrays

    def transformation(
        self, theta: Theta, num_steps: Any = None
    ) -> optax.GradientTransformationExtraArgs:
        """This rule with fixed theta, as optax wants it. The loss is `value=`."""
        if self.needs_horizon and num_steps is None:
            raise MissingHorizon(self.name)

        def init_fn(params: Params) -> Any:
            return self.init(theta, params, num_steps)

        def update_fn(
            updates: Updates, state: Any, params: Params | None = None, **extra: Any
        ) -> tuple[Updates, Any]:
            if params is None:
                raise MissingParams(self.name)
            updates, state, _ = self.update(theta, updates, state, params, **extra)
            return updates, state

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # type: ignore[arg-type]
