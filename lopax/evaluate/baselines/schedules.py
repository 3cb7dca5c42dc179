"""Learning-rate schedules of the baselines, as functions of the updates made before.

`peak` [] may be traced, which optax's own schedules do not allow.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from lopax._core.config import check_choice, check_range

SCHEDULES = ("constant", "cosine", "linear", "wsd")
"""After the warm-up: constant; half a cosine, or a line, to zero at the end of the
run; constant, then a line to zero over its last part (warm-up, stable, decay)."""


def check_schedule(config: Any) -> None:
    """Raises `ConfigError` unless `schedule`, `warmup` and `cooldown` are legal."""
    check_choice(config, "schedule", SCHEDULES)
    check_range(config, "warmup", low=0.0, below=1.0)
    check_range(config, "cooldown", above=0.0, high=1.0)


def schedule_of(
    num_steps: int,
    peak: Any,
    schedule: str = "linear",
    warmup: float = 0.0,
    cooldown: float = 0.2,
) -> optax.Schedule:
    """Rates of a run of `num_steps` updates: a warm-up, then one of `SCHEDULES`.

    **Arguments:**

    - `warmup`: share of the run over which the rate rises in equal steps; the first
      update has one of these steps, not zero.
    - `cooldown`: for "wsd": share of the run over which the rate falls.
    """
    rise = max(1, round(warmup * num_steps))
    fall = {"linear": num_steps - rise, "wsd": cooldown * num_steps}.get(schedule, 1)

    def rate(count: Any) -> Any:
        up = jnp.minimum(1.0, (count + 1) / rise)
        if schedule == "cosine":
            gone = jnp.clip((count - rise) / max(1, num_steps - rise), 0.0, 1.0)
            down = 0.5 * (1.0 + jnp.cos(jnp.pi * gone))
        elif schedule == "constant":
            down = 1.0
        else:
            down = jnp.clip((num_steps - count) / max(1.0, fall), 0.0, 1.0)
        return peak * up * down

    return rate


def warmup_cosine(num_steps: int, peak: Any, warmup: float = 0.05) -> optax.Schedule:
    """Linear warm-up from zero over a share of the run, then a cosine to zero."""
    shape = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=1.0,
        warmup_steps=max(1, round(warmup * num_steps)),
        decay_steps=max(2, num_steps),
    )
    return lambda count: peak * shape(count)
