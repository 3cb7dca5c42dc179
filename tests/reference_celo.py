"""Celo's per-element rule the slow and obvious way, in float64 numpy.

Written from the formulas, independently of the package: every feature is tiled to the
tensor's full shape and stacked to [..., 30], then normalised, then multiplied by one
dense first layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

DECAYS = np.array([0.9, 0.99, 0.999])


def start(shape: tuple[int, ...]) -> dict[str, Any]:
    state: dict[str, Any] = {"m": np.zeros((*shape, 3)), "v": np.zeros(shape)}
    if len(shape) >= 2:
        d1, d0 = largest_two(shape)
        state["row"] = np.zeros((*np.delete(shape, d0), 3))
        state["col"] = np.zeros((*np.delete(shape, d1), 3))
    else:
        state["diag"] = np.zeros((*shape, 3))
    return state


def largest_two(shape: tuple[int, ...]) -> tuple[int, int]:
    order = sorted(range(len(shape)), key=lambda i: shape[i])  # sorted is stable
    return order[-2], order[-1]


def rsqrt(x: np.ndarray, floor: float = 1e-9) -> np.ndarray:
    return 1.0 / np.sqrt(np.maximum(x, floor))


def step(rule: dict, state: dict, grad: np.ndarray, param: np.ndarray, scale: float):
    """(delta, next state)."""
    g = np.clip(grad, -1000.0, 1000.0)
    shape = g.shape
    m = DECAYS * state["m"] + (1 - DECAYS) * g[..., None]
    v = 0.999 * state["v"] + 0.001 * g**2
    q = g**2 + 1e-30
    new: dict[str, Any] = {"m": m, "v": v}
    if len(shape) >= 2:
        d1, d0 = largest_two(shape)
        row = DECAYS * state["row"] + (1 - DECAYS) * np.mean(q, d0)[..., None]
        col = DECAYS * state["col"] + (1 - DECAYS) * np.mean(q, d1)[..., None]
        new |= {"row": row, "col": col}
        axis = d1 - 1 if d1 > d0 else d1
        rf = rsqrt(row / (row.mean(axis, keepdims=True) + 1e-9))
        full = (*shape, 3)
        rows = np.broadcast_to(np.expand_dims(row, d0), full)
        cols = np.broadcast_to(np.expand_dims(col, d1), full)
        factor = np.expand_dims(rf, d0) * np.expand_dims(rsqrt(col), d1)
        m_factor = factor
    else:
        diag = DECAYS * state["diag"] + (1 - DECAYS) * q[..., None]
        new["diag"] = diag
        rows = cols = diag
        factor = rsqrt(diag + 1e-9)
        m_factor = 1.0 / np.sqrt(diag)
    r = 1.0 / np.sqrt(v + 1e-6)
    features = np.concatenate(
        [
            g[..., None],
            np.clip(g, -0.1, 0.1)[..., None],
            param[..., None],
            m,
            v[..., None],
            m * r[..., None],
            r[..., None],
            g[..., None] * factor,
            (g * r)[..., None],
            rows,
            cols,
            1.0 / np.sqrt(rows + 1e-8),
            1.0 / np.sqrt(cols + 1e-8),
            m * m_factor,
        ],
        axis=-1,
    )
    axes = tuple(range(len(shape)))
    features = features / np.sqrt(1e-5 + np.mean(features**2, axes, keepdims=True))
    h = np.maximum(features @ rule["w0"] + rule["b0"], 0.0)
    h = np.maximum(h @ rule["w1"] + rule["b1"], 0.0)
    out = h @ rule["w2"] + rule["b2"]
    size = np.sqrt(np.mean(param**2) + 1e-9)
    delta = -out[..., 0] * np.exp(0.001 * out[..., 1]) * size * scale
    return delta, new
