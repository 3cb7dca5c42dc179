"""The outer optimizer: how theta follows the meta-gradient."""

from __future__ import annotations

import optax

from lopax._core.optimizer import LearnedOptimizer
from lopax._core.types import Theta
from lopax.meta import learned_outer
from lopax.meta.outer_config import OuterConfig


def schedule(config: OuterConfig, total: int) -> optax.Schedule:
    """Learning rate by update of theta, in a phase of `total` outer steps."""
    peak = config.learning_rate
    decay_steps = max((config.decay_steps or total) - config.warmup, 1)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, decay_steps, config.final_fraction)
    elif config.schedule == "halving":
        main = optax.exponential_decay(peak, decay_steps, 0.5, staircase=True)
    else:
        main = optax.constant_schedule(peak)
    if config.warmup:
        ramp = optax.linear_schedule(0.0, peak, config.warmup)
        main = optax.join_schedules([ramp, main], [config.warmup])
    return lambda count: main(config.accumulate * count)


def build(
    config: OuterConfig,
    total: int,
    trained: LearnedOptimizer,
    theta: Theta | None = None,
    adjustable: bool = False,
) -> optax.GradientTransformation:
    """The optax transformation of a phase of `total` outer steps.

    **Arguments:**

    - `trained`, `theta`: the rule that is being trained and what it starts with, for
        `optimizer = "self"`. theta may be left out where the state is not made.
    - `adjustable`: keep the multiplier in the state even if it is one.
    """
    if config.is_learned:
        rule = _learned(config, total, trained, theta)
    else:
        rule = _hand_made(config, schedule(config, total))
    if adjustable or config.multiplier != 1.0:
        rule = learned_outer.scaled(rule, config.multiplier)
    if config.clip_norm is not None:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if config.clip_value is not None:
        rule = optax.chain(optax.clip(config.clip_value), rule)
    if config.accumulate > 1:
        rule = optax.MultiSteps(rule, config.accumulate).gradient_transformation()
    return rule


def _hand_made(
    config: OuterConfig, rate: optax.Schedule
) -> optax.GradientTransformation:
    if config.optimizer == "sgd":
        return optax.sgd(rate, momentum=config.own["b1"])
    make = {"adamw": optax.adamw, "adam": optax.adam}[config.optimizer]
    return make(rate, **config.own)


def _learned(
    config: OuterConfig, total: int, trained: LearnedOptimizer, theta: Theta | None
) -> optax.GradientTransformation:
    if config.optimizer == learned_outer.SELF:
        optimizer, phi = trained, theta
    else:
        optimizer, phi = learned_outer.load(config.optimizer, config.weights)
    rule = learned_outer.transformation(optimizer, phi, -(-total // config.accumulate))
    if config.schedule == "constant" and not config.warmup:
        return rule
    rate = schedule(config, total)
    relative = optax.scale_by_schedule(lambda step: rate(step) / config.learning_rate)
    return optax.chain(rule, relative)
