"""What the folder of a meta-training run holds, and how it is written and read.

run/config.json          the merged configuration
run/metrics.jsonl        one line per `log_every` outer steps
run/evaluations.jsonl    one line per evaluation
run/lineage.jsonl        a population's: one line per member and generation
run/checkpoint.safetensors   everything needed to continue bit for bit
run/phase-<name>.safetensors, run/weights.safetensors   theta
run/last-good.safetensors    of a run that diverged: its last finite theta
run/.lock                while a process writes: who
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lopax._core import jsonl
from lopax._core.atomic import atomic_write
from lopax._core.config import config_hash, from_dict, merge, to_dict
from lopax._core.errors import (
    FileFormatError,
    LopaxError,
    NonFiniteTheta,
    ResumeMismatch,
)
from lopax._core.single_writer import single_writer
from lopax._core.types import Theta
from lopax._version import __version__
from lopax.architectures import architecture
from lopax.meta import checkpoint, distributed
from lopax.meta.config import PhaseConfig, RunConfig
from lopax.meta.estimator_config import NOT_SEARCHED, EstimatorConfig
from lopax.meta.idle import without_idle
from lopax.meta.outer_config import OuterConfig
from lopax.pretrained.files import WeightsFile, read_arrays
from lopax.theta import save_theta

CONFIG = "config.json"
CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
LINEAGE = "lineage.jsonl"
WEIGHTS = "weights.safetensors"
LAST_GOOD = "last-good.safetensors"


class Tally(NamedTuple):
    """Host-side counters, saved in the checkpoint's header."""

    phase: int = 0
    step: int = 0  # in this phase
    inner_steps: float = 0.0
    seconds: float = 0.0


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder for this process (of several in a job: for process 0) alone.

    Raises `FolderInUse`.
    """
    if jax.process_index():
        yield
        return
    with single_writer(folder):
        yield


def holds_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a run in the folder has done anything. One that ended before its first
    line of metrics (out of memory, say) is no reason to refuse another."""
    return any((Path(folder) / name).exists() for name in (METRICS, CHECKPOINT))


def read_config(folder: str | os.PathLike[str]) -> RunConfig:
    """The configuration a run was started with.

    A setting that does nothing is left out: files of before such were refused hold
    some. Raises `FileFormatError`, and what the configuration raises.
    """
    path = Path(folder) / CONFIG
    return from_dict(RunConfig, _heeded(_saved_values(path)), where=str(path))


def _saved_values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileFormatError(
            f"{path.parent} is not the folder of a run (there is no {path})"
        ) from None
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8
        raise FileFormatError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise FileFormatError(f"{path} is damaged: no JSON object")
    values.pop("lopax", None)
    return values


def _heeded(values: dict[str, Any]) -> dict[str, Any]:
    """Without settings that do nothing, of the run and of its phases."""
    phases = values.get("phases", [])
    if not isinstance(phases, list) or not all(isinstance(p, dict) for p in phases):
        return values  # which is refused with words of its own
    for table, kind in (("estimator", EstimatorConfig), ("outer", OuterConfig)):
        base = values.get(table, {})
        if not isinstance(base, dict):
            return values
        values = {**values, table: without_idle(kind, base)}
        for phase in phases:
            own = phase.get(table, {})
            if isinstance(own, dict):
                idle = kind.idle(merge(base, own))
                phase[table] = {k: v for k, v in own.items() if k not in idle}
    searching = [phase for phase in phases if phase.get("search") is not None]
    for phase in searching:
        _leave_to_gradients(phase)
    if phases and len(searching) == len(phases):
        _leave_to_gradients(values)
    return values


def _leave_to_gradients(values: dict[str, Any]) -> None:
    """Takes out what a search does not heed."""
    values.pop("outer", None)
    estimator = values.get("estimator", {})
    if isinstance(estimator, dict):
        kept = {k: v for k, v in estimator.items() if k not in NOT_SEARCHED}
        values["estimator"] = kept


