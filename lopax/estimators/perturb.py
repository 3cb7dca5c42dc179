"""Antithetic Gaussian perturbations of the trainable part of theta."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lopax._core.errors import ConfigError
from lopax._core.tree import map_named, named_leaves
from lopax._core.types import Key, Keys, Theta

ALL: tuple[str, ...] = ("*",)


def trainable_mask(theta: Theta, patterns: Sequence[str]) -> Any:
    """A pytree of Python bools: which leaves' path names match one of `patterns`.

    Raises `ConfigError` if a pattern matches no leaf (a typo would silently freeze
    everything).
    """
    names = list(named_leaves(theta))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"trainable pattern {pattern!r} matches no meta-parameter; "
                f"there are: {', '.join(names)}"
            )
    return map_named(
        lambda name, _: any(fnmatch.fnmatchcase(name, p) for p in patterns), theta
    )


def trainable_leaves(theta: Theta, mask: Any) -> list[Any]:
    """The leaves of theta where mask is true, in tree order."""
    pairs = zip(jax.tree.leaves(theta), jax.tree.leaves(mask), strict=True)
    return [x for x, m in pairs if m]


def merge_leaves(theta: Theta, mask: Any, trainable: Sequence[Any]) -> Theta:
    """theta with its trainable leaves replaced."""
    fresh = iter(trainable)
    leaves, treedef = jax.tree.flatten(theta)
    flags = jax.tree.leaves(mask)
    return treedef.unflatten(
        [next(fresh) if m else x for x, m in zip(leaves, flags, strict=True)]
    )


def sample(key: Key, leaves: Sequence[Any], sigma: Any) -> list[Any]:
    """Independent N(0, sigma^2) noise for each leaf, float32.

    One call to the generator for all leaves together: drawing leaf by leaf costs a
    launch each.
    """
    sizes = [x.size for x in leaves]
    flat = sigma * jax.random.normal(key, (sum(sizes),), jnp.float32)
    noise, at = [], 0
    for x, size in zip(leaves, sizes, strict=True):
        noise.append(flat[at : at + size].reshape(x.shape))
        at += size
    return noise


def split_keys(keys: Keys) -> tuple[Keys, Keys]:
    """[N] keys into [N] keys for noise and [N] keys for inner training."""
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def antithetic(leaves: Sequence[Any], noise: Sequence[Any]) -> list[Any]:
    """[N, 2, *leaf]: leaf + noise and leaf - noise; `noise` leaves [N, *leaf]."""
    pairs = zip((jnp.expand_dims(x, 0) for x in leaves), noise, strict=True)
    return [jnp.stack([x + e, x - e], axis=1) for x, e in pairs]


def spread(theta: Theta, mask: Any, pairs: Sequence[Any], num: int) -> Theta:
    """theta for N antithetic pairs, leaves [N, 2, ...]: `pairs` where trainable,
    repeated where frozen."""
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, 2, *x.shape)), theta)
    return merge_leaves(repeated, mask, pairs)
