"""Orthogonalisation in torch: as in JAX, and of shards as of the whole."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_common import make

from lopax._core import polar
from lopax._core.errors import ConfigError
from lopax.blocks import orthogonalize as ours
from lopax.torch import orthogonalize as theirs
from lopax.torch import product
from lopax.torch.batch import complete
from lopax.torch.errors import UnsupportedParameter
from lopax.torch.ops import TorchOps

SHAPES = [(5, 8), (24, 24), (60, 12), (12, 60), (1, 30), (30, 1), (3, 12, 7)]


def matrix(shape: tuple[int, ...], rank: int | None = None) -> Any:
    rng = np.random.default_rng(1)
    if rank is None:
        return rng.standard_normal(shape).astype(np.float32)
    left = rng.standard_normal((*shape[:-1], rank))
    return (left @ rng.standard_normal((rank, shape[-1]))).astype(np.float32)


@pytest.mark.parametrize("method", polar.CHOICES)
def test_as_in_jax(method: str) -> None:
    """For any shape, rank and scale; zero gives zero."""
    for shape in SHAPES:
        for rank in (None, 1):
            x = matrix(shape, rank)
            want = np.asarray(ours.orthogonalize(jnp.asarray(x), method))
            for scale in (1.0, 1e-20, 1e20):
                got = theirs.orthogonalize(torch.tensor(x) * scale, method)
                # Solving rows away that are alike leaves rounding.
                far = 0.05 if method == "mud" and rank else 1e-3
                np.testing.assert_allclose(got, want, atol=far)
        assert not theirs.orthogonalize(torch.zeros(shape), method).any()
    half = torch.tensor(matrix((5, 8))).bfloat16()
    assert theirs.orthogonalize(half, method).dtype == torch.bfloat16


def shards_of(x: Any, axis: int) -> list[torch.Tensor]:
    """One element more in the first half."""
    return list(torch.tensor(x).tensor_split([(x.shape[axis] + 1) // 2], axis))


def run_together(x: Any, matrix: tuple[int, int], cut: int, method: str) -> Any:
    """The two halves along `cut`, side by side, their sums added."""
    halves = [h.unsqueeze(0) for h in shards_of(x, cut)]
    steps = [theirs.steps(h, matrix, x.shape, cut, method, None) for h in halves]
    sums: list[Any] = [next(s) for s in steps]
    while True:
        sent = []
        for several in zip(*sums, strict=True):
            whole = sum(s.value for s in several) if cut in several[0].axes else None
            sent.append([s.value if whole is None else whole for s in several])
        sums, done = [], []
        for i, s in enumerate(steps):
            try:
                sums.append(s.send([values[i] for values in sent]))
            except StopIteration as end:
                done.append(end.value[0])
        if done:
            return torch.cat(done, cut)


@pytest.mark.parametrize("method", polar.CHOICES)
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (12, 60), (60, 12), (3, 8, 5)])
def test_shards_as_the_whole(shape: tuple[int, ...], method: str) -> None:
    x, inner = matrix(shape), (len(shape) - 2, len(shape) - 1)
    short = inner[0] if shape[-2] <= shape[-1] else inner[1]
    for pair in (inner, (inner[1], inner[0])):
        for cut in range(len(shape)):
            if cut == short and method in ("turbo", "mud"):
                with pytest.raises(UnsupportedParameter, match=r"whole rows.*shorter"):
                    run_together(x, pair, cut, method)
                continue
            got = run_together(x, pair, cut, method)
            want = theirs.orthogonalize(torch.tensor(x), method)
            np.testing.assert_allclose(got, want, atol=1e-3)


def spectrum(kind: str, short: int, long: int) -> torch.Tensor:
    """A matrix with singular values of a kind."""
    rng = np.random.default_rng(2)
    if kind == "ones":
        return torch.ones(short, long)
    values = {
        "normal": None,
        "harmonic": 1.0 / np.arange(1, short + 1),
        "rank one": np.arange(short) == 0,
        "decades": np.geomspace(1, 1e-6, short),
    }[kind]
    if values is None:
        return torch.tensor(rng.standard_normal((short, long)), dtype=torch.float32)
    u = np.linalg.qr(rng.standard_normal((short, short)))[0]
    v = np.linalg.qr(rng.standard_normal((long, short)))[0]
    return torch.tensor((u * values) @ v.T, dtype=torch.float32)


@pytest.mark.parametrize("kind", ["normal", "harmonic", "ones", "rank one", "decades"])
@pytest.mark.parametrize("shape", [(128, 128), (160, 520), (400, 130)])
def test_in_bfloat16_no_singular_value_turns_or_grows(
    shape: tuple[int, int], kind: str
) -> None:
    """Whatever the scale, alone and stacked; the usual spectra come as near to the
    polar factor as in float32."""
    x = spectrum(kind, *sorted(shape))
    x = x if shape == tuple(x.shape) else x.mT
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    got = theirs.orthogonalize(x, "auto", half=True)
    assert got.dtype == torch.float32
    assert torch.linalg.matrix_norm(got, 2) <= 1.33
    kept = s > 0.02 * torch.linalg.vector_norm(s)
    along = (u.mT @ got @ vt.mT).diagonal()[kept]
    assert along.min() >= (0.55 if kind != "ones" else 0.7)
    if kind in ("normal", "harmonic"):
        polar_factor = u @ vt
        far = torch.linalg.norm(got - polar_factor) / torch.linalg.norm(polar_factor)
        assert far <= 0.27
    for scale in (2.0**-66, 2.0**66):  # whose products round alike
        other = theirs.orthogonalize(x * scale, "auto", half=True)
        np.testing.assert_allclose(other, got, atol=1e-3)
    pair = theirs.orthogonalize(torch.stack([x, 2.0 * x]), "auto", half=True)
    assert torch.linalg.matrix_norm(pair, 2).max() <= 1.33
    if kind in ("normal", "harmonic"):
        np.testing.assert_allclose(pair, got.expand(2, *got.shape), atol=0.03)
    assert not theirs.orthogonalize(0.0 * x, "auto", half=True).any()


@pytest.mark.parametrize("shape", [(515, 700), (1027, 1030), (2, 530, 1100)])
def test_symmetric_products_in_blocks(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the plain products, for sides that blocks do not divide, in both dtypes."""
    assert polar.blocks(shape[-2], shape[-1], half=len(shape) == 3) > 1
    x = torch.tensor(matrix(shape))
    whole = len(shape) == 2
    methods = ("quintic", "gram") if whole else ("turbo", "mud", "auto")
    got = {m: theirs.orthogonalize(x, m, half=m == "auto") for m in methods}
    square = x[..., : shape[-2]]
    square = square @ square.mT / shape[-2]
    onto = product.Onto(square, 0.5, -2.0)
    sums = [product.gram(x), product.commuting(square, square, onto)]
    assert all(torch.equal(s, s.mT) for s in sums)
    monkeypatch.setattr(polar, "blocks", lambda *_: 1)
    plain = [x @ x.mT, 0.5 * square - 2.0 * square @ square]
    for got_sum, want in zip(sums, plain, strict=True):
        np.testing.assert_allclose(got_sum, want, atol=2e-3)
    for method, y in got.items():
        want = theirs.orthogonalize(x, method, half=method == "auto")
        np.testing.assert_allclose(y, want, atol=0.03 if method == "auto" else 1e-4)


