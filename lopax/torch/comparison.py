"""Optimizers on a PyTorch model: trained side by side, with the same kind of report.

from lopax.torch.comparison import compare

def loss_fn(model, batch):
    x, y = batch
    return torch.nn.functional.cross_entropy(model(x), y)

print(compare(make_model, loader, loss_fn, ["celo", "adam", "adamw@0.001"]))

The runs need PyTorch only. The report is written by `lopax.evaluate` in a process of
its own, if JAX and the extra `report` are installed; the results stay in the folder,
and `lopax report FOLDER` writes it at any time.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lopax._core.atomic import atomic_write, make_folder
from lopax._core.errors import ConfigError
from lopax._version import __version__
from lopax.torch import RULES
from lopax.torch.comparison_runs import Run, TorchRuns, stacked
from lopax.torch.contestants import Contestant, contestant

LossFn: TypeAlias = Callable[[nn.Module, Any], Tensor]
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchComparison:
    """What `compare` found."""

    contestants: tuple[Contestant, ...]
    curves: dict[str, TorchRuns]
    folder: Path | None
    report: Path | None

    def best_rate(self, name: str) -> int:
        """Index of the learning rate with the lowest final smoothed loss of the mean
        curve over seeds; one at which any seed diverged cannot win."""
        return self.curves[name].best()[1]

    def final_loss(self, name: str) -> float:
        """Final smoothed training loss at the best rate; infinite if all diverged."""
        return float(self.curves[name].best()[0].final.min())

    def __str__(self) -> str:
        lines = ["optimizer                 final loss  ms/step  learning rate"]
        for c in sorted(self.contestants, key=lambda c: self.final_loss(c.name)):
            rate = "untuned"
            if c.rates:
                rate = f"{c.rates[self.best_rate(c.name)]:g} of {len(c.rates)}"
            lines.append(
                f"{c.name:<24} {self.final_loss(c.name):>11.5g} "
                f"{self.curves[c.name].step_ms:>8.2f}  {rate}"
            )
        if self.report is not None:
            lines.append(f"report: {self.report}")
        elif self.folder is not None:
            lines.append(f"for a report: lopax report {self.folder}")
        return "\n".join(lines)


def compare(
    model_factory: Callable[[], nn.Module],
    data_loader: Iterable[Any],
    loss_fn: LossFn,
    optimizers: Sequence[str | tuple[str, Callable[..., Any]]] = ("celo", "adam"),
    *,
    num_steps: int = 1_000,
    seeds: int | Sequence[int] = 3,
    reference: str = "adam",
    learning_rates: Sequence[float] | None = None,
    valid_loader: Iterable[Any] | None = None,
    eval_every: int | None = None,
    device: torch.device | str | None = None,
    name: str = "problem",
    folder: str | os.PathLike[str] | None = "comparison",
    report: bool = True,
    listener: Callable[[str], None] | None = None,
) -> TorchComparison:
    """Trains fresh models with each optimizer, one run after the other.

    Before each run the global generator (and the loader's own) is seeded, so that all
    optimizers start from the same weights and see the same batches.

    **Arguments:**

    - `model_factory`: makes a model with fresh weights from torch's generator.
    - `data_loader`: batches; gone through as often as needed.
    - `loss_fn`: (model, batch) -> scalar loss.
    - `optimizers`: names (`lopax.torch.contestants`): "celo", "celo:FILE", "adamw"
        (tuned over all learning rates), "adamw@0.001"; or pairs (name, function of the
        parameters that makes a torch optimizer).
    - `num_steps`: updates of a run; what learned optimizers are told as well.
    - `seeds`: how many, or which.
    - `reference`: what scores are relative to; added if it is not there.
    - `learning_rates`: for tuned baselines; default the 15 of `lopax.evaluate`.
    - `valid_loader`: held-out batches, all of which are used every `eval_every`
        updates (default: 20 times a run).
    - `device`: where model and batches go (nested tuples, lists and dicts of tensors).
    - `folder`: for results and report; None keeps nothing.
    - `report`: write the report, if what it needs is installed.
    - `listener`: called with a line of text after each run.

    Raises `ConfigError` for repeated names, an empty loader, or a loss that is no
    scalar tensor; `UnknownName` for optimizers; `NotWritable`, before any run, for a
    folder that cannot be made.
    """
    wanted = list(optimizers)
    if reference not in [o if isinstance(o, str) else o[0] for o in wanted]:
        wanted.append(reference)
    entries = tuple(contestant(o, learning_rates, RULES) for o in wanted)
    names = [c.name for c in entries]
    twice = sorted({n for n in names if names.count(n) > 1})
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if twice or not chosen or num_steps < 1 or len(set(chosen)) != len(chosen):
        raise ConfigError(
            f"optimizers {names}, seeds {chosen}, num_steps = {num_steps}: names and "
            "seeds must be different from each other, and there must be at least one"
        )
    target = None if folder is None else make_folder(folder)
    every = eval_every or max(1, num_steps // 20)
    eval_steps = [*range(0, num_steps, every), num_steps]
    curves = {}
    for entry in entries:
        runs = []
        for seed in chosen:
            for rate in entry.rates or (None,):
                run = Run(model_factory, data_loader, loss_fn, device, num_steps)
                found = run.train(entry, rate, seed, valid_loader, eval_steps)
                runs.append(found)
                if listener is not None:
                    at = "" if rate is None else f" at {rate:g}"
                    listener(f"{entry.name}{at}, seed {seed}: {found[0][-1]:.5g}")
        curves[entry.name] = stacked(runs, len(chosen), eval_steps)
    if target is not None:
        header = {
            "format": FORMAT,
            "name": name,
            "num_steps": num_steps,
            "eval_steps": eval_steps,
            "seeds": chosen,
            "reference": reference,
            "held_out": valid_loader is not None,
            "machine": {
                "device": str(device or "cpu"),
                "torch": torch.__version__,
                "lopax": __version__,
            },
        }
        _write(target, header, entries, curves)
    page = _report(target) if report and target is not None else None
    return TorchComparison(
        contestants=entries, curves=curves, folder=target, report=page
    )


def _write(folder: Path, header: dict[str, Any], entries: Any, curves: Any) -> None:
    """`comparison.json` and `comparison.npz`, for `lopax.evaluate`."""
    fields = ("step_ms", "state_bytes", "parameters")
    described = [
        {
            "name": c.name,
            "learned": c.learned,
            "rates": list(c.rates),
            "note": c.note,
            "settings": dict(c.settings),
            "cost": {f: getattr(curves[c.name], f) for f in fields},
        }
        for c in entries
    ]
    arrays: Any = {
        f"{i}/{name}": array
        for i, c in enumerate(entries)
        for name, array in curves[c.name].to_arrays().items()
    }
    with atomic_write(folder / "comparison.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    with atomic_write(folder / "comparison.json") as path:
        path.write_text(json.dumps({**header, "optimizers": described}, indent=1))


def _report(folder: Path) -> Path | None:
    """Has another process write the report; None if it cannot."""
    needed = ("jax", "optax", "jinja2", "matplotlib", "tyro", "rich")
    if not all(importlib.util.find_spec(n) for n in needed):
        return None
    command = [sys.executable, "-m", "lopax", "report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"no report: {done.stderr.strip()}", file=sys.stderr)
        return None
    return folder / "report.html"
