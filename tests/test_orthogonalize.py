"""Orthogonalisation: what every method promises, for any shape, rank and scale."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopax import architecture
from lopax._core import polar
from lopax._core.errors import ConfigError
from lopax.blocks.orthogonalize import orthogonalize, orthogonalize_all

SHAPES = [(5, 8), (24, 24), (96, 20), (20, 96), (1, 30), (30, 1), (50, 2), (3, 12, 7)]
POLYNOMIAL = [name for name in polar.CHOICES if name != "mud"]


def matrix(shape: tuple[int, ...], rank: int | None = None, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if rank is None:
        return rng.standard_normal(shape).astype(np.float32)
    left = rng.standard_normal((*shape[:-1], rank))
    right = rng.standard_normal((*shape[:-2], rank, shape[-1]))
    return (left @ right).astype(np.float32)


def scalars(rounds: tuple[polar.Round, ...], s: Any) -> Any:
    for a, b, c in rounds:
        s = a * s + b * s**3 + c * s**5
    return s


def reference(x: Any, method: str) -> Any:
    """The same map by singular values in float64."""
    if x.shape[-2] > x.shape[-1]:
        return np.swapaxes(reference(np.swapaxes(x, -2, -1), method), -2, -1)
    x = x.astype(np.float64)
    plan = polar.plan(method, None, *x.shape[-2:])
    if plan.start == "rows":
        gram = x @ np.swapaxes(x, -2, -1)
        x = x / np.sqrt(np.abs(gram).sum(-1, keepdims=True))
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    power = {"frobenius": 2, "schatten": 4}.get(plan.start)
    if power:
        s = s / (s**power).sum(-1, keepdims=True) ** (1 / power)
    return (u * scalars(plan.rounds, s)[..., None, :]) @ vt


@pytest.mark.parametrize(
    "method",
    [*(m for m in polar.METHODS.values() if m.rounds), *polar.EXPRESS.values()],
)
def test_the_bounds_in_the_table_hold(method: polar.Method) -> None:
    s = np.concatenate([np.linspace(0, 1, 100_001), np.geomspace(1e-7, 1, 10_001)])
    got = scalars(method.rounds, s)
    assert got.max() <= method.high and got.min() >= 0.0
    assert got[s >= method.floor].min() >= method.low
    assert got[s >= 0.8 * method.floor].min() < method.low


@pytest.mark.parametrize("method", POLYNOMIAL)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_singular_values(shape: tuple[int, ...], method: str) -> None:
    """Any rank, and scales whose squares are no float32 numbers."""
    run = jax.jit(lambda x: orthogonalize(x, method))
    for rank in (None, 1, 2):
        x = matrix(shape, rank)
        want = reference(x, method)
        for scale in (1.0, 1e-20, 1e20):
            np.testing.assert_allclose(run(x * np.float32(scale)), want, atol=1e-3)
        assert np.sum(np.asarray(run(x)) * x) > 0.0
    assert not np.any(run(np.zeros(shape, np.float32)))


def test_auto_is_cheaper_and_near_enough() -> None:
    """Fewer multiplications than the published rounds for any shape, and for two kinds
    of singular values at most 0.26 from the polar factor, relative to its size."""
    small = [(16, 50), (16, 16), (64, 64), (64, 288), (128, 128), (129, 129)]
    large = [(300, 300), (512, 512), (512, 4608), (1024, 1024), (1024, 2000)]
    for short, long in (*small, *large):
        plan = polar.plan("auto", None, short, long)
        usual = polar.plan("quintic", None, short, long)
        published = polar.flops(usual, short, long, whole=True)
        assert polar.flops(plan, short, long) < 0.95 * published, (short, long)
        assert plan.gram == (long >= 1.5 * short)
        x = matrix((short, long)).astype(np.float64)
        normal = np.sqrt(np.maximum(np.linalg.eigvalsh(x @ x.T), 0.0))
        for s in (normal, 1.0 / np.arange(1, short + 1)):
            power = {"frobenius": 2, "schatten": 4}[plan.start]
            got = scalars(plan.rounds, s / np.sum(s**power) ** (1 / power))
            assert np.sqrt(np.mean((got - 1.0) ** 2)) < 0.26, (short, long)
        assert np.prod([a for a, _, _ in plan.rounds]) > 250.0


def test_the_same_polynomial_on_the_matrix_and_on_its_gram_matrix() -> None:
    x = matrix((20, 96))
    np.testing.assert_allclose(
        orthogonalize(x, "gram"), orthogonalize(x, "quintic"), atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "method", "blocks"),
    [((515, 700), "gram", 2), ((1030, 1027), "quintic", 4), ((2, 520, 600), "auto", 2)],
)
def test_symmetric_products_in_blocks(
    shape: tuple[int, ...], method: str, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the plain products, for sides that blocks do not divide; with derivatives."""
    short, long = sorted(shape[-2:])
    assert polar.blocks(short, long) == blocks
    x = jnp.asarray(matrix(shape))

    def run() -> tuple[Any, ...]:
        made = jax.jit(lambda x: orthogonalize(x, method))(x)
        slope = jax.jit(jax.grad(lambda x: jnp.sum(orthogonalize(x, "cubic", 1) * x)))
        return made, slope(x), str(jax.make_jaxpr(lambda x: orthogonalize(x))(x))

    made, slope, program = run()
    monkeypatch.setattr(polar, "blocks", lambda *_: 1)
    want, plain, without = run()
    assert program.count("dot_general") > without.count("dot_general")
    np.testing.assert_allclose(made, want, atol=1e-4)
    np.testing.assert_allclose(slope, plain, atol=1e-3 * np.max(np.abs(plain)))


