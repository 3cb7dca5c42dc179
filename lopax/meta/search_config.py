"""Settings of a search (see `lopax.meta.search`)."""

from __future__ import annotations

import dataclasses

from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError

ALGORITHMS = ("cma_es", "sep_cma_es", "snes", "xnes")
MOST = 400
"""Dimensions up to which the covariance matrix of `FULL` algorithms is affordable."""
FULL = ("cma_es", "xnes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """A phase's table [phases.search]."""

    algorithm: str = "cma_es"
    """One of `ALGORITHMS`, of the package evosax."""
    size: int = 16
    """Candidates in a generation, which is one outer step."""
    sigma: float = 0.1
    """Standard deviation of the candidates at the start."""
    problems: int = 8
    """Inner problems of a generation, over all groups of tasks. Every candidate runs
    the same ones, from the same initial parameters, on the same batches."""
    bound: float = 1.0
    """A problem's part in a candidate's fitness, its meta-loss less the generation's
    median on that problem, is at most this and at least minus this."""
    keep: float = 1.0
    """Share of the way from the start to the mean of the last generation that the
    phase's theta keeps. Below one it guards against tasks learned by heart; choose it
    on tasks that are neither searched on nor reported."""
    together: int | None = None
    """Candidates that run at a time (vmapped) on a device, the others after them, in
    equal parts of at most this; None: all."""

    def __post_init__(self) -> None:
        check_choice(self, "algorithm", ALGORITHMS)
        check_range(self, "size", low=4)
        check_range(self, "sigma", above=0.0)
        check_range(self, "problems", low=1)
        check_range(self, "bound", above=0.0)
        check_range(self, "keep", above=0.0, high=1.0)
        if self.together is not None:
            check_range(self, "together", low=1)
            if self.size % self.together:
                raise ConfigError(
                    f"SearchConfig.together = {self.together}: must divide the size "
                    f"= {self.size}"
                )

    def check_sizes(self, groups: int, devices: int) -> None:
        """Raises `ConfigError` if the problems or the candidates do not divide."""
        if self.problems % groups:
            raise ConfigError(
                f"SearchConfig.problems = {self.problems}: must be a multiple of the "
                f"{groups} groups of tasks"
            )
        if self.size % devices:
            raise ConfigError(
                f"SearchConfig.size = {self.size}: must be a multiple of the "
                f"{devices} devices"
            )

    def check_dimensions(self, dimensions: int) -> None:
        """Raises `ConfigError` if the algorithm is not made for so many numbers."""
        if self.algorithm in FULL and dimensions > MOST:
            raise ConfigError(
                f"SearchConfig.algorithm = {self.algorithm!r}: keeps a matrix over the "
                f"{dimensions} trainable numbers, at most {MOST}; train fewer "
                "(`trainable`), or use 'sep_cma_es' or 'snes'"
            )
