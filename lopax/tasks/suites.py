"""Suites: which tasks are run for how long when optimizers are compared. Tables only.

`lite` uses the architectures of the published evaluation at sizes that suit a CPU; no
task of it is a meta-training task (those of `recipes/` are small MLPs, convolutions
and autoencoders at 8x8 grey pixels and a character GRU of 16 units).
`smoke` needs no downloaded data and seconds. `stress` is a set of pass/fail problems.
`velodrome` is the published evaluation itself; it wants a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lopax._core.config import check_range, config_hash, to_dict
from lopax._core.registry import Registry
from lopax._core.task import Task
from lopax.tasks import stress_problems as stress
from lopax.tasks.table import TASKS, task, task_available
from lopax.tasks.velodrome import VELODROME


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """One task of a suite."""

    name: str
    make: Callable[[], Task]
    """Loads the data and makes the task."""
    num_steps: int
    about: str = ""
    version: str = "1"
    """Changes with the definition, so that old results are not taken for new ones."""
    registered: str | None = None
    """The name in `lopax.tasks.TASKS`, if it is one of those."""
    lanes: int | None = None
    """Training runs side by side; fewer where memory or cache would not hold more."""
    passes_below: float | None = None
    """For pass/fail problems: the final loss that counts as solved."""

    def __post_init__(self) -> None:
        check_range(self, "num_steps", low=1)

    @property
    def available(self) -> bool:
        """Whether its data are on this machine; reads none of them."""
        return self.registered is None or task_available(self.registered)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A table of tasks, and how often to evaluate on held-out data."""

    name: str
    about: str
    tasks: tuple[SuiteTask, ...]
    eval_every: int = 50
    eval_batches: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)


SUITES: Registry[Suite] = Registry("suite")


def suite(name: str) -> Suite:
    """The suite called `name`; raises `UnknownName` with near matches."""
    return SUITES[name]


