"""Metrics to TensorBoard or Weights & Biases, beside the JSON lines. Off unless asked.

A tracker is a listener for `lopax.meta.train`; its package is imported when chosen.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any

from lopax._core.errors import MissingExtra
from lopax._core.registry import Registry
from lopax.meta.config import RunConfig
from lopax.meta.loop import Progress

Listener = Callable[[Progress], None]
TRACKERS: Registry[Callable[[RunConfig, str], Listener]] = Registry("tracker")


def combine(listeners: Iterable[Listener]) -> Listener:
    """One listener that tells all."""
    listeners = list(listeners)

    def tell(progress: Progress) -> None:
        for listener in listeners:
            listener(progress)

    return tell


def tracker(name: str, run: RunConfig, folder: str | os.PathLike[str]) -> Listener:
    """The tracker called `name` ("tensorboard", "wandb") for a run in `folder`.

    Raises `UnknownName`, or `MissingExtra` if its package is not installed.
    """
    return TRACKERS[name](run, os.fspath(folder))


@TRACKERS.register("tensorboard")
def tensorboard(run: RunConfig, folder: str) -> Listener:
    """Event files in `folder`/tensorboard (package tensorboardX)."""
    del run
    module = _require("tensorboardX", "writing TensorBoard files")
    writer = module.SummaryWriter(os.path.join(folder, "tensorboard"))

    def write(progress: Progress) -> None:
        for key, value in progress.metrics.items():
            writer.add_scalar(f"{progress.phase}/{key}", value, progress.step)
        writer.flush()

    return write


@TRACKERS.register("wandb")
def wandb(run: RunConfig, folder: str) -> Listener:
    """A Weights & Biases run; no source code is uploaded."""
    from lopax._core.config import to_dict

    module = _require("wandb", "logging to Weights & Biases")
    session = module.init(
        project="lopax",
        name=run.name,
        dir=folder,
        config=to_dict(run),
        settings=module.Settings(disable_code=True),
    )

    def write(progress: Progress) -> None:
        values = {f"{progress.phase}/{k}": v for k, v in progress.metrics.items()}
        session.log(values, step=progress.step)

    return write


def _require(package: str, purpose: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingExtra(package, "tracking", purpose) from None
