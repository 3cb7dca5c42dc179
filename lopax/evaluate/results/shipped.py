"""Tuned baselines that come with the package, so that a newcomer need not tune.

An archive holds, for each baseline and task, the curves of the chosen learning rate
for every seed, and what the sweep found at the other rates. It is installed into a
result store under the very keys the grid looks for: a changed baseline, task, number
of steps or list of rates has another key and is simply not found. The data must be
the same too (by hash), and after a comparison the first losses must agree.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lopax._core.atomic import atomic_write
from lopax._core.errors import FileFormatError, IncompleteResults, ResumeMismatch
from lopax.evaluate.baselines import TUNING_FREE
from lopax.evaluate.fingerprint import data_hash
from lopax.evaluate.problem import Problem
from lopax.evaluate.results.collect import SWEEP
from lopax.evaluate.results.study import Study
from lopax.evaluate.runs.records import run_identity, run_key
from lopax.evaluate.runs.store import Record, Store
from lopax.evaluate.specs import OptimizerSpec

FORMAT = 1
FOLDER = Path(__file__).parents[1] / "shipped"
_MANTISSA = 12  # bits that are kept: a relative error of 1.2e-4 at most


@dataclasses.dataclass
class Installed:
    """What `install` did, in (optimizer, task) pairs."""

    used: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    refused: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    """Why an archived result was not used."""


def archive_of(suite: str) -> Path | None:
    """The archive that comes with the package for a suite, if there is one."""
    path = FOLDER / f"{suite}.npz"
    return path if path.is_file() else None


def pack(study: Study, path: Path, *, note: str = "") -> list[tuple[str, str]]:
    """Writes the tuned baselines of a study as an archive; returns what is in it.

    In it are optimizers with learning rates and the baselines that need none, not those
    at a fixed rate, nor groups in which every rate diverged. Raises `IncompleteResults`
    if nothing is left.
    """
    cells, arrays = [], {}
    for (name, task), group in sorted(study.groups.items()):
        spec = study.spec(name)
        tuned, column = group.best()
        free = name in TUNING_FREE
        if not (spec.tunable or free) or tuned.all_diverged:
            continue
        problem = next(p for p in study.problems if p.name == task)
        prefix = str(len(cells))
        cells.append(
            {
                "optimizer": name,
                "task": task,
                "keys": [run_key(spec, problem, seed) for seed in study.seeds],
                "data": group.headers[0].get("data", ""),
                "machine": group.headers[0].get("machine", {}),
                "index": tuned.index,
            }
        )
        values = group.of_rate(column) | {"sweep": tuned.final}
        for key, value in values.items():
            arrays[f"{prefix}/{key}"] = _rounded(np.asarray(value))
    if not cells:
        raise IncompleteResults("no tuned baseline of this study has all its runs")
    index = {
        "format": FORMAT,
        "seeds": list(study.seeds),
        "note": note,
        "cells": cells,
    }
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return [(c["optimizer"], c["task"]) for c in cells]


def install(
    path: Path,
    store: Store,
    optimizers: Sequence[OptimizerSpec],
    problems: Sequence[Problem],
    seeds: Sequence[int],
    hash_of: Callable[[Problem], str] | None = None,
) -> Installed:
    """Puts the archived runs that this grid needs, and the store lacks, into the store.

    **Arguments:**

    - `hash_of`: the hash of a problem's data; by default the problem is made.

    Raises `FileFormatError` for an archive that is damaged or of another version.
    """
    index, arrays = _read(path)
    found = {(c["optimizer"], c["task"]): c for c in index["cells"]}
    outcome = Installed()
    hashes: dict[str, str] = {}
    for spec in optimizers:
        for problem in problems:
            pair = (spec.name, problem.name)
            if pair not in found:
                continue
            cell = found[pair]
            keys = [run_key(spec, problem, seed) for seed in seeds]
            if all(store.status(key) != "absent" for key in keys):
                continue
            if not set(keys) <= set(cell["keys"]):
                more = set(map(int, seeds)) - set(index["seeds"])
                outcome.refused[pair] = (
                    f"it has the seeds {index['seeds']} only"
                    if more
                    else "the baseline, the task or its length has changed since"
                )
                continue
            if problem.name not in hashes:
                hashes[problem.name] = (hash_of or _hash)(problem)
            if hashes[problem.name] != cell["data"]:
                outcome.refused[pair] = "the data here are others"
                continue
            for seed, key in zip(seeds, keys, strict=True):
                row = cell["keys"].index(key)
                prefix = index["cells"].index(cell)
                store.put(*_record(spec, problem, seed, cell, row, prefix, arrays))
            outcome.used.append(pair)
    return outcome


def check_first_losses(study: Study, tolerance: float = 1e-3) -> None:
    """Runs of one seed must begin with one loss, whoever made them.

    Raises `ResumeMismatch` if an installed baseline does not: initial values, batches
    or data then differ from those of the other runs.
    """
    for task in study.tasks:
        groups = {o: g for (o, t), g in study.groups.items() if t == task}
        own = [g for g in groups.values() if g.sweep is None]
        for optimizer, group in groups.items():
            if group.sweep is None or not own:
                continue
            ours, theirs = own[0].train[:, 0, 0], group.train[:, 0, 0]
            if not np.allclose(theirs, ours, rtol=tolerance, equal_nan=True):
                raise ResumeMismatch(
                    f"the {optimizer!r} that came with lopax starts {task!r} at a loss "
                    f"of {theirs.tolist()}, runs made here at {ours.tolist()}; use "
                    "another store and shipped=False (--no-shipped) to tune it here"
                )


def _record(
    spec: OptimizerSpec,
    problem: Problem,
    seed: int,
    cell: dict[str, Any],
    row: int,
    prefix: int,
    arrays: dict[str, np.ndarray],
) -> Record:
    """One archived run in the form of a store: a single rate, and the sweep."""
    mine = {
        k.partition("/")[2]: v
        for k, v in arrays.items()
        if k.partition("/")[0] == str(prefix)
    }
    sweep = mine.pop("sweep")
    out = {"eval_steps": mine.pop("eval_steps")}
    out |= {name: value[row][None] for name, value in mine.items()}
    out |= {f"{SWEEP}final": sweep, f"{SWEEP}index": np.asarray(cell["index"])}
    header = {
        "identity": run_identity(spec, problem, seed),
        "data": cell["data"],
        "machine": {**cell["machine"], "shipped": "with lopax"},
        "cost": None,
    }
    return Record(run_key(spec, problem, seed), header, out)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive.files}
        index = json.loads(arrays.pop("index").tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FileFormatError(
            f"{path}: not an archive of tuned baselines ({type(error).__name__}: "
            f"{error}); make it again with `lopax tune`"
        ) from None
    if index.get("format") != FORMAT:
        raise FileFormatError(
            f"{path}: format {index.get('format')!r}, this version reads {FORMAT}"
        )
    return index, arrays


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 with fewer mantissa bits, which compress well; others as they are."""
    if values.dtype != np.float32:
        return values
    drop = 23 - _MANTISSA
    bits = values.view(np.uint32).astype(np.uint64) + (1 << (drop - 1))
    kept = (bits >> drop << drop).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(values), kept, values)


def _hash(problem: Problem) -> str:
    return data_hash(problem.make())
