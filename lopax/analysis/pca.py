"""How many dimensions the states of a rule really use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lopax._core.errors import ConfigError


class StatePCA(NamedTuple):
    """Principal components of visited states, largest first, in float64."""

    mean: NDArray[np.float64]  # [n]
    components: NDArray[np.float64]  # [k, n], orthonormal rows
    explained: NDArray[np.float64]  # [k] shares of the variance, which sum to one

    def dimensions(self, share: float = 0.9) -> int:
        """How many components hold `share` of the variance."""
        return int(np.searchsorted(np.cumsum(self.explained), share - 1e-12) + 1)

    def project(self, states: ArrayLike, count: int = 2) -> NDArray[np.float64]:
        """Coordinates [..., count] in the first components."""
        centred = np.asarray(states, np.float64) - self.mean
        return centred @ self.components[:count].T


def state_pca(states: ArrayLike) -> StatePCA:
    """PCA of states [..., n].

    Raises `ConfigError` if there are fewer than two states, or all are the same.
    """
    array = np.asarray(states, np.float64)
    flat = array.reshape(-1, array.shape[-1])
    if len(flat) < 2:
        raise ConfigError(f"{len(flat)} state(s): a PCA needs at least two")
    mean = flat.mean(axis=0)
    covariance = np.cov(flat - mean, rowvar=False).reshape(flat.shape[1], -1)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values[::-1], 0.0)
    if values.sum() == 0.0:
        raise ConfigError("all states are the same: there is no variance to explain")
    return StatePCA(mean, vectors[:, ::-1].T, values / values.sum())
