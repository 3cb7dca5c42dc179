"""Wide families of tasks: rarer networks, worse gradients, drawn groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopax import tasks
from lopax._core.errors import ConfigError, UnknownName
from lopax.meta import (
    TasksConfig,
    VarietyConfig,
    build_family,
    draw_groups,
    load_recipe,
)
from lopax.tasks.degraded import PROBABILITIES, Degradations, Degraded

OFF = dict.fromkeys(PROBABILITIES, 0.0)
SMALL = {"hidden": (4,), "batch_size": 16}


def degraded(**odds: Any) -> tuple[Any, Any, Any]:
    """A degraded small MLP, its parameters and state; all limits small."""
    limits = {"most_directions": 3, "most_pairs": 2, "most_delay": 3}
    base = tasks.supervised_family("mlp", ("digits",), **SMALL)
    family = Degraded(base, Degradations(**{**OFF, **limits, **odds}))
    task = family.task(family.sample(jax.random.key(0)))
    return task, *task.init(jax.random.key(1))


def gradients(task: Any, params: Any, state: Any, keys: Any) -> Any:
    return jax.jit(jax.vmap(lambda k: task.value_and_grad(params, state, k)[:2]))(keys)


def flat(tree: Any) -> np.ndarray:
    """[n, elements] of a tree of [n, ...]."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def test_without_degradations_nothing_changes():
    task, params, state = degraded()
    assert task.drawn == {} and state["past"] == ()
    base = task.base
    losses, grads = gradients(task, params, state, jax.random.split(jax.random.key(2)))
    batch = task.batch(jax.random.key(5))
    assert batch[0].shape[0] == 16
    loss, _ = base.loss(params, None, jax.random.key(0), batch)
    ours, _ = task.loss(params, state, jax.random.key(0), batch)
    assert loss == ours
    assert np.all(np.isfinite(losses)) and np.all(np.isfinite(flat(grads)))


def test_a_reduced_batch_repeats_a_few_examples():
    task, _, _ = degraded(reduced_batch=1.0)
    share = float(task.drawn["share"])
    inputs = np.asarray(task.batch(jax.random.key(0))[0])
    assert len(np.unique(inputs, axis=0)) <= int(np.ceil(share * 16)) < 16
    whole = np.asarray(task.batch(jax.random.key(0), "test")[0])
    assert len(np.unique(whole, axis=0)) > 10


def test_bfloat16_rounds_parameters_and_gradients():
    task, params, state = degraded(bfloat16=1.0)
    _, grads, _ = task.value_and_grad(params, state, jax.random.key(0))
    for g in jax.tree.leaves(grads):
        np.testing.assert_array_equal(g, g.astype(jnp.bfloat16).astype(g.dtype))
    near = jax.tree.map(lambda p: p * (1.0 + 1e-5), params)
    batch = task.batch(jax.random.key(3))
    a, b = (task.loss(p, state, jax.random.key(0), batch)[0] for p in (params, near))
    coarse = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(p.dtype), params)
    want = task.base.loss(coarse, None, jax.random.key(0), batch)[0]
    assert a == want and abs(float(a - b)) < 1e-2


