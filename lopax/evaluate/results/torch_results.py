"""Reading what `lopax.torch.comparison` wrote, so that it is judged like the rest."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lopax._core.errors import ConfigError, FileFormatError, LopaxError
from lopax.evaluate.problem import Problem, RunConfig
from lopax.evaluate.results.study import RunGroup, Study
from lopax.evaluate.specs import OptimizerSpec

FORMAT = 1


def is_torch_comparison(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds results of a comparison in PyTorch."""
    return os.path.isfile(Path(folder) / "comparison.json")


def read_torch_comparison(folder: str | os.PathLike[str]) -> Study:
    """The results in a folder as a study, which can be summarised but not run.

    Raises `FileFormatError` if they are not there, damaged, or of another version.
    """
    path = Path(folder) / "comparison.json"
    try:
        return _study(*_read(path))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, LopaxError):
            raise
        raise FileFormatError(
            f"{path} is damaged ({type(error).__name__}: {error}); run the comparison "
            "again"
        ) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and arrays. Raises `FileFormatError`."""
    try:
        header = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
    ) as error:
        raise FileFormatError(
            f"{path.parent}: no readable results of lopax.torch.comparison.compare "
            f"({type(error).__name__}: {error}); run it again"
        ) from None
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise FileFormatError(f"{path}: format {found!r}, this version reads {FORMAT}")
    return header, arrays


def _study(header: dict[str, Any], arrays: dict[str, Any]) -> Study:
    specs = tuple(_spec(o) for o in header["optimizers"])
    problem = Problem(
        name=header["name"],
        make=_only_torch,
        config=RunConfig(num_steps=header["num_steps"]),
        note="a PyTorch model" + ("" if header["held_out"] else "; no held-out data"),
    )
    groups = {
        (spec.name, problem.name): _group(header, i, arrays)
        for i, spec in enumerate(specs)
    }
    return Study(
        title=f"Optimizers on {header['name']}",
        optimizers=specs,
        problems=(problem,),
        seeds=tuple(header["seeds"]),
        groups=groups,
    )


def _spec(found: dict[str, Any]) -> OptimizerSpec:
    return OptimizerSpec(
        name=found["name"],
        make=_only_torch,
        learning_rates=tuple(found["rates"]),
        kind="learned" if found["learned"] else "baseline",
        settings=found["settings"],
        note=found["note"],
    )


def _group(header: dict[str, Any], index: int, arrays: dict[str, Any]) -> RunGroup:
    train, valid = arrays[f"{index}/train"], arrays[f"{index}/valid"]
    own = {k.partition("/")[2]: v for k, v in arrays.items() if _of(index, k)}
    curves = {  # the three that older files do not have, and their own
        "test": np.full_like(valid, np.nan),
        "updates": np.isfinite(train).sum(-1).astype(np.int32),
        "eval_steps": np.asarray(header["eval_steps"]),
        **own,
    }
    cost = header["optimizers"][index]["cost"]
    price = {
        **cost,
        "bytes_per_parameter": cost["state_bytes"] / max(cost["parameters"], 1),
        "device": header["machine"]["device"],
    }
    described = {"cost": price, "machine": header["machine"]}
    headers = (described,) * len(header["seeds"])
    return RunGroup.from_arrays(curves, headers=headers)


def _of(index: int, key: str) -> bool:
    return key.partition("/")[0] == str(index)


def _only_torch(*_: Any) -> Any:
    raise ConfigError("these results were made in PyTorch; they can only be read here")
