"""Where the jobs of a grid run: flags that several commands have."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from lopax.cli import flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaceFlags:
    """Flags that `bench`, `compare` and `tune` have."""

    workers: Annotated[int | None, flags.named("INT")] = None
    """Processes; default: one per core, or a single one if there is a GPU."""
    executor: Literal["processes", "ray"] = "processes"
    """Processes of this machine, or tasks on the Ray cluster RAY_ADDRESS names."""

    def options(self) -> dict[str, Any]:
        """As options of `lopax.evaluate.run_grid`."""
        from lopax.evaluate.runs.workers import default_workers

        workers = default_workers() if self.workers is None else self.workers
        return {"workers": workers, "executor": self.executor}
