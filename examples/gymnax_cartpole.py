"""An agent (PPO) that learns CartPole in gymnax: pip install 'lopax[rl]'.

    python examples/gymnax_cartpole.py [--compare] [--optimizer optim4rl]

Judged by how many steps the episodes of the last rollouts are short of 500, the most
there are; a step of the optimizer is one minibatch, sixteen to a rollout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import optax
from jax_judging import example

ENVS, LENGTH = 64, 32
EPOCHS, MINIBATCHES, CLIP, GAMMA, TRACE = 4, 4, 0.2, 0.99, 0.95

env, env_params = gymnax.make("CartPole-v1")


class Steps(NamedTuple):
    seen: jax.Array
    action: jax.Array
    log: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array
    length: jax.Array


def init(key: jax.Array) -> dict[str, Any]:
    sizes = {"hidden": (4, 64), "actor": (64, 2), "critic": (64, 1)}
    keys = jax.random.split(key, len(sizes))
    return {
        name: {
            "w": jax.random.normal(k, shape) / shape[0] ** 0.5,
            "b": jnp.zeros(shape[1]),
        }
        for k, (name, shape) in zip(keys, sizes.items(), strict=True)
    }


def apply(params: dict[str, Any], seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits of the actions, and the value."""
    hidden = jnp.tanh(seen @ params["hidden"]["w"] + params["hidden"]["b"])
    logits = hidden @ params["actor"]["w"] + params["actor"]["b"]
    return logits, (hidden @ params["critic"]["w"] + params["critic"]["b"])[..., 0]


def chosen(logits: jax.Array, action: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], -1)[
        ..., 0
    ]


def rollout(params: Any, world: Any, key: jax.Array) -> tuple[Any, Steps, jax.Array]:
    def step(world: Any, key: jax.Array) -> tuple[Any, Steps]:
        seen, state, age = world
        act_key, step_key = jax.random.split(key)
        logits, value = apply(params, seen)
        action = jax.random.categorical(act_key, logits)
        after, state, reward, *ends, _ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            jax.random.split(step_key, ENVS), state, action, env_params
        )
        done = jnp.any(jnp.stack(ends), axis=0)  # terminated (and truncated)
        log = chosen(logits, action)
        steps = Steps(seen, action, log, value, reward, done, age + 1)
        return (after, state, jnp.where(done, 0, age + 1)), steps

    world, steps = jax.lax.scan(step, world, jax.random.split(key, LENGTH))
    return world, steps, apply(params, world[0])[1]


def advantages(steps: Steps, last_value: jax.Array) -> jax.Array:
    def back(carry: tuple[jax.Array, jax.Array], now: Steps) -> tuple[Any, jax.Array]:
        later, value = carry
        goes_on = 1.0 - now.done
        error = now.reward + GAMMA * goes_on * value - now.value
        total = error + GAMMA * TRACE * goes_on * later
        return (total, now.value), total

    start = (jnp.zeros_like(last_value), last_value)
    return jax.lax.scan(back, start, steps, reverse=True)[1]


def loss_fn(params: Any, steps: Steps, gain: jax.Array, target: jax.Array) -> jax.Array:
    logits, value = apply(params, steps.seen)
    ratio = jnp.exp(chosen(logits, steps.action) - steps.log)
    gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
    actor = -jnp.minimum(ratio * gain, clipped * gain).mean()
    logs = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(logs) * logs).sum(-1).mean()
    return actor + 0.5 * jnp.square(value - target).mean() - 0.01 * entropy


def train(opt: optax.GradientTransformationExtraArgs, steps: int) -> tuple[Any, Any]:
    """What episodes are short of 500 steps, at each step, and in the last fifth."""

    def minibatch(carry: Any, part: Any) -> tuple[Any, None]:
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, *part)
        updates, opt_state = opt.update(grads, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), None

    def update(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state, world = carry
        play_key, *epoch_keys = jax.random.split(key, 1 + EPOCHS)
        world, steps, last_value = rollout(params, world, play_key)
        gain = advantages(steps, last_value)
        data = (steps, gain, gain + steps.value)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
        for epoch_key in epoch_keys:
            order = jax.random.permutation(epoch_key, ENVS * LENGTH)
            parts = jax.tree.map(
                lambda x, o=order: x[o].reshape(MINIBATCHES, -1, *x.shape[1:]), flat
            )
            (params, opt_state), _ = jax.lax.scan(minibatch, (params, opt_state), parts)
        ended = jnp.where(steps.done, steps.length, 0).sum()
        length = ended / jnp.maximum(steps.done.sum(), 1)
        return (params, opt_state, world), length

    @jax.jit
    def run(key: jax.Array) -> jax.Array:
        k_init, k_reset, k_run = jax.random.split(key, 3)
        params = init(k_init)
        seen, state = jax.vmap(env.reset, in_axes=(0, None))(
            jax.random.split(k_reset, ENVS), env_params
        )
        world = (seen, state, jnp.zeros(ENVS, jnp.int32))
        start = (params, opt.init(params), world)
        return jax.lax.scan(update, start, jax.random.split(k_run, rollouts))[1]

    rollouts = -(-steps // (EPOCHS * MINIBATCHES))
    short = 500.0 - run(jax.random.key(0))
    return short.repeat(EPOCHS * MINIBATCHES)[:steps], short[
        -(rollouts // 5 + 1) :
    ].mean()


if __name__ == "__main__":
    example(str(__doc__), train, steps=2_400, unit="steps short of 500")
