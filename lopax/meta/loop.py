"""A meta-training run in a folder: phases, metrics, checkpoints, exact resume.

    run/config.json          the merged configuration
    run/metrics.jsonl        one line per `log_every` outer steps
    run/evaluations.jsonl    one line per evaluation
    run/lineage.jsonl        a population's: one line per member and generation
    run/checkpoint.safetensors   everything needed to continue bit for bit
    run/phase-<name>.safetensors, run/weights.safetensors   theta

The host only counts, writes and listens for signals; all arithmetic is in
`trainer.PhaseTrainer`. A run killed at any moment continues from its last checkpoint
with exactly the numbers it would have had.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from lopax._core import tree as trees
from lopax._core.config import config_hash, to_dict
from lopax._core.errors import ConfigError, FileFormatError, ResumeMismatch
from lopax._core.task import TaskFamily
from lopax._core.types import Theta
from lopax._version import __version__
from lopax.architectures import architecture
from lopax.meta import checkpoint, distributed
from lopax.meta.config import PhaseConfig, RunConfig
from lopax.meta.population import PopulationTrainer
from lopax.meta.trainer import PhaseTrainer
from lopax.pretrained.files import atomic_write, read_arrays
from lopax.theta import load_theta, save_theta

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
LINEAGE = "lineage.jsonl"
WEIGHTS = "weights.safetensors"


class Progress(NamedTuple):
    """What a listener is told after every compiled call."""

    phase: str
    step: int  # outer steps done, all phases
    total: int
    seconds: float  # spent in this process
    metrics: Mapping[str, float]  # the line just written


class Evaluate(Protocol):
    """Scores theta on validation tasks; returns named numbers."""

    def __call__(self, phase: PhaseConfig, theta: Theta) -> Mapping[str, float]: ...


class Outcome(NamedTuple):
    """How `train` ended."""

    finished: bool  # False: stopped on request, after a clean save
    theta: Theta  # the averaged theta if averaging is on
    inner_steps: float
    seconds: float  # over all processes of this run


class Tally(NamedTuple):
    """Host-side counters, saved in the checkpoint's header."""

    phase: int = 0
    step: int = 0  # in this phase
    inner_steps: float = 0.0
    seconds: float = 0.0


