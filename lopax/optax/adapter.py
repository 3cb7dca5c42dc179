"""`lopax.optimizer` and `lopax.scale_by`: a rule and its theta, as optax wants them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from lopax._core import leaves
from lopax._core.errors import (
    ConfigError,
)
from lopax._core.optimizer import LearnedOptimizer
from lopax._core.places import places_of, seen_as
from lopax._core.routing import Route
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Params, Theta
from lopax.architectures import architecture
from lopax.optax import watch
from lopax.optax.chain import from_rule
from lopax.optax.storage import by_name
from lopax.pretrained.index import read_weights
from lopax.theta import bundled_weights, load_optimizer


def optimizer(
    name: str,
    *,
    num_steps: Any = None,
    theta: Theta | None = None,
    weights: str | os.PathLike[str] | None = None,
    weight_decay: float = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
    lr_multiplier: float | optax.Schedule = 1.0,
    accumulate_beyond: int | None = None,
    momentum_dtype: str = "float32",
    routes: Sequence[Route] = (),
    report: bool = False,
    warn: bool = False,
    settings: Mapping[str, Any] | None = None,
    **config: Any,
) -> optax.GradientTransformationExtraArgs:
    """A pretrained learned optimizer, to be used wherever optax is.

        opt = lopax.optimizer("celo", num_steps=2_000)
        state = opt.init(params)
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = opt.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)

    **Arguments:**

    - `name`: an architecture, see `lopax.list_optimizers()`.
    - `num_steps`: how many updates the run will make. Rules that follow the fraction
        of training done (Celo, VeLO, Celo2 with a schedule) need it; it may be left
        out for the others.
        `lopax.extend` changes it later.
    - `theta`: meta-parameters in memory; or
    - `weights`: a weights file or the name of bundled weights. Default: the bundled
        weights of this architecture.
    - `weight_decay`: decoupled; each step removes `weight_decay` times the rule's own
        step scale (for Celo 0.001 times its schedule) of each parameter, so that
        values customary for AdamW fit.
    - `mask`: a pytree of bools, or a function from parameters to one, saying which
        parameters decay. Default: all.
    - `lr_multiplier`: a factor on every update, or an optax schedule of it.
    - `accumulate_beyond`: the longest run the rule can be trusted with. If `num_steps`
        is larger, ceil(num_steps / accumulate_beyond) gradients and losses are
        averaged for every step of the rule; in between, the updates are zero.
    - `momentum_dtype`: "float32", "bfloat16" or "int8" (in blocks, of tensors with
        two or more axes), what momenta are kept in between steps.
    - `routes`: `lopax.Route`s that say which axes of a tensor are a stack of layers or
        experts and which belong to the output, and for rules with roles the role.
    - `report`: keep per-tensor diagnostics of the last step in the state, for
        `lopax.info`. Costs one more pass over gradients, parameters and updates.
    - `warn`: let the step itself call the host and warn (`lopax.LopaxWarning`) past
        the end and after ten skipped steps in a row. Such a program is not kept in
        JAX's compilation cache. Without it, `lopax.info` says so.
    - `config`: settings of the architecture, over those saved with the weights.
    - `settings`: the same for settings that have the name of an argument above:
        `settings={"weight_decay": 0.1}` is STAR's or Celo2's own, which `weight_decay`
        is not.

    `init` warns, once each, of parameters that look like layers stacked in one array
    and have no route (`StackWarning`), and of a network with attention under the
    bundled `celo_adam`, whose steps are about three times too large for transformers:
    begin with `lr_multiplier=0.3` there.

    Raises `UnknownName`, `MissingHorizon`, `ConfigError`, `StructureMismatch`; the
    update raises `MissingLoss` / `MissingParams` when they are needed and not given.
    """
    bundled = theta is None and weights in (None, name)
    rule, theta = _load(name, theta, weights, {**config, **(settings or {})})
    opt = from_rule(
        rule,
        theta,
        num_steps=num_steps,
        weight_decay=weight_decay,
        mask=mask,
        lr_multiplier=lr_multiplier,
        accumulate_beyond=accumulate_beyond,
        momentum_dtype=momentum_dtype,
        routes=routes,
        report=report,
        warn=warn,
    )
    return watch.at_the_start(opt, rule, lr_multiplier, bundled, routes)


def scale_by(
    name: str,
    *,
    num_steps: Any = None,
    theta: Theta | None = None,
    weights: str | os.PathLike[str] | None = None,
    momentum_dtype: str = "float32",
    routes: Sequence[Route] = (),
    **config: Any,
) -> optax.GradientTransformationExtraArgs:
    """The rule's direction alone, for a chain of one's own; as `optax.scale_by_adam`
    it points uphill and knows neither weight decay nor a learning rate.

        opt = optax.chain(
            lopax.scale_by("celo", num_steps=2_000),
            optax.add_decayed_weights(1e-5),
            optax.scale_by_learning_rate(1.0),
        )

    Unlike Adam's, the direction has the rule's own size (and Celo's own schedule) in
    it, so that 1.0 is the learning rate to start from. Arguments and errors as for
    `optimizer`.
    """
    rule, theta = _load(name, theta, weights, config)
    return from_rule(
        rule,
        theta,
        num_steps=num_steps,
        momentum_dtype=momentum_dtype,
        routes=routes,
        lr_multiplier=-1.0,
    )


def roles(
    name: str,
    params: Params,
    *,
    weights: str | os.PathLike[str] | None = None,
    routes: Sequence[Route] = (),
    **config: Any,
) -> dict[str, str]:
    """What `optimizer(name, routes=routes, ...)` takes each tensor for, by its path.

        lopax.roles("celo2", params)  # {"embedding": "adam", "dense/w": "orthogonal"}

    Empty for rules that treat all tensors alike. Arguments and errors as for
    `optimizer`.
    """
    rule = _load(name, None, weights, config)[0].routed(routes)
    if not isinstance(rule, TensorRule) or not rule.roles:
        return {}
    named = by_name(params, leaves.trained(params))
    return {
        leaf.name: rule.role(seen_as(leaf, rule.view(leaf.name, leaf.shape)))
        for leaf in places_of(named)
    }


def _load(
    name: str,
    theta: Theta | None,
    weights: str | os.PathLike[str] | None,
    config: dict[str, Any],
) -> tuple[LearnedOptimizer, Theta]:
    """The architecture and its meta-parameters, from memory, a file or the bundle."""
    # `optax.inject_hyperparams` hands **config on as one argument of that name.
    config = {**config.pop("config", {}), **config}
    if theta is not None and weights is not None:
        raise ConfigError("give theta= or weights=, not both")
    if theta is not None:
        rule = architecture(name, **config)
        return rule, rule.theta_from_arrays(rule.theta_to_arrays(theta))
    architecture(name)  # an unknown name is reported as such
    file = bundled_weights(name) if weights is None else read_weights(weights)
    return load_optimizer(file, name, config)
