"""Template of nearly every architecture: a rule for one tensor, lifted to trees."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import jax
import jax.numpy as jnp

from lopax._core import leaves, lifting, placing, routing, stacks
from lopax._core import tree as trees
from lopax._core.errors import (
    MissingHorizon,
    MissingLoss,
    MissingParams,
)
from lopax._core.optimizer import Info, LearnedOptimizer, OptState
from lopax._core.places import Leaf, numbered, places_of, seen_as
from lopax._core.routing import Route, Seen
from lopax._core.run import Run
from lopax._core.types import Count, Flag, Params, Scalar, Theta, Updates

TensorState = TypeVar("TensorState")
Shared = TypeVar("Shared")
Context = TypeVar("Context")


INIT_TOGETHER = 24
"""From so many tensors on, their first states are made by one program, if they lie on
one device. A program for each new shape takes 0.02 s to compile."""


class TensorRule(LearnedOptimizer, Generic[Shared, Context, TensorState]):
    """Template: a rule for one tensor, lifted to trees once, here.

    A step is: (1) summarise each tensor, if the rule shares information between
    tensors; (2) `advance` what is shared, once; (3) `step` each tensor. Parameters
    and gradients arrive in float32 whatever their dtype; scalars arrive with shape
    (1,). The guard against non-finite input lives here, so that no rule repeats it.
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
    ) -> tuple[Any, TensorState]:
        """The step, `lifting.guarded`.

        Rules with a fused kernel clip and choose inside it, which saves passes over
        gradient and state.
        """

        def step(grad: Any) -> tuple[Any, TensorState]:
            return self.step(theta, context, index, grad, state, param)

        return lifting.guarded(step, grad, state, finite, bound, self.long_step(index))

    @lifting.own_arithmetic
    def init(self, theta: Theta, params: Params, num_steps: Any = None) -> OptState:
        if num_steps is None and self.needs_horizon:
            raise MissingHorizon(self.name)
        horizon = jnp.zeros((), jnp.int32)
        if num_steps is not None:
            horizon = lifting.horizon(num_steps)
        tensors, treedef = jax.tree.flatten(leaves.trained(params))

        # Copies, and no weak types: an array of theta's, or one that is used twice,
        # could not be donated, and a weak type would change in the first step.
        def own(tree: Any) -> Any:
            return jax.tree.map(lambda x: jnp.array(x, x.dtype, copy=True), tree)

        stored = places_of(params)
        views = [self.view(leaf.name, leaf.shape) for leaf in stored]
        places, members = numbered(stored, views)

        def make(theta: Theta, horizon: Count, tensors: Sequence[Any]) -> Any:
            states, seen = [], []
            for i, param in enumerate(tensors):
                of_leaf, parts = (
                    places[members[i]],
                    stacks.apart(lifting.as_tensor(param), views[i]),
                )
                state = own(self._init_seen(theta, of_leaf, views[i], parts))
                start = self.starter(theta, stored[i])
                states.append(placing.like(param, state, start))
                seen += parts
            shared = self.init_shared(theta, horizon, len(places))
            return states, own(self.see_start(theta, shared, horizon, places, seen))

        one_program = len(tensors) >= INIT_TOGETHER and placing.on_one_device(
            theta, tensors
        )
        made = jax.jit(make) if one_program else make
        states, shared = made(theta, horizon, tensors)
        return OptState(
            iteration=jnp.zeros((), jnp.int32),
            num_steps=horizon,
            skipped=jnp.zeros((), jnp.int32),
            shared=shared,
            tensors=treedef.unflatten(states),
        )

    def starter(self, theta: Theta, leaf: Leaf) -> Callable[[tuple[int, ...]], Any]:
        """From a shape of rank >= 1 to the first state of a tensor in this place."""

        def start(shape: tuple[int, ...]) -> Any:
            place = Leaf(int(leaf), leaf.name, shape if leaf.shape else ())
            view = self.view(place.name, place.shape)
            places, _ = numbered([place], [view], first=int(leaf))
            zeros = jnp.zeros(shape, jnp.float32)
            return self._init_seen(theta, places, view, stacks.apart(zeros, view))

        return start

    def _init_seen(
        self,
        theta: Theta,
        places: Sequence[Leaf],
        view: Seen,
        tensors: Sequence[Any],
    ) -> Any:
        """The state of a stored tensor: of a stack, the states stacked in front."""
        states = [
            self.init_leaf(theta, place, tensor)
            for place, tensor in zip(places, tensors, strict=True)
        ]
        return stacks.states_together(states, view)

    @lifting.own_arithmetic
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
        del extra
        if self.needs_loss and value is None:
            raise MissingLoss(self.name)
        if params is None:
            raise MissingParams(self.name)
        tensors, treedef = jax.tree.flatten(leaves.trained(params))
        stored = places_of(params)
        views = [self.view(leaf.name, leaf.shape) for leaf in stored]
        places, members = numbered(stored, views)

        def seen(arrays: list[Any]) -> list[Any]:
            apart = map(stacks.apart, map(lifting.as_tensor, arrays), views)
            return [x for tensor in apart for x in tensor]

        ps = seen(tensors)
        given = treedef.flatten_up_to(leaves.gradients(params, grads))
        raw = seen(given)
        states = leaves.flatten_like(
            "the optimizer's state", treedef.unflatten(tensors), state.tensors
        )
        starters = [self.starter(theta, leaf) for leaf in stored]
        lifting.check_states(stored, views, tensors, states, starters)
        held = states
        states = [
            one
            for whole, view in zip(held, views, strict=True)
            for one in stacks.states_apart(whole, view)
        ]
        value = lifting.scalar_loss(value)
        if not tensors:
            none = treedef.unflatten([])
            return leaves.in_place(params, none), *_only_count(state, none)

        sizes = [lifting.largest(g) for g in given]
        flaws = lifting.flaws(sizes, value)
        finite = ~jnp.any(flaws)
        bound = self.gradient_bound(state.shared)
        gs = [jnp.clip(jnp.where(finite, g, 0.0), -bound, bound) for g in raw]
        if value is not None:
            value = jnp.where(finite, value, 0.0)

        summaries = [
            self.summarise(theta, *args)
            for args in zip(places, gs, states, ps, strict=True)
        ]
        no_summary = summaries[0] is None
        shared, context, scale = self.advance(
            theta,
            state.shared,
            state.run(value),
            None if no_summary else jnp.stack(summaries),
        )

        finite = finite & lifting.all_finite(
            [x for x in jax.tree.leaves((shared, context, scale)) if _is_float(x)], None
        )

        def step_one(leaf: Leaf, grad: Any, state: Any, param: Any) -> Any:
            return self.step_or_keep(
                theta, context, leaf, grad, state, param, finite, bound
            )

        stepped = lifting.map_equal_together(
            step_one,
            places,
            [self.group_key(leaf) for leaf in places],
            list(zip(raw, states, ps, strict=True)),
        )
        deltas = [
            stacks.together([d for d, _ in stepped[part]], view, leaf.shape or (1,))
            for part, view, leaf in zip(members, views, stored, strict=True)
        ]
        deltas = [d.astype(p.dtype) for d, p in zip(deltas, tensors, strict=True)]
        made = finite & lifting.all_finite(deltas, None)
        deltas = [jnp.where(made, d, jnp.zeros((), d.dtype)) for d in deltas]
        news = [
            stacks.states_together([new for _, new in stepped[part]], view)
            for part, view in zip(members, views, strict=True)
        ]

        def keep_unless(made: Flag, of: Sequence[Leaf], new: Any, old: Any) -> Any:
            by_kernel = any(self.by_kernel(leaf) for leaf in of)
            return new if by_kernel else trees.select(made, new, old)

        new_state = OptState(
            iteration=state.iteration + 1,
            num_steps=state.num_steps,
            skipped=state.skipped + (~made).astype(jnp.int32),
            shared=trees.select(made, shared, state.shared),
            tensors=treedef.unflatten(
                [
                    keep_unless(made, places[part], new, old)
                    for part, new, old in zip(members, news, held, strict=True)
                ]
            ),
        )
        updates = [d.reshape(p.shape) for d, p in zip(deltas, tensors, strict=True)]
        rms = [lifting.rms(lifting.as_tensor(d)) for d in deltas]
        clipped = [jnp.sum(jnp.abs(g) > bound, dtype=jnp.int32) for g in raw]
        ratio = [
            r / (lifting.rms(lifting.as_tensor(p)) + 1e-12)
            for r, p in zip(rms, tensors, strict=True)
        ]
        info = Info(
            step_scale=scale,
            skipped=~made,
            flaw=jnp.where(jnp.any(flaws), jnp.argmax(flaws), -1).astype(jnp.int32),
            clipped=jnp.asarray(sum(clipped), jnp.int32),
            update_rms=treedef.unflatten(rms),
            update_to_weight=treedef.unflatten(ratio),
            idle=lifting.all_zero(sizes, list(map(seen_as, stored, views))),
        )
        return leaves.in_place(params, treedef.unflatten(updates)), new_state, info


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _only_count(state: OptState, params: Params) -> tuple[OptState, Info]:
    """The step of a tree without tensors, such as an empty group of parameters."""
    no = jnp.zeros((), jnp.int32)
    info = Info(jnp.zeros((), jnp.float32), jnp.asarray(False), no, no, params, params)
    return state._replace(iteration=state.iteration + 1), info
