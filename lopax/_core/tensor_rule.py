"""Template of nearly every architecture: a rule for one tensor, lifted to trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core import leaves, lifting, placing, stacks, zeroing
from lopax._core import tree as trees
from lopax._core.errors import MissingHorizon, MissingLoss, MissingParams
from lopax._core.optimizer import Info, OptState
from lopax._core.places import Leaf, numbered
from lopax._core.seen_tree import SeenTree
from lopax._core.tensor_hooks import Context, Shared, TensorHooks, TensorState
from lopax._core.types import Count, Params, Theta, Updates

INIT_TOGETHER = 24
"""From so many tensors on, their first states are made by one program, if they lie on
one device. A program for each new shape takes 0.02 s to compile."""


class TensorRule(TensorHooks[Shared, Context, TensorState]):
    """Template: a rule for one tensor, lifted to trees once, here. The guard against
    non-finite input lives here, too, so that no rule repeats it."""

    @lifting.own_arithmetic
    def init(self, theta: Theta, params: Params, num_steps: Any = None) -> OptState:
        if num_steps is None and self.needs_horizon:
            raise MissingHorizon(self.name)
        horizon = jnp.zeros((), jnp.int32)
        if num_steps is not None:
            horizon = lifting.horizon(num_steps)
        tree = SeenTree(params, self.view)

        # Copies, and no weak types: an array of theta's, or one that is used twice,
        # could not be donated, and a weak type would change in the first step.
        def own(x: Any) -> Any:
            return jax.tree.map(lambda x: jnp.array(x, x.dtype, copy=True), x)

        def make(theta: Theta, horizon: Count, tensors: Sequence[Any]) -> Any:
            seen = tree.apart(tensors)
            states = own(tree.states_together(self._init_all(theta, tree.places, seen)))
            starts = [self.starter(theta, leaf) for leaf in tree.stored]
            states = list(map(placing.like, tensors, states, starts))
            shared = self.init_shared(theta, horizon, len(seen))
            shared = self.see_start(theta, shared, horizon, tree.places, seen)
            return states, own(shared)

        one_program = len(tree.tensors) >= INIT_TOGETHER and placing.on_one_device(
            theta, tree.tensors
        )
        made = jax.jit(make) if one_program else make
        states, shared = made(theta, horizon, tree.tensors)
        return OptState(
            iteration=jnp.zeros((), jnp.int32),
            num_steps=horizon,
            skipped=jnp.zeros((), jnp.int32),
            shared=shared,
            tensors=tree.treedef.unflatten(states),
        )

    def starter(self, theta: Theta, leaf: Leaf) -> Callable[[tuple[int, ...]], Any]:
        """From a shape of rank >= 1 to the first state of a tensor in this place."""

        def start(shape: tuple[int, ...]) -> Any:
            place = Leaf(int(leaf), leaf.name, shape if leaf.shape else ())
            view = self.view(place.name, place.shape)
            places, _ = numbered([place], [view], first=int(leaf))
            tensors = stacks.apart(jnp.zeros(shape, jnp.float32), view)
            return stacks.states_together(self._init_all(theta, places, tensors), view)

        return start

    def _init_all(
        self, theta: Theta, places: Sequence[Leaf], tensors: Sequence[Any]
    ) -> list[Any]:
        pairs = zip(places, tensors, strict=True)
        return [self.init_leaf(theta, place, tensor) for place, tensor in pairs]

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
        tree = SeenTree(params, self.view)
        tensors, treedef, places = tree.tensors, tree.treedef, tree.places
        ps = tree.apart(tensors)
        given = treedef.flatten_up_to(leaves.gradients(params, grads))
        raw = tree.apart(given)
        held = leaves.flatten_like(
            "the optimizer's state", treedef.unflatten(tensors), state.tensors
        )
        starters = [self.starter(theta, leaf) for leaf in tree.stored]
        lifting.check_states(tree.stored, tree.views, tensors, held, starters)
        states = tree.states_apart(held)
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
        deltas = tree.together([d for d, _, _ in stepped])
        deltas = [d.astype(p.dtype) for d, p in zip(deltas, tensors, strict=True)]
        looked = [d for d in deltas if d.dtype != jnp.float32]  # may be infinite now
        looked += [d if seen is None else seen for d, _, seen in stepped]
        made = finite & lifting.all_finite(looked, None)
        by_kernel = [any(map(self.by_kernel, places[part])) for part in tree.members]
        deltas = zeroing.zero_unless(made, deltas, by_kernel)
        news = tree.states_together([new for _, new, _ in stepped])

        new_state = OptState(
            iteration=state.iteration + 1,
            num_steps=state.num_steps,
            skipped=state.skipped + (~made).astype(jnp.int32),
            shared=trees.select(made, shared, state.shared),
            tensors=treedef.unflatten(
                [
                    new if written else trees.select(made, new, old)
                    for written, new, old in zip(by_kernel, news, held, strict=True)
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
            idle=lifting.all_zero(sizes, tree.one_of_each()),
        )
        return leaves.in_place(params, treedef.unflatten(updates)), new_state, info


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _only_count(state: OptState, params: Params) -> tuple[OptState, Info]:
    """The step of a tree without tensors, such as an empty group of parameters."""
    no = jnp.zeros((), jnp.int32)
    info = Info(jnp.zeros((), jnp.float32), jnp.asarray(False), no, no, params, params)
    return state._replace(iteration=state.iteration + 1), info