def test_in_bfloat16_results_are_stored_as_the_matrices() -> None:
    """In whatever order their sides are given; then they are added without a copy."""
    x = torch.tensor(matrix((3, 140, 150))).movedim(0, -1)  # [r, c, 3]
    want = torch.stack([theirs.orthogonalize(x[..., i], half=True) for i in range(3)])
    for sides in ((0, 1), (1, 0)):
        walk = theirs.steps(x.unsqueeze(0), sides, x.shape, None, "auto", None, True)
        got = complete(walk)[0]
        assert got.movedim(-1, 0).is_contiguous()
        np.testing.assert_allclose(got.movedim(-1, 0), want, atol=0.03)


def test_sums_of_squares_in_any_layout() -> None:
    ops = TorchOps(torch.device("cpu"), {})
    x = torch.tensor(matrix((2, 3, 4, 5)))
    for y in (x, x.movedim((2, 3), (1, 2)), x.movedim((3, 2), (1, 2)), x[:, ::2]):
        for axis in ((1, 2), (2, 1), (-2, -1), (0, 3), 1, (0, 1, 2, 3)):
            for keepdims in (False, True):
                want = y.square().sum(axis, keepdim=keepdims)
                got = ops.sum_squares(y, axis, keepdims)
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, rtol=1e-5)


def test_bfloat16_is_for_auto_and_large_matrices() -> None:
    for method in polar.CHOICES:
        plan = polar.plan(method, None, 256, 512, half=True)
        assert plan.half == (method == "auto")
    assert not polar.plan("auto", None, 64, 512, half=True).half
    assert not polar.plan("auto", None, 256, 512).half


def test_bfloat16_of_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theirs, "fast_half", lambda device: True)
    x = matrix((140, 300))
    want = theirs.orthogonalize(torch.tensor(x), "auto")
    for cut in (0, 1):
        np.testing.assert_allclose(
            run_together(x, (0, 1), cut, "auto"), want, atol=0.03
        )


def test_bad_values_are_refused() -> None:
    x = torch.ones(3, 3)
    with pytest.raises(ValueError, match=r"'svd'.*quintic.*auto"):
        theirs.orthogonalize(x, "svd")
    with pytest.raises(ValueError, match="at least 1, got -1"):
        theirs.orthogonalize(x, "cubic", -1)
    with pytest.raises(ValueError, match=r"only matrices.*\(3,\)"):
        theirs.orthogonalize(x[0])
    with pytest.raises(ConfigError, match=r"orthogonalizer = 'svd'.*'quintic'"):
        make("celo2", [torch.nn.Parameter(x)], orthogonalizer="svd")


@pytest.mark.parametrize("method", polar.CHOICES)
def test_celo2_orthogonalises_as_it_is_told(method: str) -> None:
    def first_move(method: str) -> torch.Tensor:
        param = torch.nn.Parameter(torch.ones(12, 40))
        optimizer = make(
            "celo2", [param], orthogonalizer=method, schedule="constant", num_steps=None
        )
        param.grad = torch.tensor(matrix((12, 40)))
        optimizer.step()
        return param.detach() - 1.0

    move, published = first_move(method), first_move("quintic")
    cosine = torch.cosine_similarity(move.ravel(), published.ravel(), dim=0)
    assert cosine > (0.5 if method == "mud" else 0.9)
    np.testing.assert_allclose(move.square().mean().sqrt(), 1e-3, rtol=1e-3)
