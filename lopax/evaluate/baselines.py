"""The hand-made optimizers that anything new is measured against, as a table.

Well-kept implementations (optax, optax.contrib), not ours. All are tuned with the same
stated budget: fifteen learning rates each, every other setting at optax's default
unless the table says otherwise. optax has neither Shampoo nor SOAP, and the packages
for JAX that do have not been maintained for years, so neither is listed; pass one as
an `OptimizerSpec` to include it.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from optax import contrib

from lopax._core.errors import ConfigError
from lopax._core.registry import Registry
from lopax._core.types import Params
from lopax.evaluate.specs import LEARNING_RATES, Make, OptimizerSpec

BASELINES: Registry[OptimizerSpec] = Registry("baseline")

PUBLISHED = (
    "adam",
    "sgd",
    "sgdm",
    "adamw",
    "rmsprop",
    "fromage",
    "sm3",
    "lars",
    "lamb",
    "adabelief",
    "adafactor",
    "adagrad",
    "yogi",
    "radam",
    "nadamw",
)
"""The fifteen of the published comparison (Moudgil et al., 2025, arXiv 2501.12670)."""

CONTEMPORARY = (
    "lion",
    "muon",
    "schedule_free_adamw",
    "prodigy",
    "adamw_cosine",
    "ademamix",
)
"""What a practitioner would reach for in 2026."""


def baseline(name: str) -> OptimizerSpec:
    """The baseline called `name`; raises `UnknownName` with near matches."""
    return BASELINES[name]


def default_rate(name: str, learning_rate: float) -> OptimizerSpec:
    """A baseline at one fixed learning rate, as people use it who do not tune.

    Raises `ConfigError` unless the rate is positive.
    """
    if not 0.0 < learning_rate < math.inf:
        raise ConfigError(f"learning_rate = {learning_rate!r}: must be a number > 0")
    spec = BASELINES[name]
    return OptimizerSpec(
        name=f"{name}@{learning_rate:g}",
        make=lambda num_steps, _: spec.make(num_steps, learning_rate),
        settings={**spec.settings, "of": name, "learning_rate": learning_rate},
        eval_params=spec.eval_params,
        note=f"{name}, untuned",
    )


def warmup_cosine(num_steps: int, peak: Any, warmup: float = 0.05) -> Any:
    """A schedule: linear warm-up over a share of the run, then a cosine to zero.

    `peak` [] may be traced, which optax's own schedule does not allow.
    """
    shape = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=1.0,
        warmup_steps=max(1, round(warmup * num_steps)),
        decay_steps=max(2, num_steps),
    )
    return lambda count: peak * shape(count)


def _schedule_free_params(state: Any, params: Params) -> Params:
    """Schedule-free methods are evaluated at the average of their iterates."""
    is_state = lambda s: isinstance(s, contrib.ScheduleFreeState)  # noqa: E731
    found = [s for s in jax.tree.leaves(state, is_leaf=is_state) if is_state(s)]
    return contrib.schedule_free_eval_params(found[0], params)


def _add(
    name: str,
    make: Make,
    note: str,
    rates: tuple[float, ...] = LEARNING_RATES,
    eval_params: Any = None,
    **settings: Any,
) -> None:
    BASELINES.add(
        name,
        OptimizerSpec(
            name=name,
            make=make,
            learning_rates=rates,
            settings=settings,
            eval_params=eval_params,
            note=note,
        ),
    )


_add("adam", lambda n, lr: optax.adam(lr), "Kingma & Ba, 2015, arXiv 1412.6980")
_add("sgd", lambda n, lr: optax.sgd(lr), "no momentum")
_add(
    "sgdm",
    lambda n, lr: optax.sgd(lr, momentum=0.9),
    "momentum 0.9",
    momentum=0.9,
)
_add(
    "adamw",
    lambda n, lr: optax.adamw(lr),
    "Loshchilov & Hutter, 2019, arXiv 1711.05101; weight decay 1e-4",
)
_add("rmsprop", lambda n, lr: optax.rmsprop(lr), "Tieleman & Hinton, 2012")
_add(
    "fromage",
    lambda n, lr: optax.fromage(lr),
    "Bernstein et al., 2020, arXiv 2002.03432",
)
_add("sm3", lambda n, lr: optax.sm3(lr), "Anil et al., 2019, arXiv 1901.11150")
_add("lars", lambda n, lr: optax.lars(lr), "You et al., 2017, arXiv 1708.03888")
_add("lamb", lambda n, lr: optax.lamb(lr), "You et al., 2020, arXiv 1904.00962")
_add(
    "adabelief",
    lambda n, lr: optax.adabelief(lr),
    "Zhuang et al., 2020, arXiv 2010.07468",
)
_add(
    "adafactor",
    lambda n, lr: optax.adafactor(lr),
    "Shazeer & Stern, 2018, arXiv 1804.04235; step relative to the parameter",
)
_add("adagrad", lambda n, lr: optax.adagrad(lr), "Duchi et al., 2011")
_add("yogi", lambda n, lr: optax.yogi(lr), "Zaheer et al., 2018")
_add("radam", lambda n, lr: optax.radam(lr), "Liu et al., 2020, arXiv 1908.03265")
_add("nadamw", lambda n, lr: optax.nadamw(lr), "Dozat, 2016; weight decay 1e-4")
_add(
    "lion",
    lambda n, lr: optax.lion(lr),
    "Chen et al., 2023, arXiv 2302.06675; weight decay 1e-3",
)
_add(
    "muon",
    lambda n, lr: contrib.muon(lr),
    "Jordan et al., 2024; matrices orthogonalised, the rest by Adam at the same rate",
)
_add(
    "schedule_free_adamw",
    lambda n, lr: contrib.schedule_free_adamw(
        lr, warmup_steps=max(1, round(0.05 * n)), b1=0.9
    ),
    "Defazio et al., 2024, arXiv 2405.15682; warm-up over 5 % of the run; evaluated "
    "at the averaged parameters",
    eval_params=_schedule_free_params,
    warmup=0.05,
)
_add(
    "prodigy",
    lambda n, lr: contrib.prodigy(lr),
    "Mishchenko & Defazio, 2024, arXiv 2306.06101; its rate is a multiplier around 1",
    rates=(*(m * 10.0**e for e in range(-5, 2) for m in (1.0, 3.0)), 100.0),
)
_add(
    "adamw_cosine",
    lambda n, lr: optax.adamw(warmup_cosine(n, lr)),
    "AdamW, linear warm-up over 5 % of the run, cosine to zero; weight decay 1e-4",
    warmup=0.05,
)
_add(
    "ademamix",
    lambda n, lr: contrib.ademamix(lr),
    "Pagliardini et al., 2025, arXiv 2409.03137",
)
