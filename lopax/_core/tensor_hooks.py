"""What a rule for one tensor says; `tensor_rule` lifts it to trees."""

from __future__ import annotations

import abc
import copy
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

from lopax._core import lifting, routing
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.places import Leaf
from lopax._core.routing import Route, Seen
from lopax._core.run import Run
from lopax._core.types import Count, Flag, Scalar, Theta

TensorState = TypeVar("TensorState")
Shared = TypeVar("Shared")
Context = TypeVar("Context")


class TensorHooks(LearnedOptimizer, Generic[Shared, Context, TensorState]):
    """What a rule says of one tensor, and of what tensors share.

    A step is: (1) summarise each tensor, if the rule shares information between
    tensors; (2) `advance` what is shared, once; (3) `step` each tensor. Parameters
    and gradients arrive in float32 whatever their dtype; scalars arrive with shape
    (1,).
    """

    grad_clip: ClassVar[float] = 1000.0
    param_like: ClassVar[tuple[str, ...]] = ()
    """Fields of a tensor's state that have the tensor's size, whatever its role."""
    roles: ClassVar[tuple[str, ...]] = ()
    """What `Route.role` may be; () for rules that treat all tensors alike."""
    user_routes: tuple[Route, ...] = ()

    def routed(self, routes: Any) -> Self:
        """This rule with `lopax.Route`s that come before its own. Raises `ConfigError`
        for what is no route, and for a role the rule does not have."""
        found = copy.copy(self)
        found.user_routes = routing.checked(routes)
        routing.check_roles(self, found.user_routes, None, self.roles)
        return found

    def role(self, leaf: Leaf) -> str:
        """One of `roles`; for rules that have some, and a default in their settings."""
        default = getattr(getattr(self, "config", None), "default_role", "")
        return routing.role_of(leaf.name, leaf.shape, self.routes, default)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The user's, then those of the settings."""
        own = getattr(getattr(self, "config", None), "routes", ())
        return (*self.user_routes, *own)

    def view(self, name: str, shape: tuple[int, ...]) -> Seen:
        """As what tensors the rule sees a stored one."""
        return routing.seen(name, shape, self.routes, out_first=False)

    @abc.abstractmethod
    def init_shared(self, theta: Theta, num_steps: Count, num_tensors: int) -> Shared:
        """State common to all tensors."""

    def see_start(
        self,
        theta: Theta,
        shared: Shared,
        num_steps: Count,
        places: Sequence[Leaf],
        tensors: Sequence[Any],
    ) -> Shared:
        """What `init_shared` made, for rules that go by the tensors' first values."""
        del theta, num_steps, places, tensors
        return shared

    @abc.abstractmethod
    def init_tensor(self, theta: Theta, param: Any) -> TensorState:
        """State of one tensor; `param` has a shape of rank >= 1."""

    def init_leaf(self, theta: Theta, leaf: Leaf, param: Any) -> TensorState:
        """`init_tensor`, for rules whose state depends on the tensor's role."""
        del leaf
        return self.init_tensor(theta, param)

    def group_key(self, leaf: Leaf) -> Hashable:
        """What `step` depends on beside its arrays. Tensors of one shape and one key
        may be stepped together under `vmap`; None (the default): never, for rules
        that look up their tensor's part of the context or call a kernel."""
        del leaf
        return None

    def gradient_bound(self, shared: Shared) -> Any:
        """[] gradients are clipped elementwise to +- this before anything sees them."""
        del shared
        return self.grad_clip

    def summarise(
        self, theta: Theta, leaf: Leaf, grad: Any, state: TensorState, param: Any
    ) -> Any:
        """A fixed-size summary [F] of one tensor, or None if the rule needs none.

        `state` is the one before this gradient. A rule that summarises its updated
        accumulators computes them here and again in `step`; the compiler sees that
        the two are the same.
        """
        del theta, leaf, grad, state, param
        return None

    @abc.abstractmethod
    def advance(
        self,
        theta: Theta,
        shared: Shared,
        run: Run,
        summaries: Any,
    ) -> tuple[Shared, Context, Scalar]:
        """Advances what is shared, once a step.

        **Arguments:**

        - `run`: its loss is finite (another is replaced before the call and its
            effects are discarded after it); its fraction is at most 1: past the
            horizon, where no rule was trained, the end of the schedule goes on.
        - `summaries`: [tensors, F] stacked summaries, or None.

        **Returns:** the next shared state, the context each tensor's step receives,
        and the step scale to report.
        """

    @abc.abstractmethod
    def step(
        self,
        theta: Theta,
        context: Context,
        index: Leaf,
        grad: Any,
        state: TensorState,
        param: Any,
    ) -> tuple[Any, TensorState]:
        """What to add to one tensor, and its next state.

        `index` is the tensor's place in the tree, for contexts with per-tensor parts
        and for rules that treat tensors by their name or rank.
        """

    def by_kernel(self, leaf: Leaf) -> bool:
        """Whether a fused kernel steps this tensor. It writes the state in place, which
        is then not kept back if only the finished update is not finite: that would
        take a copy of it, and twice the time."""
        del leaf
        return False

    def long_step(self, leaf: Leaf) -> bool:
        """Whether a tensor's step is many operations on each element, for `guarded`."""
        del leaf
        return False

    def step_or_keep(
        self,
        theta: Theta,
        context: Context,
        index: Leaf,
        grad: Any,
        state: TensorState,
        param: Any,
        finite: Flag,
        bound: Any,
    ) -> tuple[Any, TensorState, Any]:
        """The step, `lifting.guarded`, and what a fused kernel saw of it: [] float32,
        finite if the step is. None where nobody has looked.

        Rules with such a kernel clip and choose inside it, which saves passes over
        gradient and state.
        """

        def step(grad: Any) -> tuple[Any, TensorState]:
            return self.step(theta, context, index, grad, state, param)

        apart = self.long_step(index)
        delta, new = lifting.guarded(step, grad, state, finite, bound, apart)
        return delta, new, None