def open_folder(run: RunConfig, folder: Path, resume: bool) -> Tally:
    """Starts or checks the folder; returns where to continue.

    Raises `ResumeMismatch` if it holds a run already, or one of another configuration;
    `FileFormatError` for a checkpoint that is none or a damaged log.
    """
    saved = folder / CONFIG
    if not resume:
        if jax.process_index():
            return Tally()
        if holds_run(folder):
            raise ResumeMismatch(
                f"{folder} already holds a run: continue it with --resume {folder}, "
                "or choose another folder"
            )
        text = json.dumps({"lopax": __version__, **to_dict(run)}, indent=2)
        with atomic_write(saved) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        return Tally()
    if not (folder / CHECKPOINT).exists():
        _truncate_logs(folder, -1)
        return Tally()
    file = read_arrays(folder / CHECKPOINT)
    tally = _tally(folder / CHECKPOINT, file, run)
    if not _same_run(file.header["config_hash"], run, saved):
        raise ResumeMismatch(
            f"{folder} was started with another configuration "
            f"({file.header['config_hash']}, this one is {config_hash(run)}). Resume "
            f"with its own: {saved}"
        )
    done = tally.step + sum(p.outer_steps for p in run.phases[: tally.phase])
    _truncate_logs(folder, done)
    return tally


def _same_run(found: str, run: RunConfig, saved: Path) -> bool:
    """Whether a checkpoint's hash is that of this run: as it is written now, or as its
    folder's file had it when it was written."""
    if found == config_hash(run):
        return True
    try:
        return found == config_hash(_saved_values(saved)) and run == read_config(
            saved.parent
        )
    except LopaxError:
        return False


def _tally(path: Path, file: WeightsFile, run: RunConfig) -> Tally:
    """The counters of a checkpoint. Raises `FileFormatError` if it has none."""
    try:
        tally = Tally(**file.header["tally"])
        known = 0 <= tally.phase <= len(run.phases) and tally.step >= 0
        if not known or "config_hash" not in file.header:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise FileFormatError(
            f"{path} is no checkpoint of a meta-training run"
        ) from None
    return tally


def save(folder: Path, run: RunConfig, state: Any, tally: Tally) -> None:
    """Writes the checkpoint. All processes of a job must call it."""
    state = distributed.gather(state)
    if jax.process_index():
        return
    checkpoint.save_state(
        folder / CHECKPOINT,
        state,
        config_hash=config_hash(run),
        tally=tally._asdict(),
        lopax=__version__,
    )


def restore(folder: Path, state: Any, tally: Tally) -> Any:
    """The checkpoint's state, if it is one inside this phase."""
    if tally.step == 0:
        return state
    restored = checkpoint.load_state(folder / CHECKPOINT, state)
    if int(restored.step) != tally.step:
        raise FileFormatError(
            f"{folder / CHECKPOINT}: header says step {tally.step}, the state "
            f"{int(restored.step)}"
        )
    return jax.tree.map(
        lambda new, old: distributed.put(new, old.sharding), restored, state
    )


def finish_phase(
    folder: Path,
    run: RunConfig,
    phase: PhaseConfig,
    theta: Theta,
    tally: Tally,
    last: bool,
) -> None:
    """Writes the phase's theta, and of the last phase the run's weights."""
    names = [f"phase-{phase.name}.safetensors"] + ([WEIGHTS] if last else [])
    for name in names:
        _save_theta(folder / name, run, phase, theta, tally)


def save_last_good(
    folder: Path, run: RunConfig, phase: PhaseConfig, theta: Theta, tally: Tally
) -> Path | None:
    """Writes the theta that a diverged run had last; None if it had none."""
    path = folder / LAST_GOOD
    try:
        _save_theta(path, run, phase, theta, tally)
    except NonFiniteTheta:
        return None
    return path


def _save_theta(
    path: Path, run: RunConfig, phase: PhaseConfig, theta: Theta, tally: Tally
) -> None:
    optimizer = architecture(run.architecture, **run.settings_of(phase))
    header = {
        "recipe": to_dict(run),
        "phase": phase.name,
        "inner_steps": tally.inner_steps,
        "seconds": round(tally.seconds, 1),
    }
    save_theta(path, theta, optimizer, **header)


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line to a log; numbers that are not finite become null."""
    jsonl.append_line(path, line)


def _truncate_logs(folder: Path, last_step: int) -> None:
    """Drops lines after `last_step`, and half-written last ones."""
    if jax.process_index():
        return
    for name in (METRICS, EVALUATIONS, LINEAGE):
        path = folder / name
        if not path.exists():
            continue
        lines = jsonl.read_lines(path)
        if not all(type(line.get("step")) is int for line in lines):
            raise FileFormatError(f"{path} is damaged: a line without its step")
        kept = [line for line in lines if line["step"] <= last_step]
        with atomic_write(path) as temporary:
            text = "".join(jsonl.dumps(line) + "\n" for line in kept)
            temporary.write_text(text, encoding="utf-8")


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics or evaluations file. Raises `FileFormatError`."""
    if not Path(path).exists():
        raise FileFormatError(f"no log at {path}")
    return jsonl.read_lines(path)
