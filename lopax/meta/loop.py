"""A meta-training run in a folder: phases, metrics, checkpoints, exact resume.

The host only counts, writes and listens for signals; all arithmetic is in
`trainer.PhaseTrainer`, and what the folder holds in `run_folder`. A run killed at any
moment continues from its last checkpoint with exactly the numbers it would have had.
A run whose theta stops being finite stops, with the last theta that was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from lopax._core import tree as trees
from lopax._core.errors import ConfigError, MetaTrainingDiverged
from lopax._core.task import TaskFamily
from lopax._core.types import Theta
from lopax.architectures import architecture
from lopax.meta import distributed, recipes, run_folder
from lopax.meta.config import PhaseConfig, RunConfig
from lopax.meta.population import PopulationTrainer
from lopax.meta.run_folder import Tally
from lopax.meta.search import SearchTrainer
from lopax.meta.trainer import PhaseTrainer
from lopax.theta import load_theta


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
    `FolderInUse` if another process trains there, `ConfigError` / `UnknownName` for a
    bad configuration, `PeerLost` if another process of the job is gone,
    `MetaTrainingDiverged` if theta is no longer finite, `PopulationLost` if all
    members of a population diverged.
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

    def make(phase: PhaseConfig) -> Any:
        kind = PhaseTrainer if run.population is None else PopulationTrainer
        if phase.search is not None:
            kind = SearchTrainer
        return kind(run, phase, families, mesh, outer_optimizer)

    theta = initial_theta(run)
    if not resume:  # nothing is written for a run that cannot start, in any phase
        for phase in run.phases:
            make(phase).check(theta)
    with run_folder.held(folder):
        return _continue(
            run,
            folder,
            theta,
            make,
            resume,
            evaluate,
            listener,
            should_stop,
        )


def _continue(
    run: RunConfig,
    folder: Path,
    theta: Theta,
    make: Callable[[PhaseConfig], Any],
    resume: bool,
    evaluate: Evaluate | None,
    listener: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool],
) -> Outcome:
    """Every phase that is not done yet, in a folder that is ours."""
    tally = run_folder.open_folder(run, folder, resume)
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
        trainer = make(phase)
        state = trainer.init(theta, jax.random.fold_in(jax.random.key(run.seed), index))
        state = run_folder.restore(folder, state, tally)
        while tally.step < phase.outer_steps:
            good = jax.tree.map(lambda x: np.array(x, copy=True), state.average)
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
                run_folder.append(folder / run_folder.METRICS, line)
                for born in trainer.lineage(info):
                    born["step"] += earlier
                    run_folder.append(
                        folder / run_folder.LINEAGE, {"phase": phase.name, **born}
                    )
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
            if not _finite(state.average):
                raise _diverged(run, folder, phase, good, tally, overall)
            due = run.eval_every and step % run.eval_every == 0
            if writer and evaluate is not None and (due or done):
                scores = evaluate(phase, jax.tree.map(np.asarray, state.average))
                run_folder.append(
                    folder / run_folder.EVALUATIONS,
                    {"step": overall, "phase": phase.name, **scores},
                )
            age = (time.monotonic() - last_save) / 60.0
            stop, save = distributed.agree(should_stop(), age >= run.checkpoint_minutes)
            if not done and (stop or save):
                run_folder.save(folder, run, state, tally)
                last_save = time.monotonic()
            if stop and not done:
                return Outcome(False, state.average, tally.inner_steps, spent())
        theta = jax.tree.map(np.asarray, state.average)
        tally = Tally(index + 1, 0, tally.inner_steps, spent())
        if writer:
            last = index + 1 == len(run.phases)
            run_folder.finish_phase(folder, run, phase, theta, tally, last)
        run_folder.save(folder, run, state, tally)
        last_save = time.monotonic()
        resume = False
    return Outcome(True, theta, tally.inner_steps, spent())


def initial_theta(run: RunConfig) -> Theta:
    """The theta a run starts from: fresh from its seed, or given weights, or parts of
    several. Raises `ConfigError` for a part that theta does not have,
    `StructureMismatch` for one of another shape."""
    if run.start_from is not None:
        theta = load_theta(recipes.find(run.start_from), run.architecture)
    else:
        optimizer = architecture(run.architecture, **run.settings_of(run.phases[0]))
        theta = optimizer.init_theta(jax.random.key(run.seed))
    for part, weights in run.start_parts.items():
        if part not in theta:
            raise ConfigError(
                f"RunConfig.start_parts: {run.architecture!r} has no part {part!r}; "
                f"its parts are {', '.join(map(repr, theta))}"
            )
        given = load_theta(recipes.find(weights), run.architecture)[part]
        trees.check_structure(f"{part!r} of {weights}", theta[part], given)
        theta = {**theta, part: given}
    return theta


def _finite(theta: Theta) -> bool:
    return all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(theta))


def _diverged(
    run: RunConfig,
    folder: Path,
    phase: PhaseConfig,
    good: Theta,
    tally: Tally,
    step: int,
) -> MetaTrainingDiverged:
    """Saves the last theta that was finite, and says what happened."""
    kept = ""
    if jax.process_index() == 0:
        path = run_folder.save_last_good(folder, run, phase, good, tally)
        kept = "" if path is None else f" The last theta that was finite: {path}."
    return MetaTrainingDiverged(
        f"meta-training diverged: after outer step {step} of {run.total_steps} (phase "
        f"{phase.name!r}) theta is not finite.{kept} Start again with a smaller "
        "outer.learning_rate, or with outer.clip_norm"
    )