def test_where_blocks_pay() -> None:
    assert [polar.blocks(n, n) for n in (511, 512, 1023, 1024)] == [1, 2, 2, 4]
    assert [polar.blocks(512, n, half=True) for n in (512, 1024)] == [1, 2]
    plan = polar.plan("quintic", None, 1024, 1024)
    ratio = polar.flops(plan, 1024, 1024) / polar.flops(plan, 1024, 1024, whole=True)
    assert ratio == pytest.approx((1 + 2 * 10 / 16) / 3)


def test_rows_that_are_orthonormal_stay() -> None:
    q, _ = np.linalg.qr(matrix((40, 9)))
    for x in (q, q.T):
        for method in ("mud", "auto"):
            got = np.asarray(orthogonalize(jnp.asarray(3.0 * x), method))
            cosine = np.sum(got * x) / np.linalg.norm(got) / np.linalg.norm(x)
            assert cosine > 0.9999
    np.testing.assert_allclose(orthogonalize(jnp.asarray(3.0 * q), "mud"), q, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_decorrelation(shape: tuple[int, ...]) -> None:
    """Unit rows of the shorter side, whatever the scale. Of rank one, the first row
    stands for all, and the others do not become noise of its size."""
    short = -1 if shape[-2] <= shape[-1] else -2
    x = matrix(shape)
    for scale in (1.0, 1e-20, 1e20):
        got = orthogonalize(jnp.asarray(x * np.float32(scale)), "mud")
        np.testing.assert_allclose(np.linalg.norm(got, axis=short), 1.0, atol=1e-5)
    if len(shape) == 2:
        x = matrix(shape, rank=1)
        got = np.asarray(orthogonalize(jnp.asarray(x), "mud"))
        rows = got if short == -1 else got.T
        assert np.sum(got * x) > 0.0 and np.linalg.norm(rows[1:]) < 0.3
    assert not np.any(orthogonalize(jnp.zeros(shape), "mud"))


@pytest.mark.parametrize("method", polar.CHOICES)
def test_stacked_padded_and_mapped(method: str) -> None:
    """A stack of matrices, zeros around them and `vmap` change nothing."""
    for shape in ((9, 14), (14, 9), (7, 40)):
        xs = matrix((3, *shape))
        want = np.stack([orthogonalize(x, method) for x in xs])
        np.testing.assert_allclose(orthogonalize(xs, method), want, atol=1e-5)
        mapped = jax.jit(jax.vmap(lambda x: orthogonalize(x, method)))
        np.testing.assert_allclose(mapped(xs), want, atol=1e-4)
        grown: Any = np.pad(xs, ((0, 0), (0, 2), (0, 3)))
        got = np.asarray(orthogonalize(grown, method))
        rows, cols = shape
        np.testing.assert_allclose(got[:, :rows, :cols], want, atol=1e-4)
        assert not np.any(got[:, rows:]) and not np.any(got[:, :, cols:])


def test_many_at_once() -> None:
    """Equal and unlike shapes, tall and wide, small and large, in the order given."""
    shapes = [(9, 14), (12, 16), (14, 9), (9, 14), (1, 8), (8, 1), (70, 80), (16, 12)]
    xs = [jnp.asarray(matrix(s, seed=i)) for i, s in enumerate(shapes)]
    for method in ("auto", "quintic"):
        several = jax.jit(lambda xs, m=method: orthogonalize_all(xs, m))(xs)
        for x, got in zip(xs, several, strict=True):
            np.testing.assert_allclose(got, orthogonalize(x, method), atol=1e-4)
    products = str(jax.make_jaxpr(orthogonalize_all)(xs[:4])).count("dot_general")
    assert products == str(jax.make_jaxpr(orthogonalize)(xs[1])).count("dot_general")
    assert orthogonalize_all([]) == []
    with pytest.raises(ValueError, match=r"\(2, 3, 3\) at 1"):
        orthogonalize_all([xs[0], jnp.ones((2, 3, 3))])


def test_derivatives_are_finite_and_do_not_see_the_scale() -> None:
    for x in (matrix((6, 9)), np.zeros((6, 9), np.float32)):
        for method in polar.CHOICES:
            slope = jax.grad(lambda x, m=method: jnp.sum(jnp.sin(orthogonalize(x, m))))
            got = slope(jnp.asarray(x))
            assert np.all(np.isfinite(got)), method
            # Moving along X changes nothing.
            np.testing.assert_allclose(np.sum(got * x), 0.0, atol=1e-3)


def test_fewer_and_more_rounds() -> None:
    """Fewer reach less far down, more come nearer to one."""
    polished = polar.plan("polar", 7, 8, 8).rounds
    assert len(polished) == 7 and polished[-1] == polished[4]
    assert polar.plan("polar", 3, 8, 8).rounds == polished[2:5]
    assert polar.plan("mud", 2, 8, 8).solves == 2
    x = jnp.asarray(matrix((8, 8)))
    exact = reference(matrix((8, 8)), "polar")
    few, usual = (orthogonalize(x, "polar", rounds) for rounds in (2, 5))
    assert np.linalg.norm(few - exact) > np.linalg.norm(usual - exact)


def test_bad_values_are_refused() -> None:
    x = jnp.ones((3, 3))
    with pytest.raises(ValueError, match=r"'svd'.*quintic.*auto"):
        orthogonalize(x, "svd")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        orthogonalize(x, "gram", 0)
    with pytest.raises(ValueError, match=r"only matrices.*\(3,\)"):
        orthogonalize(x[0])
    with pytest.raises(ConfigError, match=r"orthogonalizer = 'svd'.*'quintic'"):
        architecture("celo2", orthogonalizer="svd")


@pytest.mark.parametrize("method", polar.CHOICES)
def test_celo2_orthogonalises_as_it_is_told(method: str) -> None:
    def first_move(method: str) -> Any:
        rule: Any = architecture("celo2", orthogonalizer=method)
        theta = rule.init_theta(jax.random.key(0))
        params, grads = {"w": jnp.ones((12, 40))}, {"w": jnp.asarray(matrix((12, 40)))}
        return rule.update(theta, grads, rule.init(theta, params), params)[0]["w"]

    move, published = first_move(method), first_move("quintic")
    cosine = jnp.sum(move * published) / jnp.linalg.norm(move)
    cosine = cosine / jnp.linalg.norm(published)
    assert cosine > (0.5 if method == "mud" else 0.9)
    # The size is the rule's own, whoever gives the direction.
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(move**2)), 1e-3, rtol=1e-4)
