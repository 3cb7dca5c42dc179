"""The outer optimizer: how theta follows the meta-gradient."""

from __future__ import annotations

import optax

from lopax.meta.config import OuterConfig


def schedule(config: OuterConfig, total: int) -> optax.Schedule:
    """Learning rate by outer step of a phase of `total` steps."""
    peak = config.learning_rate
    decay_steps = max((config.decay_steps or total) - config.warmup, 1)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, decay_steps, config.final_fraction)
    else:
        main = optax.constant_schedule(peak)
    if not config.warmup:
        return main
    ramp = optax.linear_schedule(0.0, peak, config.warmup)
    return optax.join_schedules([ramp, main], [config.warmup])


def build(config: OuterConfig, total: int) -> optax.GradientTransformation:
    """The optax transformation of a phase of `total` outer steps."""
    rate = schedule(config, total)
    if config.optimizer == "adamw":
        rule = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    elif config.optimizer == "adam":
        rule = optax.adam(rate, b1=config.b1, b2=config.b2, eps=config.eps)
    else:
        rule = optax.sgd(rate, momentum=config.b1)
    if config.clip_norm is not None:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    return rule