def test_normalised_gradients_have_length_one():
    task, params, state = degraded(normalised=1.0)
    _, grads = gradients(task, params, state, jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(np.linalg.norm(flat(grads), axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("name", ["directions", "evolution", "noisy"])
def test_random_gradients_are_right_on_average(name: str):
    """On one batch, over random directions or noise; and single ones are not right."""
    task, params, state = degraded(**{name: 1.0})
    batch = task.batch(jax.random.key(0))

    class OneBatch(type(task)):
        def batch(self, key: Any, split: str = "train") -> Any:
            del key, split
            return batch

    one = OneBatch(task.base, task.drawn, task.limits)
    keys = jax.random.split(jax.random.key(1), 6_000)
    found = flat(gradients(one, params, state, keys)[1])
    exact = jax.grad(lambda p: task.base.loss(p, None, keys[0], batch)[0])(params)
    exact = np.concatenate([np.ravel(x) for x in jax.tree.leaves(exact)])
    error = found.mean(0) - exact
    noise = found.std(0) / np.sqrt(len(found)) + 1e-7
    assert np.sqrt(np.mean(np.square(error / noise))) < 1.2
    assert np.linalg.norm(found[0] - exact) > 0.005 * np.linalg.norm(exact)


def test_delayed_gradients_are_those_of_earlier_steps():
    task, params, state = degraded(delayed=1.0)
    delay = int(task.drawn["delay"])
    assert 1 <= delay <= 3
    base, seen, exact = task.base, [], []
    for step in range(7):
        key = jax.random.key(step)
        moved = jax.tree.map(lambda p, s=step: p + 0.01 * s, params)
        _, grads, state = task.value_and_grad(moved, state, key)
        _, batch_key, loss_key = jax.random.split(key, 3)
        batch = base.batch(batch_key)
        slope = jax.grad(base.loss, has_aux=True)
        exact.append(slope(moved, None, loss_key, batch)[0])
        seen.append(grads)
    for step, grads in enumerate(seen):
        then = exact[max(step - delay, 0)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), grads, then)


def test_probabilities_are_those_asked_for():
    odds = Degradations()
    family = Degraded(tasks.supervised_family("mlp", ("digits",), **SMALL), odds)
    drawn = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 4_000))["drawn"]
    share = {
        "reduced_batch": np.mean(drawn["share"] < 1.0),
        "bfloat16": np.mean(drawn["bfloat16"]),
        "normalised": np.mean(drawn["normalised"]),
        "directions": np.mean(drawn["directions"] > 0),
        "evolution": np.mean(drawn["pairs"] > 0),
        "delayed": np.mean(drawn["delay"] > 0),
    }
    for name, found in share.items():
        assert abs(found - getattr(odds, name)) < 0.03, name
    assert "noise" not in drawn
    assert int(drawn["delay"].max()) == odds.most_delay
    assert int(drawn["directions"].max()) <= odds.most_directions


def test_what_cannot_be_degraded_is_refused():
    with pytest.raises(ConfigError, match=r"Degradations\.noisy = 2"):
        Degradations(noisy=2.0)
    base = tasks.Reparametrised(tasks.supervised_family("mlp", ("digits",), **SMALL))
    family = Degraded(base)
    with pytest.raises(ConfigError, match="degrade the task below it"):
        family.task(family.sample(jax.random.key(0)))
    group = TasksConfig(datasets=("digits",), settings=SMALL, degrade={"noise": 0.1})
    with pytest.raises(UnknownName, match="noisy"):
        build_family(group)


def test_a_varied_mlp_is_another_one_in_every_run():
    family = tasks.supervised_family("varied_mlp", ("digits",), hidden=(16, 16))
    task = family.task(family.sample(jax.random.key(0)))
    params, drawn = jax.vmap(task.init)(jax.random.split(jax.random.key(1), 64))
    widths = np.floor(np.asarray(drawn["fraction"]) * 16)
    assert widths.min() <= 6 and widths.max() >= 14
    assert set(np.asarray(drawn["activation"])) == set(range(5))

    def slope(params: Any, state: Any) -> Any:
        return task.value_and_grad(params, state, jax.random.key(2))[1]

    grads = jax.vmap(slope)(params, drawn)
    used = np.any(np.asarray(grads["layer1"]["w"]) != 0.0, axis=2).sum(axis=1)
    assert np.all(used <= np.ceil(np.asarray(drawn["fraction"]) * 16))
    assert np.all(used >= 1) and len(set(used)) > 4


