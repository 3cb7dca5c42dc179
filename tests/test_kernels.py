"""The fused CPU kernel does what the plain rule does, also under transformations."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_table

from lopax._core import sizes
from lopax.architectures import ARCHITECTURES, architecture
from lopax.native import xla

needs_kernel = pytest.mark.skipif(
    xla.compiler() is None, reason="no C++ compiler on this machine"
)
SHAPES = {"m": (12, 20), "t": (20, 12), "v": (17,), "s": (), "k": (3, 3, 4, 6)}
SHAPES |= {"k2": (4, 6, 2, 3), "b": (5, 30, 40)}
PARAMS = {
    k: 0.2 * jax.random.normal(jax.random.key(i), s)
    for i, (k, s) in enumerate(SHAPES.items())
}


def grads_at(t: int) -> dict:
    return jax.tree.map(
        lambda p: jax.random.normal(jax.random.fold_in(jax.random.key(9), t), p.shape),
        PARAMS,
    )


def assert_close(a, b, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = np.max(np.abs(np.asarray(x, np.float64))) if np.size(x) else 1.0
        np.testing.assert_allclose(x, y, atol=tolerance * (scale + 1e-30), rtol=0)


RULES = {
    "celo": {"lstm": 4},
    "celo_wide": {"lstm": 4, "hidden": 8},
    "velo": {"lstm": 4, "bank": 3},
    "velo_clipped": {"lstm": 4, "bank": 3, "norm_factor": "clipped", "norm_limit": 0.1},
    "velo_none": {"lstm": 4, "bank": 3, "norm_factor": "none"},
    "celo2": {"weight_decay": 0.1},
    "celo2_flat": {"convolutions": "flat"},
    "celo2_base": {"exp_mult": 0.1, "hidden": 5},
    "adafac_mlp": {},
    "adafac_mlp_wide": {"hidden": 33},
    "mulo": {"base_width": 3.0},
}
"""Name, with a remark behind the last underscore if need be -> settings."""


def test_every_rule_with_a_kernel_is_here():
    names = {n if n in ARCHITECTURES else n.rpartition("_")[0] for n in RULES}
    assert names == set(rule_table.names("jax", "fused"))


@needs_kernel
def test_two_processes_build_into_an_empty_cache_at_once(tmp_path):
    program = "from lopax.native import xla; print(xla.why_not(4))"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LOPAX_CACHE_DIR": str(tmp_path)},
        )
        for _ in range(2)
    ]
    assert [p.communicate(timeout=300)[0] for p in running] == ["None\n"] * 2
    files = [p.name for p in (tmp_path / "native").iterdir()]
    assert len(files) == 4  # the core and the shim, and their sums


def rule_of(name: str, **more):
    settings = {**RULES[name], **more}
    known = name if name in ARCHITECTURES else name.rpartition("_")[0]
    return architecture(known, **settings)


def rollout(name: str, backend: str, theta, steps: int = 6):
    rule = rule_of(name, backend=backend)
    state = rule.init(theta, PARAMS, steps)
    update, params, trace = jax.jit(rule.update), PARAMS, []
    for t in range(steps):
        grads = grads_at(t)
        if t == 2:
            grads["v"] = grads["v"].at[0].set(jnp.nan)
        if t == 3:
            grads = jax.tree.map(lambda g: 1e6 * g, grads)
        updates, state, _ = update(theta, grads, state, params, value=1.0 / (t + 1))
        params = jax.tree.map(jnp.add, params, updates)
        trace.append((updates, state))
    return trace


def random_theta(name: str):
    """With nothing at zero, so that every part of the network acts."""
    theta = rule_of(name).init_theta(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(theta)
    moved = [
        x + 0.02 * jax.random.normal(jax.random.fold_in(jax.random.key(3), i), x.shape)
        for i, x in enumerate(leaves)
    ]
    return treedef.unflatten(moved)


@needs_kernel
@pytest.mark.parametrize("name", RULES)
def test_kernel_equals_plain_over_a_run_with_bad_and_huge_gradients(name):
    assert xla.why_not(4) is None, "there is a compiler, but the kernel does not build"
    theta = random_theta(name)
    # Orthogonalising amplifies the rounding of small singular values.
    tolerance = 1e-3 if name in ("celo2", "celo2_flat") else 2e-5
    for plain, fused in zip(
        rollout(name, "plain", theta), rollout(name, "fused", theta), strict=True
    ):
        assert_close(plain, fused, tolerance)


@needs_kernel
@pytest.mark.parametrize("name", RULES)
def test_the_kernel_is_what_runs(name):
    """Otherwise the test above would compare the plain rule with itself."""
    rule = rule_of(name)
    theta = rule.init_theta(jax.random.key(0))
    state = rule.init(theta, PARAMS, 5)
    lowered = jax.jit(rule.update).lower(theta, PARAMS, state, PARAMS, value=1.0)
    assert "lopax_element_step" in lowered.as_text()


@needs_kernel
def test_kernel_under_vmap_over_thetas_equals_a_loop():
    rule = architecture("celo", backend="fused", lstm=4)
    thetas = jax.vmap(rule.init_theta)(jax.random.split(jax.random.key(0), 3))
    grads = grads_at(0)

    def one(theta):
        state = rule.init(theta, PARAMS, 10)
        return rule.update(theta, grads, state, PARAMS, value=1.0)[0]

    together = jax.jit(jax.vmap(one))(thetas)
    for i in range(3):
        alone = jax.jit(one)(jax.tree.map(lambda x, i=i: x[i], thetas))
        assert_close(alone, jax.tree.map(lambda x, i=i: x[i], together), 1e-6)


@needs_kernel
def test_a_large_tensor_is_split_the_same_way_every_time():
    """Above the size where work is shared between threads, results are still the plain
    rule's and reproducible to the bit."""
    rule = {b: architecture("celo", backend=b, phase=1) for b in ("plain", "fused")}
    theta = rule["plain"].init_theta(jax.random.key(0))
    params = {"w": jax.random.normal(jax.random.key(1), (300, 257))}
    grads = {"w": jax.random.normal(jax.random.key(2), (300, 257))}

    def run(name: str):
        state = rule[name].init(theta, params, 10)
        return jax.jit(rule[name].update)(theta, grads, state, params, value=1.0)[0]

    first = run("fused")
    assert_close(run("plain"), first)
    for _ in range(3):
        np.testing.assert_array_equal(first["w"], run("fused")["w"])


