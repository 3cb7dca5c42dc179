"""What there is, by name: the functions behind `lopax list`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopax._core.tree import count_bytes, count_elements
from lopax.architectures import ARCHITECTURES, architecture
from lopax.blocks import narrow_momenta
from lopax.pretrained.index import list_weights
from lopax.tasks import list_tasks
from lopax.tasks.suites import list_suites
from lopax.theta import bundled_weights, load_optimizer


class OptimizerFacts(NamedTuple):
    """One line of `lopax list optimizers`."""

    name: str
    meta_parameters: int
    bytes_per_parameter: float  # state, for a 512x512 matrix
    narrow_bytes_per_parameter: float | None  # with momentum_dtype="bfloat16", if any
    int8_bytes_per_parameter: float | None  # with "int8"
    needs_loss: bool
    needs_horizon: bool
    has_weights: bool
    reference: str


def list_optimizers(pattern: str = "*") -> list[str]:
    """Names for `lopax.architecture` and `lopax.optimizer`."""
    return ARCHITECTURES.names(pattern)


def optimizer_facts(pattern: str = "*") -> list[OptimizerFacts]:
    """Sizes and needs of the architectures, with the settings of their bundled weights
    if there are some; computes shapes only, no arrays."""
    bundled = set(list_weights())
    return [_facts(name, name in bundled) for name in list_optimizers(pattern)]


def _facts(name: str, has_weights: bool) -> OptimizerFacts:
    rule = architecture(name)
    if has_weights:
        rule, _ = load_optimizer(bundled_weights(name), name, {})
    theta = jax.eval_shape(rule.init_theta, jax.random.key(0))

    def state_bytes(side: int, dtype: str) -> int:
        packing = narrow_momenta.choose(rule, dtype)
        params = {"w": jax.ShapeDtypeStruct((side, side), jnp.float32)}
        state = jax.eval_shape(
            lambda t, p: packing.start(rule.init(t, p, 1), p), theta, params
        )
        return count_bytes(state)

    def per_parameter(dtype: str) -> float:
        # What grows with the tensor, without what is kept once per run.
        small, large = (state_bytes(side, dtype) for side in (16, 512))
        return (large - small) / (512**2 - 16**2)

    narrow = narrow_momenta.supported(rule)
    return OptimizerFacts(
        name=name,
        meta_parameters=count_elements(theta),
        bytes_per_parameter=per_parameter("float32"),
        narrow_bytes_per_parameter=per_parameter("bfloat16") if narrow else None,
        int8_bytes_per_parameter=per_parameter("int8") if narrow else None,
        needs_loss=rule.needs_loss,
        needs_horizon=rule.needs_horizon,
        has_weights=has_weights,
        reference=rule.reference,
    )


__all__ = [
    "OptimizerFacts",
    "list_optimizers",
    "list_suites",
    "list_tasks",
    "optimizer_facts",
]
