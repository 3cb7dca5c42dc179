"""The stress suite: small problems, one difficulty each; solved or not. A table."""

from __future__ import annotations

from collections.abc import Callable

from lopax._core.task import Task
from lopax.tasks import stress_problems as stress
from lopax.tasks.suite import Suite, SuiteTask


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
        vmap_size=48,
    )


STRESS = Suite(
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
        _stress("batch_1", "one example a step", lambda: stress.regression(1), 1e-2),
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
)