@needs_kernel
def test_derivative_is_the_plain_rules():
    # One matrix: the derivative of the unrolled plain rule is slow to compile.
    params = {"m": PARAMS["m"]}

    def objective(theta, backend):
        rule = architecture("celo", backend=backend, phase=1, lstm=4)
        state = rule.init(theta, params, 5)
        updates, state, _ = rule.update(
            theta, {"m": grads_at(0)["m"]}, state, params, value=1.0
        )
        moved = jax.tree.map(jnp.add, params, updates)
        return jnp.sum(jnp.square(moved["m"])) + jnp.sum(state.tensors["m"].second)

    theta = architecture("celo", lstm=4).init_theta(jax.random.key(0))
    found = {
        b: jax.jit(jax.grad(objective), static_argnums=1)(theta, b)["rule"]
        for b in ("plain", "fused")
    }
    assert_close(found["plain"], found["fused"], 1e-4)
    assert float(jnp.max(jnp.abs(found["fused"]["w2"]))) > 0.0


@needs_kernel
@pytest.mark.parametrize("together", [False, True])
def test_a_step_that_is_not_finite_is_taken_back(together):
    """The kernel says which of a batch of steps it was."""
    rule = architecture("celo", lstm=4, backend="fused")
    theta = rule.init_theta(jax.random.key(0))
    broken = theta["rule"] | {"b2": jnp.full(2, jnp.nan)}
    thetas = [theta, theta | {"rule": broken}]
    state = rule.init(theta, PARAMS, 50)

    def step(theta):
        kept = jax.tree.map(jnp.array, state)
        return rule.update(theta, grads_at(0), kept, PARAMS, value=jnp.float32(1.0))

    if together:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *thetas)
        updates, _, info = jax.jit(jax.vmap(step))(stacked)
        found = [jax.tree.map(lambda x, i=i: x[i], (updates, info)) for i in range(2)]
    else:
        found = [(u, info) for u, _, info in map(jax.jit(step), thetas)]
    for (updates, info), fails in zip(found, (False, True), strict=True):
        assert bool(info.skipped) == fails
        moved = [np.any(u) for u in jax.tree.leaves(updates)]
        assert not any(moved) if fails else all(moved)


@needs_kernel
def test_the_caller_s_state_is_not_overwritten():
    """The kernel works in place; XLA must copy a state that is still needed."""
    rule = architecture("celo", backend="fused", phase=1)
    theta = rule.init_theta(jax.random.key(0))
    state = rule.init(theta, PARAMS, 5)
    update = jax.jit(rule.update)
    _, after, _ = update(theta, grads_at(0), state, PARAMS, value=1.0)
    assert not jax.tree.leaves(jax.tree.map(jnp.any, state.tensors["m"].momenta))[0]
    _, again, _ = update(theta, grads_at(0), state, PARAMS, value=1.0)
    assert_close(after, again, 0.0)


def test_without_kernels_the_plain_rule_runs_and_fused_is_refused():
    code = (
        "import jax, jax.numpy as jnp\n"
        "from lopax.architectures import architecture\n"
        "from lopax._core.errors import ConfigError\n"
        "p = {'w': jnp.ones((4, 3))}\n"
        "for backend in ('auto', 'fused'):\n"
        "    r = architecture('celo', phase=1, backend=backend, lstm=2)\n"
        "    t = r.init_theta(jax.random.key(0))\n"
        "    f = jax.jit(r.update)\n"
        "    try:\n"
        "        f(t, p, r.init(t, p, 5), p, value=1.0)\n"
        "        print(backend, 'ran')\n"
        "    except ConfigError as error:\n"
        "        told = 'LOPAX_KERNELS' in str(error)\n"
        "        print(backend, 'refused' if told else error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LOPAX_KERNELS": "off"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split("\n")[:2] == ["auto ran", "fused refused"], done.stderr


@needs_kernel
@pytest.mark.parametrize("name", ["celo", "velo"])
@pytest.mark.parametrize("size", [1e20, 1e30])
def test_parameters_whose_squares_leave_the_range(name, size):
    """The step stays relative to the tensor's size, or its bound, in both forms."""
    params = jax.tree.map(lambda p: size * p, PARAMS)
    found = {}
    for backend in ("plain", "fused"):
        rule = rule_of(name, backend=backend)
        theta = rule.init_theta(jax.random.key(0))
        state = rule.init(theta, params, 10)
        run = jax.jit(lambda g, s, p, r=rule, t=theta: r.update(t, g, s, p, value=1))
        updates, state, info = run(grads_at(0), state, params)
        assert not bool(info.skipped)
        found[backend] = updates
    counted = min(size, sizes.LARGEST) if name == "velo" else 1.0
    assert float(jnp.max(jnp.abs(found["plain"]["m"]))) > 1e-6 * counted
    assert_close(found["plain"], found["fused"], 1e-4)
