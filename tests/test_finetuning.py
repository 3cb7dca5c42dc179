"""Pretrained networks, the tasks that fine-tune them, and families as one task."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_data import images

from lopax import evaluate, meta, tasks
from lopax._core import tree as trees
from lopax._core.config import to_dict
from lopax._core.errors import ConfigError
from lopax._core.task import check_task
from lopax._core.tree import named_leaves
from lopax.meta.distributed import particle_mesh
from lopax.tasks import FineTuningSettings, PretrainingSettings, SampledTask
from lopax.tasks.pretraining import _pretrained, head_names, pretrained
from lopax.tasks.sources import decode

SMALL = PretrainingSettings(
    network_settings={"hidden": (16, 8)}, num_steps=600, learning_rate=3e-3
)
TASKS = FineTuningSettings(pretraining=SMALL)


@pytest.fixture(scope="module")
def made():
    return tasks.fine_tuning(TASKS)


def test_pretraining_is_done_once_and_learns():
    first = pretrained(SMALL)
    assert pretrained(SMALL) is first
    again = _pretrained.__wrapped__(json.dumps(to_dict(SMALL)))
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    # On images of its classes that it has not seen.
    chosen = np.concatenate(list(first.by_class("held_out")[:5]))
    network = SMALL.network_for(5)
    outputs, _ = network.apply(
        first.params, first.state, decode(first.images[chosen]), training=False
    )
    right = np.mean(np.argmax(outputs, axis=1) == first.labels[chosen])
    assert right > 0.9


def test_no_image_is_in_two_pools():
    base = pretrained(SMALL)
    sizes = [len(pool) for pool in base.pools.values()]
    assert sum(sizes) == len(base.labels) == 1797
    assert len(np.unique(np.concatenate(list(base.pools.values())))) == 1797
    for pool in base.pools:
        table = base.by_class(pool)
        assert set(table.ravel()) <= set(base.pools[pool])
        assert (base.labels[table] == np.arange(10)[:, None]).all()


@pytest.mark.parametrize(
    ("network", "settings", "heads"),
    [
        ("mlp", {"hidden": (6,)}, {"layer1/w", "layer1/b"}),
        ("mlp", {"hidden": (6, 5), "layer_norm": True}, {"layer2/w", "layer2/b"}),
        ("conv", {"channels": (4, 4), "strides": (2, 1), "norm": "batch"}, None),
    ],
)
def test_the_head_is_what_depends_on_the_classes(network, settings, heads):
    s = PretrainingSettings(network=network, network_settings=settings, num_steps=3)
    found = set(head_names(s, 4))
    # The same number of classes as in pretraining makes no difference.
    assert found == set(head_names(s, 5)) and found
    assert heads is None or found == heads
    family = tasks.fine_tuning(FineTuningSettings(pretraining=s)).held_out
    task = family.task(family.sample(jax.random.key(0)))
    check_task(task, network)
    params, state = task.init(jax.random.key(1))
    base = pretrained(s)
    trained = trees.named_leaves(base.params)
    for name, leaf in trees.named_leaves(params).items():
        if name in found:
            assert 4 in leaf.shape
        else:
            np.testing.assert_array_equal(leaf, trained[name])
    jax.tree.map(np.testing.assert_array_equal, state, base.state)


def test_a_task_is_what_it_says(made):
    family = made.held_out
    config = family.sample(jax.random.key(3))
    task, base = family.task(config), pretrained(SMALL)
    classes = np.asarray(config["classes"])
    assert len(set(classes)) == 4
    splits = {k: np.asarray(v) for k, v in task.rows.items()}
    assert {k: v.shape[0] for k, v in splits.items()} == dict.fromkeys(splits, 4)
    assert splits["train"].shape[1] == 20 and splits["valid"].shape[1] == 5
    everything = np.concatenate([v.ravel() for v in splits.values()])
    assert len(set(everything)) == len(everything)
    assert set(everything) <= set(base.pools["held_out"])
    for rows in splits.values():
        assert (base.labels[rows] == classes[:, None]).all()
    # A training batch: images of the training rows, labels their place in the task.
    inputs, labels = jax.jit(lambda t, k: t.batch(k))(task, jax.random.key(0))
    assert inputs.shape == (16, 64)
    stored = np.asarray(decode(base.images))
    allowed = {
        stored[i].tobytes(): c for c, row in enumerate(splits["train"]) for i in row
    }
    assert [allowed[np.asarray(x).tobytes()] for x in inputs] == list(labels)
    # Test batches are everything, whatever the key.
    for split in ("valid", "test"):
        found, labels = task.batch(jax.random.key(5), split)
        np.testing.assert_array_equal(found, stored[splits[split].ravel()])
        assert list(labels) == list(np.repeat(range(4), splits[split].shape[1]))
    params, state = task.init(jax.random.key(0))
    losses = [task.evaluate(params, state, jax.random.key(k), "test") for k in (0, 1)]
    assert losses[0] == losses[1]
    assert task.loss_bound == pytest.approx(1.5 * np.log(4))


def test_tasks_differ_and_run_in_one_program(made):
    keys = jax.random.split(jax.random.key(0), 6)
    family = made.meta_training

    @jax.jit
    @jax.vmap
    def one(key):
        config = family.sample(key)
        task = family.task(config)
        params, state = task.init(key)
        loss, grads, _ = task.value_and_grad(params, state, key)
        return config["classes"], loss, jnp.sum(grads["layer0"]["w"] ** 2)

    classes, losses, squares = one(keys)
    assert len({tuple(row) for row in np.asarray(classes)}) == 6
    assert np.isfinite(losses).all() and (np.asarray(squares) > 0).all()
    base = pretrained(SMALL)
    pools = [set(np.asarray(f.table).ravel()) for f in (family, made.held_out)]
    assert not pools[0] & pools[1]
    assert not (pools[0] | pools[1]) & set(base.pools["pretraining"])


def test_held_out_tasks_can_be_learned(made):
    config = evaluate.RunConfig(
        num_steps=60, eval_every=60, eval_batches=1, final_batches=1
    )
    adam = evaluate.default_rate("adam", 3e-3)
    found = evaluate.run(adam, SampledTask(made.held_out), config, seeds=range(6))
    accuracy = found.metrics["test/accuracy"][:, 0].mean(axis=0)
    assert accuracy[0] < 0.5 and accuracy[-1] > 0.7


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="takes no images"):
        PretrainingSettings(network="recurrent", network_settings={}).described()
    with pytest.raises(ConfigError, match="no classifier"):
        PretrainingSettings(network="autoencoder", network_settings={}).described()
    with pytest.raises(ConfigError, match="shares"):
        PretrainingSettings(shares=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="classes"):
        PretrainingSettings(classes=(1, 1))
    with pytest.raises(ConfigError, match="no class 12"):
        pretrained(PretrainingSettings(classes=(1, 12), num_steps=2))
    many = FineTuningSettings(pretraining=SMALL, images=100)
    with pytest.raises(ConfigError, match="need 4 of 106"):
        tasks.fine_tuning(many)


def test_a_family_as_one_task():
    """Each seed draws its own member, and keeps it; any family will do."""
    family = tasks.LogLoss(
        tasks.supervised_family(
            datasets=(images("a", n=60), images("b", n=60, seed=1)), hidden=(4,), size=3
        )
    )
    task = SampledTask(family)
    check_task(task, "sampled")
    drawn = set()
    for seed in range(8):
        params, state = task.init(jax.random.key(seed))
        number = int(state["config"]["dataset"])
        drawn.add(number)
        key = jax.random.key(7)
        member = family.task({"dataset": jnp.asarray(number)})
        loss, grads, after = task.value_and_grad(params, state, key)
        want, want_grads, _ = member.value_and_grad(params, None, key)
        assert loss == want and int(after["config"]["dataset"]) == number
        jax.tree.map(np.testing.assert_array_equal, grads, want_grads)
        for split in ("valid", "test"):
            got = task.evaluate(params, state, key, split)
            assert got == member.evaluate(params, None, key, split)
            assert task.metrics(params, state, key, split) == member.metrics(
                params, None, key, split
            )
    assert drawn == {0, 1}
    member = family.task({"dataset": jnp.asarray(0)})
    assert task.loss_bound == member.loss_bound
    assert task.normalize(jnp.asarray(0.1)) == member.normalize(jnp.asarray(0.1))


def test_meta_training_on_them_over_two_devices(tmp_path):
    """A pretrained trunk is data placed on all devices, and parameters begin as it."""
    recipe = meta.load_recipe(Path(__file__).parents[1] / "recipes" / "l3rs.toml")
    run = dataclasses.replace(
        recipe,
        log_every=1,
        estimator=dataclasses.replace(
            recipe.estimator, particles=4, horizon_low=2, horizon_high=2, chunk=2
        ),
        phases=(meta.PhaseConfig(outer_steps=2),),
    )
    families = meta.build_families(run.tasks)
    meshes = {"one": None, "two": particle_mesh(jax.devices()[:2])}
    one, two = (
        named_leaves(meta.train(run, families, tmp_path / name, mesh=mesh).theta)
        for name, mesh in meshes.items()
    )
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-5)
