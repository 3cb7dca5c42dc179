"""Flatness measures against dense Hessians, and the estimators that use them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from quick_compile import quick_jit
from toy import LearnedRate

from lopax._core.errors import ConfigError
from lopax._core.task import SingleTask, Task
from lopax.architectures import architecture
from lopax.estimators import (
    ESTIMATORS,
    Flatness,
    FullGradient,
    Horizon,
    ParticleSettings,
    Regularised,
    TruncatedBackprop,
    Unroller,
)
from lopax.estimators import flatness as measures
from lopax.meta import EstimatorConfig, TasksConfig, build_families
from lopax.meta.trainer import build_estimator


def small_net() -> tuple[Any, Any, np.ndarray]:
    """A 4-4-2 network of 30 parameters on 20 examples: its loss of a pytree, the
    parameters after some training, and the dense Hessian there."""
    k_x, k_y, *k_w = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(k_x, (20, 4))
    y = jax.random.randint(k_y, (20,), 0, 2)
    params = {
        "w0": 0.7 * jax.random.normal(k_w[0], (4, 4)),
        "b0": jnp.zeros(4),
        "w1": 0.7 * jax.random.normal(k_w[1], (4, 2)),
        "b1": jnp.zeros(2),
    }

    def loss(p: Any) -> Any:
        hidden = jnp.tanh(x @ p["w0"] + p["b0"])
        logits = hidden @ p["w1"] + p["b1"]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(20), y])

    def descend(_: Any, p: Any) -> Any:
        return jax.tree.map(lambda a, g: a - 0.3 * g, p, jax.grad(loss)(p))

    params = jax.lax.fori_loop(0, 50, descend, params)
    flat, unravel = ravel_pytree(params)
    assert flat.size == 30
    hessian = jax.hessian(lambda v: loss(unravel(v)))(flat)
    return loss, params, np.asarray(hessian, np.float64)


LOSS, PARAMS, HESSIAN = small_net()
EIGENVALUES = np.linalg.eigvalsh(HESSIAN)
TRACE, LARGEST = EIGENVALUES.sum(), EIGENVALUES[-1]


def estimates(measure: str, iterations: int, count: int) -> np.ndarray:
    """[count] estimates from as many keys."""
    penalty = Flatness(measure=measure, iterations=iterations)
    program = jax.jit(jax.vmap(lambda k: penalty(LOSS, PARAMS, k)))
    return np.asarray(program(jax.random.split(jax.random.key(0), count)))


def estimate(measure: str, iterations: int) -> float:
    return float(estimates(measure, iterations, 1)[0])


def test_trace_and_largest_eigenvalue_match_the_dense_hessian():
    """Within 5 %, as the iterations suffice; the largest is positive here."""
    assert abs(EIGENVALUES[0]) < LARGEST
    assert estimate("trace", 4000) == pytest.approx(TRACE, rel=0.05)
    assert estimate("largest", 40) == pytest.approx(LARGEST, rel=0.05)
    assert estimate("lanczos_trace", 30) == pytest.approx(TRACE, rel=0.05)
    assert estimate("lanczos_largest", 10) == pytest.approx(LARGEST, rel=0.05)


def test_one_rademacher_vector_is_unbiased_and_lanczos_of_one_step_is_that():
    samples = estimates("trace", 1, 300)
    error = 5.0 * np.std(samples) / np.sqrt(300)
    assert abs(np.mean(samples) - TRACE) < error < 0.5 * TRACE
    # One Lanczos step is the form of one normalised vector: v^T H v / n.
    krylov = estimates("lanczos_trace", 1, 300)
    assert abs(30 * np.mean(krylov) - TRACE) < error


def test_lanczos_stops_where_the_space_is_exhausted():
    """A Hessian with three different eigenvalues has Krylov spaces of dimension 3."""
    diagonal = jnp.asarray([1.0, 1.0, 2.0, 2.0, 5.0, 5.0])
    for steps in (3, 6):
        args = (
            lambda x: 0.5 * jnp.sum(diagonal * x**2), jnp.ones(6),
            jax.random.key(0), steps,
        )  # fmt: skip
        np.testing.assert_allclose(measures.lanczos_trace(*args), 8.0, rtol=1e-4)
        np.testing.assert_allclose(measures.lanczos_largest(*args), 5.0, rtol=1e-4)


def test_power_iteration_keeps_the_sign():
    args = (lambda x: jnp.sum(jnp.asarray([-3.0, 1.0]) * x**2), jnp.ones(2))
    found = measures.largest_eigenvalue(*args, jax.random.key(0), 30)
    np.testing.assert_allclose(found, -6.0, rtol=1e-4)


def test_gradients_of_the_measures_are_those_of_the_dense_ones():
    """Of the trace and of the largest eigenvalue, by finite differences of dense
    Hessians along one direction."""
    flat, unravel = ravel_pytree(PARAMS)
    direction = jax.random.normal(jax.random.key(5), flat.shape)

    @jax.jit
    def dense(step: Any) -> tuple[Any, Any]:
        hessian = jax.hessian(lambda v: LOSS(unravel(v)))(flat + step * direction)
        return jnp.trace(hessian), jnp.linalg.eigvalsh(hessian)[-1]

    there, back = dense(1e-2), dense(-1e-2)
    trace, largest = (float(a - b) / 2e-2 for a, b in zip(there, back, strict=True))

    def slopes(measure: str, iterations: int, count: int) -> np.ndarray:
        penalty = Flatness(measure=measure, iterations=iterations)

        def one(key: Any) -> Any:
            grad = jax.grad(lambda p: penalty(LOSS, p, key))(PARAMS)
            return ravel_pytree(grad)[0] @ direction

        keys = jax.random.split(jax.random.key(0), count)
        return np.asarray(jax.jit(jax.vmap(one))(keys))

    assert slopes("lanczos_trace", 30, 1)[0] == pytest.approx(trace, rel=0.05)
    assert slopes("largest", 60, 1)[0] == pytest.approx(largest, rel=0.05)
    assert slopes("lanczos_largest", 20, 1)[0] == pytest.approx(largest, rel=0.05)
    samples = slopes("trace", 1, 4000)
    error = 5.0 * samples.std() / np.sqrt(4000)
    assert abs(samples.mean() - trace) < error < 0.5 * abs(trace)


def test_local_entropy_of_a_quadratic():
    """For f = h x^2 / 2 the Gibbs measure around x has mean g x / (h + g)."""
    h, g, x = 2.0, 1.5, jnp.asarray([3.0])
    penalty = Flatness(
        measure="local_entropy",
        iterations=2000,
        scope=g,
        step_size=0.05,
        temperature=0.01,
        averaging=0.01,
    )

    def value(x: Any) -> Any:
        return penalty(lambda y: 0.5 * h * jnp.sum(y**2), x, jax.random.key(0))

    slope = float(jax.grad(value)(x)[0])
    assert slope == pytest.approx(g * (3.0 - g * 3.0 / (h + g)), rel=0.02)
    assert float(value(x)) == pytest.approx(0.5 * slope**2 / g, rel=0.05)


# As part of a meta-gradient


@dataclasses.dataclass(frozen=True)
class Quartic(Task):
    """loss = x^4 / 12 from x = 1, whose Hessian is x^2."""

    def init(self, key):
        del key
        return {"x": jnp.ones((1,))}, None

    def loss(self, params, task_state, key, batch):
        del key, batch
        return jnp.sum(params["x"] ** 4) / 12.0, task_state


def quartic(estimator: str = "full", **changes: Any) -> Any:
    unroller = Unroller(
        optimizer=LearnedRate(),
        family=SingleTask(Quartic()),
        horizon=Horizon(low=4, high=4, staggered=False),
        **changes,
    )
    parts: dict[str, Any] = {
        "unroller": unroller,
        "settings": ParticleSettings(num_particles=2),
    }
    if estimator == "full":
        return FullGradient(**parts)
    return TruncatedBackprop(**parts, truncation=4)


THETA = LearnedRate().init_theta(None)


def one_step(estimator: Any) -> tuple[float, float]:
    state = estimator.init(THETA, jax.random.key(0))
    grad, _, info = jax.jit(estimator.step)(THETA, state, jax.random.key(1))
    return float(grad["rate"][0]), float(info.loss)


@pytest.mark.parametrize("kind", ["full", "truncated"])
@pytest.mark.parametrize("measure", ["trace", "lanczos_largest"])
def test_the_meta_gradient_is_that_of_the_penalised_loss(kind: str, measure: str):
    weight = 0.7

    def objective(rate: float) -> tuple[float, float]:
        x, loss, penalty = 1.0, 0.0, 0.0
        for _ in range(4):
            loss += x**4 / 12.0 / 4
            x = x - np.exp(rate) * x**3 / 3.0
            penalty += x**2 / 4
        return loss, loss + weight * penalty

    slope = (objective(-1.0 + 1e-5)[1] - objective(-1.0 - 1e-5)[1]) / 2e-5
    # In one dimension every measure is the second derivative itself.
    penalty = Flatness(measure=measure, weight=weight, iterations=3)
    grad, loss = one_step(Regularised(base=quartic(kind), flatness=penalty))
    assert grad == pytest.approx(slope, rel=1e-3)
    # The meta-loss that is reported has no penalty in it.
    assert loss == pytest.approx(objective(-1.0)[0], rel=1e-5)
    plain, _ = one_step(quartic(kind))
    assert abs(plain - grad) > 0.1 * abs(grad)


@pytest.mark.parametrize("start", [0.5, 0.75])
def test_a_penalty_may_act_on_the_end_of_a_run_only(start: float):
    def objective(rate: float) -> float:
        x, total = 1.0, 0.0
        for step in range(4):
            total += x**4 / 12.0 / 4
            x = x - np.exp(rate) * x**3 / 3.0
            total += (step >= start * 4) * x**2 / 4
        return total

    slope = (objective(-1.0 + 1e-5) - objective(-1.0 - 1e-5)) / 2e-5
    penalty = Flatness(measure="trace", weight=1.0, iterations=3, start=start)
    grad, _ = one_step(Regularised(base=quartic("full"), flatness=penalty))
    assert grad == pytest.approx(slope, rel=1e-3)
    with pytest.raises(ConfigError, match="start"):
        Flatness(start=1.0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_that_could_not_heed_a_penalty_refuse_it(name: str):
    families = build_families(
        [TasksConfig(datasets=("digits",), settings={"hidden": [4]}, augment="none")]
    )
    rule = architecture("l2o_lstm", lstm=3, layers=1)

    def built() -> Any:
        config = EstimatorConfig(
            name=name, particles=2, horizon_low=3, horizon_high=3, flatness="largest"
        )
        return build_estimator(config, rule, families, ("*",))

    if name in ("truncated_backprop", "full_gradient"):
        found = built()
        assert isinstance(found, Regularised)
        assert found.flatness == Flatness(measure="largest")
    else:
        reason = "acts on every" if name == "pipeline_backprop" else "have no effect"
        with pytest.raises(ConfigError, match=rf"flatness 'largest' with.*{reason}"):
            built()


def test_a_penalty_on_the_network_of_a_task():
    """On a tree of parameters and batches of data: finite, not the plain gradient."""
    families = build_families(
        [
            TasksConfig(
                datasets=("digits",),
                settings={"hidden": [4], "batch_size": 8},
                augment="none",
            )
        ]
    )
    grads, strength = {}, {"flatness_iterations": 2, "flatness_weight": 1.0}
    for flatness in ("none", "largest", "local_entropy"):
        config = EstimatorConfig(
            name="truncated_backprop",
            particles=2,
            truncation=3,
            horizon_low=9,
            horizon_high=9,
            staggered=False,
            chunk=2,
            flatness=flatness,
            **({} if flatness == "none" else strength),
        )
        estimator = build_estimator(config, LearnedRate(), families, ("*",))
        state = estimator.init(THETA, jax.random.key(1))
        step = quick_jit(estimator.step)
        grads[flatness] = float(step(THETA, state, jax.random.key(2))[0]["rate"][0])
    assert np.all(np.isfinite(list(grads.values())))
    for name in ("largest", "local_entropy"):
        assert abs(grads[name] - grads["none"]) > 1e-3 * abs(grads["none"])


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"measure = 'spectral'.*'trace'"):
        Flatness(measure="spectral")
    with pytest.raises(ConfigError, match="weight = 0"):
        Flatness(weight=0.0)
    with pytest.raises(ConfigError, match="averaging = 2"):
        Flatness(averaging=2.0)
