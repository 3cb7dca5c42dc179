"""Environments: their rules against plain Python, the protocol, the gymnax adapter."""

from __future__ import annotations

import dataclasses
import itertools
import types
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopax._core.errors import ConfigError, MissingExtra, TaskError, UnknownName
from lopax.tasks.rl import (
    ENVIRONMENTS,
    CartPole,
    Catch,
    Gridworld,
    check_environment,
    environment,
    from_gymnax,
)
from lopax.tasks.rl.gridworld import MOVES, GridState

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["catch", "cartpole", "grid_big_sparse_short"])
def test_registered_environments_keep_the_protocol(name):
    check_environment(environment(name))


def test_the_published_grids():
    sizes = {
        "small_sparse_short": (3, 8, 50),
        "big_sparse_short": (10, 12, 50),
        "small_sparse_long": (8, 3, 500),
        "big_sparse_long": (12, 10, 500),
        "small_dense_short": (4, 6, 50),
        "big_dense_short": (9, 13, 50),
        "small_dense_long": (6, 4, 500),
        "big_dense_long": (13, 9, 500),
    }
    for name, (rows, columns, limit) in sizes.items():
        grid = ENVIRONMENTS[f"grid_{name}"]
        assert (grid.rows, grid.columns, grid.limit) == (rows, columns, limit)
        assert grid.good == (1 if name.startswith("small") else 2)
        assert grid.respawn == (0.05 if "sparse" in name else 0.5)


# Catch


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize(
    "moves", [[1] * 9, [0] * 9, [2] * 9, [2, 2, 0, 1, 1, 0, 2, 1, 1]]
)
def test_catch_is_the_game(column, moves):
    game = Catch()
    play = jax.jit(game.step)
    seen, state = game.reset(KEY)
    state = state._replace(column=jnp.int32(column))
    paddle = 2
    for t, move in enumerate(moves, 1):
        seen, state, reward, done = play(KEY, state, jnp.int32(move))
        paddle = min(max(paddle + move - 1, 0), 4)
        expected = np.zeros((10, 5))
        expected[t, column] = expected[9, paddle] = 1.0
        np.testing.assert_array_equal(seen, expected)
        assert bool(done) == (t == 9)
        won = 1.0 if paddle == column else -1.0
        assert float(reward) == (won if t == 9 else 0.0)


def test_catch_drops_the_ball_in_every_column():
    _, state = jax.vmap(Catch().reset)(jax.random.split(KEY, 64))
    assert set(np.asarray(state.column)) == set(range(5))
    assert not np.any(state.row) and set(np.asarray(state.paddle)) == {2}


# CartPole


def test_cartpole_obeys_its_equations():
    pole = CartPole()
    _, state = pole.reset(KEY)
    step = jax.jit(pole.step)
    x, v, a, w = (float(z) for z in state.motion)
    for t in range(30):
        action = t % 3 % 2
        _, state, reward, done = step(KEY, state, jnp.int32(action))
        force = 10.0 if action else -10.0
        push = (force + 0.05 * w**2 * np.sin(a)) / 1.1
        turn = (9.8 * np.sin(a) - np.cos(a) * push) / (
            0.5 * (4 / 3 - 0.1 * np.cos(a) ** 2 / 1.1)
        )
        pull = push - 0.05 * turn * np.cos(a) / 1.1
        x, v, a, w = x + 0.02 * v, v + 0.02 * pull, a + 0.02 * w, w + 0.02 * turn
        np.testing.assert_allclose(state.motion, [x, v, a, w], rtol=1e-4, atol=1e-5)
        assert float(reward) == 1.0
        assert bool(done) == (abs(a) > 12 * np.pi / 180 or abs(x) > 2.4)


def test_cartpole_ends_at_its_limit():
    pole = CartPole(limit=3)
    _, state = pole.reset(KEY)
    flags = []
    for _ in range(3):
        _, state, _, done = pole.step(
            KEY, state._replace(motion=jnp.zeros(4)), jnp.int32(1)
        )
        flags.append(bool(done))
    assert flags == [False, False, True]


# Gridworlds


def at(
    grid: Gridworld, agent: int, objects: list[int], present: list[bool]
) -> GridState:
    return GridState(
        jnp.int32(agent), jnp.asarray(objects), jnp.asarray(present), jnp.int32(0)
    )