def test_a_vae_learns_and_its_bound_is_the_known_one():
    family = tasks.supervised_family("vae", ("digits",), hidden=(16,), code=4)
    task: Any = family.task(family.sample(jax.random.key(0)))
    params, state = task.init(jax.random.key(1))
    # A code that ignores the image and logits of zero: ln 2 a pixel, no divergence.
    flatlined = jax.tree.map(jnp.zeros_like, params)
    batch = task.batch(jax.random.key(2))
    loss, _ = task.loss(flatlined, state, jax.random.key(3), batch)
    assert float(loss) == pytest.approx(np.log(2.0), rel=1e-5)
    # Codes of variance e and mean 1 cost (1 + e - 1 - 1) / 2 each.
    bias = flatlined["encoder1"]["b"].at[:].set(1.0)
    shifted = {**flatlined, "encoder1": {**flatlined["encoder1"], "b": bias}}
    more, _ = task.loss(shifted, state, jax.random.key(3), batch)
    divergence = 4 * 0.5 * (1.0 + np.e - 1.0 - 1.0) / 64
    assert float(more - loss) == pytest.approx(divergence, rel=1e-4)

    def step(params: Any, key: Any) -> Any:
        loss, grads, _ = task.value_and_grad(params, None, key)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), loss

    keys = jax.random.split(jax.random.key(4), 300)
    _, losses = jax.lax.scan(step, params, keys)
    assert losses[-20:].mean() < 0.8 * losses[0]


KINDS: dict[str, dict[str, Any]] = {
    "varied_mlp": {"hidden": (8,)},
    "vae": {"hidden": (8,), "code": 2},
    "vision_transformer": {
        "size": 8, "grey": True, "patch": 4, "width": 8, "inner": 8, "heads": 2,
        "layers": 1, "batch_size": 8,
    },
    "learned_optimizer": {
        "hidden": (4,), "batch_size": 8, "num_steps": 3, "rule": "plain_mlp",
        "rule_settings": {"hidden": 4},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_rarer_networks_are_sound_tasks(kind: str):
    family = tasks.supervised_family(kind, ("digits", "digits"), **KINDS[kind])
    assert family.num_strata == 2
    task = family.task(family.sample(jax.random.key(0), 1))
    tasks.check_task(task, kind)


def test_drawn_groups_are_reproducible_and_varied(tmp_path):
    config = VarietyConfig(groups=18, images=("digits",), texts=("sklearn_descr",))
    groups = draw_groups(config)
    assert groups == draw_groups(config)
    assert groups != draw_groups(VarietyConfig(groups=18, images=("digits",), seed=1))
    assert len({g.network for g in groups}) == 9
    assert len({str(g.settings) for g in groups}) == 18
    for group in groups:
        build_family(group)
    path = tmp_path / "r.toml"
    path.write_text(
        'architecture = "learned_sgd"\n[variety]\ngroups = 3\nimages = ["digits"]\n'
        "degrade = { reduced_batch = 0.5 }\n[[phases]]\nouter_steps = 10\n"
    )
    run = load_recipe(path)
    drawn = [g for g in run.tasks if isinstance(g, TasksConfig)]
    assert [g.network for g in drawn] == ["mlp", "varied_mlp", "conv"]
    assert drawn[0].degrade == {"reduced_batch": 0.5}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kinds": ("mpl",)}, "mpl"),
        ({"kinds": ("recurrent",)}, "name data sets in texts"),
        ({"images": ()}, "images or texts"),
        ({"groups": 0}, "groups = 0"),
    ]
    for values, error in wrong:
        with pytest.raises((ConfigError, UnknownName), match=error):
            VarietyConfig(**values)


def test_drawn_groups_run_and_their_particles_differ(monkeypatch):
    """`benchmarks/variety_sweep.py` on two groups instead of many."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    sweep = pytest.importorskip("variety_sweep", reason="no benchmarks here").sweep
    config = VarietyConfig(
        groups=2,
        images=("digits",),
        kinds=("varied_mlp", "autoencoder"),
        degrade={"reduced_batch": 0.2, "bfloat16": 0.2, "noisy": 0.1, "delayed": 0.1},
    )
    found = [sweep(group, particles=16, seed=0) for group in draw_groups(config)]
    assert all(np.all(np.isfinite(losses)) for losses, _ in found)
    assert len(found[0][1]) == 16 and len(found[1][1]) > 10