def train(
    run: RunConfig,
    families: Sequence[TaskFamily],
    folder: str | os.PathLike[str],
    *,
    mesh: Any = None,
    outer_optimizer: optax.GradientTransformation | None = None,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    listener: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Runs (or continues) meta-training in `folder`.

    **Arguments:**

    - `families`: the task groups (`build_families(run.tasks)`, or your own).
    - `outer_optimizer`: any optax transformation, in place of `run.outer`'s.
    - `resume`: continue from the folder's checkpoint. Without it the folder must not
        hold a run.
    - `mesh`: devices for the particles (`distributed.particle_mesh`), or None. In a
        job of several processes every one of them calls this function alike; the
        folder is shared between them, and process 0 writes.
    - `evaluate`: called every `run.eval_every` outer steps and at each phase's end.
    - `should_stop`: asked after every compiled call; if true, saves and returns.

    Raises `ResumeMismatch` if the folder holds a run of another configuration,
    `ConfigError` / `UnknownName` for a bad configuration, `PeerLost` if another
    process of the job is gone, `PopulationLost` if all members of a population
    diverged.
    """
    with distributed.peers_may_fail(folder):
        return _train(
            run,
            families,
            Path(folder),
            mesh,
            outer_optimizer,
            resume,
            evaluate,
            listener,
            should_stop,
        )


def _train(
    run: RunConfig,
    families: Sequence[TaskFamily],
    folder: Path,
    mesh: Any,
    outer_optimizer: optax.GradientTransformation | None,
    resume: bool,
    evaluate: Evaluate | None,
    listener: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool],
) -> Outcome:
    make = PhaseTrainer if run.population is None else PopulationTrainer
    theta = initial_theta(run)
    if not resume:  # nothing is written for a run that cannot start, in any phase
        for phase in run.phases:
            make(run, phase, families, mesh, outer_optimizer).check(theta)
    tally = _open_folder(run, folder, resume)
    writer = jax.process_index() == 0
    started, last_save = time.monotonic(), time.monotonic()
    before = tally.seconds

    def spent() -> float:
        return before + time.monotonic() - started

    for index in range(len(run.phases)):
        phase = run.phases[index]
        if index < tally.phase:
            theta = load_theta(folder / f"phase-{phase.name}.safetensors")
            continue
        trainer: Any = make(run, phase, families, mesh, outer_optimizer)
        state = trainer.init(theta, jax.random.fold_in(jax.random.key(run.seed), index))
        if tally.step or (resume and (folder / CHECKPOINT).exists()):
            state = _restore(folder, state, tally)
        while tally.step < phase.outer_steps:
            state, info = trainer.advance(state, run.log_every)
            metrics = trainer.summarise(info)
            step = tally.step + run.log_every
            tally = Tally(
                index, step, tally.inner_steps + metrics["inner_steps"], spent()
            )
            done = step == phase.outer_steps
            earlier = sum(p.outer_steps for p in run.phases[:index])
            overall = step + earlier
            line = {"step": overall, "phase": phase.name, **metrics}
            line["seconds"] = round(tally.seconds, 3)
            if writer:
                _append(folder / METRICS, line)
                for born in trainer.lineage(info):
                    born["step"] += earlier
                    _append(folder / LINEAGE, {"phase": phase.name, **born})
            if listener is not None:
                listener(
                    Progress(
                        phase.name,
                        overall,
                        run.total_steps,
                        time.monotonic() - started,
                        metrics,
                    )
                )
            due = run.eval_every and step % run.eval_every == 0
            if writer and evaluate is not None and (due or done):
                scores = evaluate(phase, jax.tree.map(np.asarray, state.average))
                _append(
                    folder / EVALUATIONS,
                    {"step": overall, "phase": phase.name, **scores},
                )
            age = (time.monotonic() - last_save) / 60.0
            stop, save = distributed.agree(should_stop(), age >= run.checkpoint_minutes)
            if not done and (stop or save):
                _save(folder, run, state, tally)
                last_save = time.monotonic()
            if stop and not done:
                return Outcome(False, state.average, tally.inner_steps, spent())
        theta = jax.tree.map(np.asarray, state.average)
        tally = Tally(index + 1, 0, tally.inner_steps, spent())
        if writer:
            last = index + 1 == len(run.phases)
            _finish_phase(folder, run, phase, theta, tally, last)
        _save(folder, run, state, tally)
        last_save = time.monotonic()
        resume = False
    return Outcome(True, theta, tally.inner_steps, spent())


def initial_theta(run: RunConfig) -> Theta:
    """The theta a run starts from: fresh from its seed, or given weights, or parts of
    several. Raises `ConfigError` for a part that theta does not have,
    `StructureMismatch` for one of another shape."""
    if run.start_from is not None:
        theta = load_theta(run.start_from, run.architecture)
    else:
        optimizer = architecture(run.architecture, **run.settings_of(run.phases[0]))
        theta = optimizer.init_theta(jax.random.key(run.seed))
    for part, weights in run.start_parts.items():
        if part not in theta:
            raise ConfigError(
                f"RunConfig.start_parts: {run.architecture!r} has no part {part!r}; "
                f"its parts are {', '.join(map(repr, theta))}"
            )
        given = load_theta(weights, run.architecture)[part]
        trees.check_structure(f"{part!r} of {weights}", theta[part], given)
        theta = {**theta, part: given}
    return theta


def _open_folder(run: RunConfig, folder: Path, resume: bool) -> Tally:
    """Creates or checks the folder; returns where to continue."""
    saved = folder / "config.json"
    if not resume:
        if saved.exists() and jax.process_index() == 0:
            raise ResumeMismatch(
                f"{folder} already holds a run: continue it with --resume {folder}, "
                "or choose another folder"
            )
        if jax.process_index():
            return Tally()
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"lopax": __version__, **to_dict(run)}, indent=2)
        with atomic_write(saved) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        return Tally()
    if not (folder / CHECKPOINT).exists():
        _truncate_logs(folder, -1)
        return Tally()
    header = read_arrays(folder / CHECKPOINT).header
    if header["config_hash"] != config_hash(run):
        raise ResumeMismatch(
            f"{folder} was started with another configuration "
            f"({header['config_hash']}, this one is {config_hash(run)}). Resume with "
            f"its own: {saved}"
        )
    tally = Tally(**header["tally"])
    done = tally.step + sum(p.outer_steps for p in run.phases[: tally.phase])
    _truncate_logs(folder, done)
    return tally


def _save(folder: Path, run: RunConfig, state: Any, tally: Tally) -> None:
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


def _restore(folder: Path, state: Any, tally: Tally) -> Any:
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


def _finish_phase(
    folder: Path,
    run: RunConfig,
    phase: PhaseConfig,
    theta: Theta,
    tally: Tally,
    last: bool,
) -> None:
    optimizer = architecture(run.architecture, **run.settings_of(phase))
    header = {
        "recipe": to_dict(run),
        "phase": phase.name,
        "inner_steps": tally.inner_steps,
        "seconds": round(tally.seconds, 1),
    }
    names = [f"phase-{phase.name}.safetensors"] + ([WEIGHTS] if last else [])
    for name in names:
        save_theta(folder / name, theta, optimizer, **header)


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _truncate_logs(folder: Path, last_step: int) -> None:
    if jax.process_index() == 0:
        for name in (METRICS, EVALUATIONS, LINEAGE):
            _truncate(folder / name, last_step)


def _truncate(path: Path, last_step: int) -> None:
    """Drops lines after `last_step`, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if line["step"] <= last_step:
            kept.append(text)
    with atomic_write(path) as temporary:
        temporary.write_text("".join(k + "\n" for k in kept), encoding="utf-8")


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics or evaluations file."""
    text = Path(path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
