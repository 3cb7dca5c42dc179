"""Parameters split over eight devices: the same updates, a state that is split like
its parameter, and no array of a parameter's size sent around."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from optax_rules import SETTINGS, compact_programs, theta_of  # noqa: F401
from quick_compile import quick_compilation, quick_compile  # noqa: F401

import lopax
from lopax.optax import from_rule

SHAPES = {"rows": (16, 24), "cols": (24, 16), "v1": (32,), "v2": (32,), "v3": (32,)}
SPECS = {"rows": P("d", None), "cols": P(None, "d")}
RULES = ("celo", "celo_adam", "celo2", "adafac_mlp", "velo")
GATHERS = {"celo2"}
"""Orthogonalisation multiplies the matrix with itself, which needs all of it."""


def sharding(shape: tuple[int, ...], spec: Any, mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, spec if len(shape) == 2 else P("d"))


@pytest.mark.parametrize("name", RULES)
def test_sharded_parameters(name: str):
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("d",))
    rng = np.random.default_rng(0)
    params = {
        k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()
    }
    places = {k: sharding(s, SPECS.get(k), mesh) for k, s in SHAPES.items()}
    sharded = {k: jax.device_put(x, places[k]) for k, x in params.items()}
    settings = SETTINGS[name] | ({} if name == "celo_adam" else {"backend": "plain"})
    rule = lopax.architecture(name, **settings)
    opt = from_rule(rule, theta_of(name), num_steps=50, weight_decay=0.1, report=True)

    def step(params: Any, state: Any) -> Any:
        return opt.update(params, state, params, value=1.0)

    def program(params: Any) -> tuple[Any, Any]:
        state = jax.jit(opt.init)(params)
        return quick_compile(jax.jit(step).lower(params, state)), state

    run, state = program(params)
    plain, state = run(params, state)
    want, _ = run(params, state)
    split, state = program(sharded)
    updates, state = split(sharded, state)
    again, after = split(sharded, state)
    for k in params:
        size = float(jnp.max(jnp.abs(plain[k])))
        np.testing.assert_allclose(updates[k], plain[k], rtol=2e-5, atol=1e-6 * size)
        assert again[k].sharding.is_equivalent_to(places[k], params[k].ndim)
    np.testing.assert_allclose(again["rows"], want["rows"], rtol=1e-3, atol=1e-6)
    for k in ("rows", "cols"):
        kept = after.rule.tensors
        for leaf in jax.tree.leaves((kept.rest[k], [x[k] for x in kept.like.values()])):
            if leaf.shape[-2:] == SHAPES[k]:
                lead = [None] * (leaf.ndim - 2)
                place = NamedSharding(mesh, P(*lead, *SPECS[k]))
                assert leaf.sharding.is_equivalent_to(place, leaf.ndim), (k, leaf.shape)
    text = split.as_text()
    assert "all-reduce" in text, "this is not a partitioned program"
    largest = max((n for _, n in collectives(text)), default=0)
    if name not in GATHERS:
        assert largest < math.prod(SHAPES["rows"]) // 2, collectives(text)


def collectives(text: str) -> list[tuple[str, int]]:
    """What moves between devices: operation and number of elements of its result."""
    moved = r"= \(?\w+\[([\d,]*)\]\S* (all-gather|all-to-all|collective-permute)"
    found = re.findall(moved, text)
    return [(op, math.prod(map(int, filter(None, s.split(","))))) for s, op in found]


def test_the_reader_of_programs_finds_a_gather():
    text = "  %a = f32[16,24]{1,0} all-gather(f32[2,24]{1,0} %p), channel_id=1"
    assert collectives(text) == [("all-gather", 384)]
