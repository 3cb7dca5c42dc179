"""`orthogonalize_every`: matrices move in some steps only, in both frameworks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lopax
from lopax._core.errors import ConfigError
from lopax.architectures import architecture

RULES = ("celo2", "learned_muon")
NAN = float("nan")


def arrays(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"w": (12, 7), "kernel": (3, 3, 4, 5), "b": (7,)}
    return {
        k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()
    }


def updates(name: str, every: int, losses: list[float]) -> list[dict[str, Any]]:
    """Of a run whose parameters are held where they are."""
    rule = architecture(name, orthogonalize_every=every)
    theta = rule.init_theta(jax.random.key(0))
    params, found = arrays(0), []
    state = rule.init(theta, params, 20)
    step = jax.jit(lambda g, s, v: rule.update(theta, g, s, params, value=v)[:2])
    for i, loss in enumerate(losses):
        update, state = step(arrays(1 + i), state, loss)
        found.append(update)
    return found


@pytest.mark.parametrize("name", RULES)
def test_matrices_move_so_many_times_as_far_in_every_so_many_th_step(name: str) -> None:
    each, seldom = updates(name, 1, [1.0] * 6), updates(name, 3, [1.0] * 6)
    for i, (one, other) in enumerate(zip(each, seldom, strict=True)):
        factor = 3.0 if i % 3 == 0 else 0.0
        for k in ("w", "kernel"):
            np.testing.assert_allclose(other[k], factor * one[k], rtol=1e-4, atol=1e-6)
            assert jnp.abs(one[k]).max() > 1e-6
        np.testing.assert_allclose(other["b"], one["b"], rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_a_skipped_step_is_made_up_for_by_the_next(name: str) -> None:
    moved = [bool(u["w"].any()) for u in updates(name, 2, [1.0, 1.0, NAN, 1.0, 1.0])]
    assert moved == [True, False, False, True, False]


@pytest.mark.parametrize("name", RULES)
def test_torch_moves_in_the_same_steps_and_goes_on_after_a_restart(name: str) -> None:
    torch = pytest.importorskip("torch")
    import lopax.torch as lt

    start = {k: v for k, v in arrays(0).items() if k != "kernel"}
    settings = {"orthogonalize_every": 2}
    theirs = lopax.optimizer(name, num_steps=8, settings=settings)
    state, ours = theirs.init(start), dict(start)
    update = jax.jit(theirs.update)

    named = [
        (k, torch.nn.Parameter(torch.tensor(np.asarray(v)))) for k, v in start.items()
    ]

    def make() -> Any:
        given = {"layout": "in_out", "settings": settings}
        return lt.optimizer(name, named, num_steps=8, **given)

    optimizer = make()
    for i in range(6):
        if i == 3:
            saved, optimizer = optimizer.state_dict(), make()
            optimizer.load_state_dict(saved)
        loss, grads = NAN if i == 2 else 1.0, {k: arrays(1 + i)[k] for k in start}
        delta, state = update(grads, state, ours, value=loss)
        ours = {k: ours[k] + delta[k] for k in ours}
        for k, p in named:
            p.grad = torch.tensor(np.asarray(grads[k]))
        before = {k: p.detach().clone() for k, p in named}
        optimizer.step(loss=loss)
        for k, p in named:
            moved = not torch.equal(p, before[k])
            due = i in (0, 3, 5) or (k == "b" and i != 2)
            assert moved == bool(delta[k].any()) == due
            far = float(jnp.abs(ours[k] - start[k]).max())
            gap = np.abs(p.detach().numpy() - ours[k]).max()
            assert gap <= 2e-3 * far + 1e-7, (i, k)


@pytest.mark.parametrize("name", RULES)
def test_sharded_matrices_move_alike_and_a_restart_in_mid_period_changes_no_bit(
    name: str,
) -> None:
    """Three devices' shards; saved as host arrays after each step of a period."""
    extra = {"backend": "plain"} if name == "celo2" else {}
    rule = architecture(name, orthogonalize_every=3, **extra)
    theta = rule.init_theta(jax.random.key(0))
    mesh = Mesh(np.asarray(jax.devices()[:3]), ("d",))
    specs = {"w": P("d"), "kernel": P("d"), "b": P()}

    def placed(tree: dict[str, Any]) -> dict[str, Any]:
        return {
            k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in tree.items()
        }

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        return rule.update(theta, grads, state, params, value=1.0)[:2]

    plain, split = arrays(0), placed(arrays(0))
    states = [jax.jit(rule.init)(theta, p, 20) for p in (plain, split)]
    for i in range(5):
        grads = arrays(1 + i)
        # After 0, 1, 2, 3 and 4 updates, of a period of three.
        saved = jax.tree.map(np.array, states[0])
        again = step(grads, jax.tree.map(jnp.asarray, saved), plain)
        want, states[0] = step(grads, states[0], plain)
        found, states[1] = step(placed(grads), states[1], split)
        same = jax.tree.map(np.array_equal, again, (want, states[0]))
        assert all(jax.tree.leaves(same)), i
        for k in plain:
            assert bool(want[k].any()) == (i % 3 == 0 or k == "b"), (i, k)
            size = float(jnp.abs(want[k]).max())
            np.testing.assert_allclose(found[k], want[k], rtol=1e-3, atol=1e-4 * size)


def test_numbers_that_are_none_are_refused() -> None:
    for name in RULES:
        with pytest.raises(ConfigError, match="orthogonalize_every"):
            architecture(name, orthogonalize_every=0)
