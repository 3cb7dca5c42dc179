"""Agents as tasks: rollouts, TD(lambda), the two losses, gradients, settings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import quick_jit

from lopax import evaluate, tasks
from lopax._core.errors import ConfigError, TaskError, UnknownName
from lopax.tasks.rl import (
    A2C,
    PPO,
    A2CConfig,
    ActorCritic,
    Catch,
    PPOConfig,
    agent_task,
)
from lopax.tasks.rl import rollout as playing
from lopax.tasks.rl.networks import entropy, log_probability

KEY = jax.random.key(0)
SMALL = Catch(rows=4, columns=3)
NETWORK = ActorCritic(hidden=(8,))


def a2c(**settings) -> A2C:
    config = A2CConfig(**{"envs": 3, "length": 7, **settings})
    return A2C(environment=SMALL, network=NETWORK, config=config)


def ppo(**settings) -> PPO:
    values = {"envs": 2, "length": 4, "epochs": 2, "minibatches": 2, **settings}
    return PPO(environment=SMALL, network=NETWORK, config=PPOConfig(**values))


# Rollouts


@pytest.fixture(scope="module")
def played():
    """Seven steps of three environments by a policy that always moves left."""
    left = jnp.asarray([0.0, -1e9, -1e9])
    play = playing.start(SMALL, KEY, 3)

    @quick_jit
    def go(play):
        return playing.collect(SMALL, lambda seen: jnp.tile(left, (3, 1)), play, KEY, 7)

    return play, *go(play)


def test_episodes_follow_each_other(played):
    start, after, trajectory = played
    done = np.asarray(trajectory.done)
    np.testing.assert_array_equal(done[:, 0], [0, 0, 1, 0, 0, 1, 0])
    assert np.all(done == done[:, :1]) and not np.any(trajectory.actions)
    np.testing.assert_array_equal(trajectory.observations[0], start.observation)
    np.testing.assert_array_equal(trajectory.final, after.observation)
    balls = np.asarray(trajectory.observations)[:, :, :-1].sum((2, 3))
    np.testing.assert_array_equal(balls, [[1.0] * 3] * 7)  # one ball, never at the end
    columns = np.asarray(trajectory.observations)[[0, 3, 6], :, 0].argmax(-1)
    assert len(np.unique(columns)) > 1  # fresh episodes are drawn anew
    for e in range(3):
        won = np.asarray(trajectory.observations)[2, e, 2].argmax() == 0
        assert float(trajectory.rewards[2, e]) == (1.0 if won else -1.0)


def test_returns_are_kept(played):
    _, after, trajectory = played
    np.testing.assert_array_equal(after.episodes, [2, 2, 2])
    np.testing.assert_array_equal(after.last, trajectory.rewards[5])
    np.testing.assert_array_equal(after.running, [0.0, 0.0, 0.0])
    assert float(playing.mean_return(after)) == float(after.last.mean())
    unfinished = after._replace(episodes=jnp.asarray([2, 0, 2]), running=jnp.ones(3))
    expected = (after.last[0] + 1.0 + after.last[2]) / 3.0
    np.testing.assert_allclose(playing.mean_return(unfinished), expected, rtol=1e-6)


def test_td_lambda_is_the_lambda_return_minus_the_value():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=6), rng.normal(size=7)
    done = np.asarray([0, 0, 1, 0, 0, 0], bool)
    gamma, trace = 0.9, 0.7

    def lambda_return(t: int) -> float:
        """By the recursion G_t = r + gamma ((1 - lambda) V + lambda G)."""
        if done[t]:
            return rewards[t]
        after = lambda_return(t + 1) if t + 1 < 6 else values[6]
        return rewards[t] + gamma * ((1 - trace) * values[t + 1] + trace * after)

    expected = [lambda_return(t) - values[t] for t in range(6)]
    found = playing.td_lambda(
        jnp.asarray(rewards), jnp.asarray(done), jnp.asarray(values), gamma, trace
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_policy_numbers():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    logs = log_probability(logits, jnp.asarray([1, 2]))
    np.testing.assert_allclose(np.exp(logs), [0.25, 0.8], rtol=1e-5)
    np.testing.assert_allclose(entropy(logits)[0], 1.5 * np.log(2.0), rtol=1e-5)


# A2C


def test_the_actor_critic_loss_and_gradient():
    """Against the loss written out again, with rollout and TD errors as constants."""
    task = a2c(reward_scale=2.0, gamma=0.8, trace=0.5, critic_weight=0.3)
    params, play = task.init(KEY)
    loss, grads, after = quick_jit(task.value_and_grad)(params, play, KEY)
    _, loss_key = jax.random.split(KEY)
    again, trajectory = quick_jit(
        lambda p: playing.collect(
            SMALL, lambda seen: NETWORK.apply(params, seen)[0], p, loss_key, 7
        )
    )(play)
    jax.tree.map(np.testing.assert_array_equal, again, after)

    def values_of(params):
        frames = [*trajectory.observations, trajectory.final]
        return jnp.stack([NETWORK.apply(params, f)[1] for f in frames])

    errors = playing.td_lambda(
        2.0 * trajectory.rewards, trajectory.done, values_of(params), 0.8, 0.5
    )
    targets = errors + values_of(params)[:-1]

    def written_out(params):
        total = 0.0
        for t in range(7):
            logits, values = NETWORK.apply(params, trajectory.observations[t])
            logs = jax.nn.log_softmax(logits)
            taken = logs[jnp.arange(3), trajectory.actions[t]]
            spread = -jnp.sum(jnp.exp(logs) * logs, -1)
            squared = jnp.square(targets[t] - values)
            total += jnp.mean(-taken * errors[t] + 0.3 * squared - 0.01 * spread)
        return total / 7.0

    expected, slopes = quick_jit(jax.value_and_grad(written_out))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        grads,
        slopes,
    )


def test_environments_go_on_between_updates():
    task = a2c(length=2)
    params, play = task.init(KEY)
    go = quick_jit(task.value_and_grad)
    for i in range(3):
        _, _, play = go(params, play, jax.random.fold_in(KEY, i))
    np.testing.assert_array_equal(play.episodes, [2, 2, 2])  # six steps, three each
    assert "return" in task.metrics(params, play, KEY, "test")


def test_an_agent_learns_catch():
    """Two hundred updates of tuned Adam take a small Catch from chance to mastery."""
    task = a2c(envs=16, length=9)
    config = evaluate.RunConfig(
        num_steps=200, eval_every=50, eval_batches=1, final_batches=1
    )
    spec = evaluate.default_rate("adam", 1e-2)
    found = evaluate.run(spec, task, config, seeds=[0, 1])
    returns = found.metrics["test/return"][:, 0]
    assert np.all(returns[:, -1] > 0.8), returns
    assert not np.any(found.diverged)


# PPO


def test_a_rollout_serves_epochs_times_minibatches():
    task = ppo()
    params, state = task.init(KEY)
    go = quick_jit(task.value_and_grad)
    episodes, orders, memories = [], [], []
    for i in range(5):
        loss, grads, state = go(params, state, jax.random.fold_in(KEY, i))
        assert np.isfinite(loss)
        assert any(np.any(g) for g in jax.tree.leaves(grads))
        episodes.append(int(state.play.episodes[0]))
        orders.append(np.asarray(state.order).tolist())
        memories.append(np.asarray(state.memory.observations))
    assert episodes == [1, 1, 1, 1, 2]  # four steps of episodes of three
    assert orders[0] == orders[1] != orders[2] == orders[3] != orders[4]
    assert all(sorted(o) == list(range(8)) for o in orders)
    assert np.array_equal(memories[0], memories[3])
    assert not np.array_equal(memories[0], memories[4])


def test_particles_out_of_step_each_get_their_own_rollout():
    """Under vmap the loops of no round or one must not leak into other agents."""
    task = ppo()
    params, fresh = task.init(KEY)
    go = quick_jit(task.value_and_grad)
    _, _, begun = go(params, fresh, KEY)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), fresh, begun)
    together = quick_jit(jax.vmap(lambda s: task.value_and_grad(params, s, KEY)))(both)
    for i, state in enumerate((fresh, begun)):
        alone = go(params, state, KEY)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6),
            together,
            alone,
        )


def test_the_clipped_objective():
    task = ppo(clip=0.2, critic_weight=0.0, entropy_weight=0.0)
    params, state = task.init(KEY)
    part = state.memory._replace(
        advantages=jnp.asarray([1.0, -1.0] * 4), actions=jnp.zeros(8, jnp.int32)
    )
    logits, _ = NETWORK.apply(params, part.observations)
    logs = log_probability(logits, part.actions)
    for ratio, expected in ((1.0, 0.0), (2.0, 0.5 * (2.0 - 1.2)), (0.5, 0.5 * 0.3)):
        moved = part._replace(logs=logs - jnp.log(ratio))
        found = task._clipped_objective(params, moved)
        np.testing.assert_allclose(found, expected, atol=1e-5)


# Settings


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: agent_task("a3c", "catch"), UnknownName, "'a2c'"),
        (lambda: agent_task("a2c", "catsh"), UnknownName, "'catch'"),
        (lambda: agent_task("a2c", "catch", env=3), UnknownName, "envs"),
        (lambda: agent_task("a2c", "catch", envs=0), ConfigError, "envs"),
        (lambda: agent_task("a2c", "catch", gamma=1.5), ConfigError, "gamma"),
        (lambda: agent_task("ppo", "catch", length=3, envs=3), ConfigError, "divide"),
        (lambda: A2C(environment=object()), TaskError, "observation_shape"),
    ],
)
def test_bad_settings_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_convolutions_need_planes():
    task = agent_task("a2c", "cartpole", channels=[4])
    with pytest.raises(ConfigError, match="planes"):
        task.init(KEY)
    net = ActorCritic(hidden=(5,), channels=(4, 3))
    params = net.init(KEY, (6, 4, 3), 9)
    assert params["conv0"]["w"].shape == (2, 2, 3, 4)
    assert params["dense0"]["w"].shape == (6 * 4 * 3, 5)
    logits, values = net.apply(params, jnp.ones((7, 6, 4, 3)))
    assert logits.shape == (7, 9) and values.shape == (7,)


def test_registered_agents():
    assert (
        not tasks.TASKS["catch_a2c"].held_out and tasks.TASKS["cartpole_a2c"].held_out
    )
    task = tasks.task("catch_a2c", envs=2, hidden=[4])
    assert task.config.envs == 2 and task.network.hidden == (4,)  # type: ignore[attr-defined]
    assert tasks.task_available("catch_a2c")