def test_walls_block_and_neighbours_are_reached():
    grid = Gridworld(rows=3, columns=4, respawn=0.0)
    move = jax.jit(jax.vmap(grid._move))
    pairs = list(itertools.product(range(12), range(9)))
    cells, actions = (jnp.asarray(x) for x in zip(*pairs, strict=True))
    for (cell, action), found in zip(
        pairs, np.asarray(move(cells, actions)), strict=True
    ):
        row, column = cell // 4 + MOVES[action][0], cell % 4 + MOVES[action][1]
        inside = 0 <= row < 3 and 0 <= column < 4
        assert found == (row * 4 + column if inside else cell)
    assert sorted(map(tuple, MOVES.tolist())) == sorted(
        itertools.product((-1, 0, 1), repeat=2)
    )


def test_good_things_pay_and_stay_away_while_nothing_respawns():
    grid = Gridworld(rows=3, columns=4, respawn=0.0, ending=1.0)
    start = at(grid, 0, [0, 5], [True, True])
    seen, state, reward, done = grid.step(KEY, start, jnp.int32(0))
    assert float(reward) == 1.0 and not bool(done)
    assert not bool(state.present[0]) and bool(state.present[1])
    assert float(seen[..., 0].sum()) == 0.0 and float(seen[1, 1, 1]) == 1.0
    assert float(seen[0, 0, 2]) == 1.0
    _, _, again, _ = grid.step(KEY, state, jnp.int32(0))
    assert float(again) == 0.0


@pytest.mark.parametrize(("ending", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_bad_things_cost_and_may_end_the_episode(ending, share):
    grid = Gridworld(rows=3, columns=4, ending=ending)
    start = at(grid, 5, [0, 5], [True, True])
    keys = jax.random.split(KEY, 400)
    _, _, reward, done = jax.vmap(lambda k: grid.step(k, start, jnp.int32(0)))(keys)
    assert set(np.asarray(reward)) == {-1.0}
    assert abs(float(jnp.mean(done)) - share) < 0.1


def test_things_come_back_in_free_cells_at_their_rate():
    grid = Gridworld(rows=2, columns=3, respawn=0.5)
    start = at(grid, 1, [0, 4], [False, True])
    keys = jax.random.split(KEY, 600)
    _, state, _, _ = jax.vmap(lambda k: grid.step(k, start, jnp.int32(0)))(keys)
    back = np.asarray(state.present[:, 0])
    assert abs(back.mean() - 0.5) < 0.08
    cells = np.asarray(state.objects[:, 0])[back]
    assert set(cells) == {0, 2, 3, 5}  # neither the agent's cell nor the other thing's
    assert np.bincount(cells, minlength=6)[[0, 2, 3, 5]].min() > 40


def test_everything_starts_apart_and_the_limit_ends_it():
    grid = Gridworld(rows=3, columns=4, good=2, limit=2, ending=0.0)
    _, state = jax.vmap(grid.reset)(jax.random.split(KEY, 50))
    for agent, objects in zip(state.agent, np.asarray(state.objects), strict=True):
        assert len({int(agent), *objects.tolist()}) == 5
    one = jax.tree.map(lambda x: x[0], state)
    _, one, _, first = grid.step(KEY, one, jnp.int32(0))
    _, _, _, second = grid.step(KEY, one, jnp.int32(0))
    assert (bool(first), bool(second)) == (False, True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gridworld(rows=1, columns=3), "too few"),
        (lambda: Gridworld(rows=3, columns=3, respawn=1.5), "respawn"),
        (lambda: Catch(rows=1), "rows"),
        (lambda: CartPole(limit=0), "limit"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# What is no environment


def variant(**members: Any) -> Any:
    """Catch with some of its members replaced."""
    game = Catch()
    found = {
        m: getattr(game, m)
        for m in ("observation_shape", "num_actions", "reset", "step")
    }
    found |= members
    return types.SimpleNamespace(**{k: v for k, v in found.items() if v is not None})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"step": None}, r"has no step: an environment has"),
        ({"num_actions": None, "reset": None}, "has no num_actions, reset"),
        ({"num_actions": 2.5}, "finitely many actions"),
        ({"num_actions": (3,)}, "continuous"),
        ({"observation_shape": (4,)}, r"\(10, 5\), observation_shape says \(4,\)"),
        ({"reset": lambda key: jnp.zeros((10, 5))}, "reset must return"),
        ({"step": lambda key, state, action: (1, 2)}, "returned 2 values"),
        ({"step": lambda state, action: None}, "does not trace"),
        (
            {"step": lambda k, s, a: (*Catch().step(k, s, a)[:2], jnp.ones(3), False)},
            "must be scalars",
        ),
        (
            {"step": lambda k, s, a: (jnp.zeros((10, 5)), s.row, jnp.ones(()), False)},
            "state's structure",
        ),
        ({"step_env": 1, "default_params": 1}, "from_gymnax"),
        ({"unwrapped": 1}, "gymnasium"),
    ],
)
def test_what_breaks_the_protocol_is_told_how_to_keep_it(members, message):
    with pytest.raises(TaskError, match=message):
        check_environment(variant(**members))