def list_suites(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern."""
    return SUITES.names(pattern)


def registered(
    name: str, num_steps: int, *, lanes: int | None = None, **overrides: Any
) -> SuiteTask:
    """A task of `lopax.tasks.TASKS` as part of a suite."""
    entry = TASKS[name]
    settings = to_dict(entry.settings)
    return SuiteTask(
        name=name,
        make=lambda: task(name, **overrides),
        num_steps=num_steps,
        about=entry.about,
        version=config_hash([settings, overrides], length=8),
        registered=name,
        lanes=lanes,
    )


def _stress(
    name: str,
    about: str,
    make: Callable[[], Task],
    passes_below: float,
    num_steps: int = 1_000,
) -> SuiteTask:
    return SuiteTask(
        name=name,
        make=make,
        num_steps=num_steps,
        about=about,
        passes_below=passes_below,
        lanes=48,
    )


SUITES.add(
    "smoke",
    Suite(
        name="smoke",
        about="embedded data, seconds per optimizer: does it run at all?",
        tasks=(
            registered("digits_mlp_128x128", 150),
            registered("digits_autoencoder", 150),
            registered("breast_cancer_mlp_deep", 150),
        ),
        eval_every=50,
        eval_batches=2,
    ),
)

SUITES.add(
    "embedded",
    Suite(
        name="embedded",
        about="embedded data only, minutes: other networks, losses and data than the "
        "meta-training tasks",
        tasks=(
            registered("digits_mlp_tanh", 600),
            registered("digits_mlp_deep", 600),
            registered("digits_mlp_layernorm", 600),
            registered("digits_conv", 600, lanes=4),
            registered("digits_autoencoder", 600),
            registered("breast_cancer_mlp_deep", 600),
            registered("wine_mlp_deep", 600),
        ),
        eval_every=200,
    ),
)

SUITES.add(
    "validation",
    Suite(
        name="validation",
        about="what the bundled weights were chosen by; shares no task with the others",
        tasks=(
            registered("mnist_mlp_layernorm", 600),
            registered("cifar100_coarse10_mlp_tanh", 600),
            registered("fashion_mnist_mlp_deep", 600),
            registered("fashion_mnist_autoencoder", 600),
            registered("mnist_conv", 300, lanes=1),
            registered("wikitext2_valid_gru_lm", 300, lanes=4),
        ),
        eval_every=300,
    ),
)

SUITES.add(
    "lite",
    Suite(
        name="lite",
        about="the published families at CPU scale: MLPs, convolutions, autoencoders, "
        "recurrent and attention language models",
        tasks=(
            registered("fashion_mnist_mlp_128x128", 1_000),
            registered("cifar10_mlp_layernorm", 1_000),
            registered("cifar10_mlp_tanh", 1_000),
            registered("fashion_mnist_conv", 1_000, lanes=1, batch_size=16),
            registered("cifar10_conv_batchnorm", 1_000, lanes=1, batch_size=16),
            registered("cifar10_conv_layernorm", 1_000, lanes=1, batch_size=16),
            registered("mnist_autoencoder", 1_000),
            registered("cifar10_autoencoder", 1_000),
            registered("tinyshakespeare_lstm_lm", 1_000, lanes=1, batch_size=16),
            registered("war_and_peace_transformer_lm", 1_000, lanes=1, batch_size=8),
        ),
        eval_every=100,
    ),
)

SUITES.add(
    "velodrome",
    Suite(
        name="velodrome",
        about="the 17 published evaluation tasks (Moudgil et al., 2025), as published "
        "but for the texts; wants a GPU",
        tasks=tuple(
            registered(name, 2_000, lanes=entry.lanes)
            for name, entry in VELODROME.items()
        ),
        eval_every=10,
    ),
)

SUITES.add(
    "stress",
    Suite(
        name="stress",
        about="small problems, one difficulty each; solved or not",
        tasks=(
            _stress("easy", "a round quadratic", stress.quadratic, 1e-2),
            _stress(
                "condition_1e4",
                "curvatures from 1 to 1e-4",
                lambda: stress.quadratic(condition=1e4),
                1e-2,
            ),
            _stress("rosenbrock", "a curved valley", stress.rosenbrock, 0.1),
            _stress("saddle", "start beside a saddle", stress.saddle, 1e-2),
            _stress("plateau", "start where it is flat", stress.plateau, 1e-2),
            _stress("deep_linear", "six small matrices", stress.deep_linear, 1e-1),
            _stress("heavy_tails", "rare huge gradients", stress.heavy_tailed, 1e-2),
            _stress("sparse", "one coordinate a step", stress.sparse, 1e-2),
            _stress("exploding", "x^4 from x = 10", stress.exploding, 1.0),
            _stress(
                "loss_x1e4",
                "loss multiplied by 10,000",
                lambda: stress.quadratic(loss_scale=1e4),
                1e2,
            ),
            _stress(
                "loss_x1e-4",
                "loss multiplied by 0.0001",
                lambda: stress.quadratic(loss_scale=1e-4),
                1e-2 * 1e-4 + stress.FLOOR,
            ),
            _stress(
                "params_x100",
                "parameters of size 100",
                lambda: stress.quadratic(parameter_scale=100.0),
                1e-2,
            ),
            _stress(
                "params_x0.01",
                "parameters of size 0.01",
                lambda: stress.quadratic(parameter_scale=0.01),
                1e-2,
            ),
            _stress(
                "jump", "the minimum moves at half time", lambda: stress.jump(500), 1e-2
            ),
            _stress(
                "one_nan",
                "one NaN gradient in step 100",
                lambda: stress.one_bad_gradient(100),
                1e-2,
            ),
            _stress(
                "batch_1", "one example a step", lambda: stress.regression(1), 1e-2
            ),
            _stress(
                "batch_1000",
                "1,000 examples a step",
                lambda: stress.regression(1_000),
                1e-2,
            ),
            _stress(
                "horizon_10", "ten updates in all", stress.quadratic, 0.3, num_steps=10
            ),
            _stress("horizon_100", "100 updates in all", stress.quadratic, 0.03, 100),
            _stress(
                "horizon_20k",
                "20,000 updates, curvatures from 1 to 1e-6",
                lambda: stress.quadratic(condition=1e6),
                1e-3,
                num_steps=20_000,
            ),
        ),
        eval_every=1_000,
        eval_batches=1,
    ),
)