def test_unknown_names_have_near_matches():
    with pytest.raises(UnknownName, match="'cartpole'"):
        environment("cart_pole")


# gymnax


class Walk:
    """Gymnax's interface: a walk on a line, over after three steps or at +2."""

    name = "Walk"
    default_params: ClassVar[Any] = None

    def action_space(self, params):
        del params
        return types.SimpleNamespace(n=2)

    def reset_env(self, key, params):
        del key, params
        return jnp.zeros((1,), jnp.int32), {"place": 0, "time": 0}

    def step_env(self, key, state, action, params):
        del key, params
        state = {"place": state["place"] + 2 * action - 1, "time": state["time"] + 1}
        over = state["place"] >= 2
        return jnp.asarray([state["place"]]), state, 1 * over, over, {"info": 1}


class Limited(Walk):
    """Since gymnax 1.0 the time limit is asked for apart."""

    def is_truncated(self, state, params):
        del params
        return state["time"] >= 3


@pytest.mark.parametrize(("walk", "ends"), [(Walk(), False), (Limited(), True)])
def test_gymnax_environments_are_adapted(walk, ends):
    adapted = from_gymnax(walk)
    check_environment(adapted)
    assert adapted.observation_shape == (1,) and adapted.num_actions == 2
    seen, state = adapted.reset(KEY)
    assert seen.dtype == jnp.float32
    found = []
    for action in (1, 0, 0):
        seen, state, reward, done = adapted.step(KEY, state, jnp.int32(action))
        found.append((float(seen[0]), float(reward), bool(done)))
    assert found == [(1.0, 0.0, False), (0.0, 0.0, False), (-1.0, 0.0, ends)]


def test_what_gymnax_objects_do_not_fit():
    class Continuous(Walk):
        def action_space(self, params):
            del params
            return types.SimpleNamespace(shape=(1,))

    with pytest.raises(TaskError, match=r"continuous actions.*CartPole-v1"):
        from_gymnax(Continuous())
    with pytest.raises(TaskError, match="no gymnax environment"):
        from_gymnax(Catch())


def test_without_gymnax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gymnax", None)
    with pytest.raises(MissingExtra, match=r"lopax\[rl\]"):
        environment("gymnax:CartPole-v1")


def test_our_cartpole_is_gymnaxs():
    pytest.importorskip("gymnax", reason="gymnax (extra rl) is not installed")
    theirs, ours = environment("gymnax:CartPole-v1"), CartPole()
    check_environment(theirs)
    seen, state = ours.reset(KEY)
    _, other = theirs.reset(KEY)
    x, x_dot, theta, theta_dot = state.motion
    other = dataclasses.replace(
        other, x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot
    )
    mine, his = jax.jit(ours.step), jax.jit(theirs.step)
    for t in range(40):
        action = jnp.int32((t // 2) % 2)
        seen, state, reward, done = mine(KEY, state, action)
        seen2, other, reward2, done2 = his(KEY, other, action)
        np.testing.assert_allclose(seen, seen2, rtol=1e-4, atol=1e-5)
        assert bool(done) == bool(done2)
        if done:
            break
        assert float(reward) == float(reward2)
    with pytest.raises(TaskError, match="continuous"):
        environment("gymnax:Pendulum-v1")
    with pytest.raises(TaskError, match="no environment"):
        environment("gymnax:CartPole-v77")
