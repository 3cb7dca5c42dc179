"""Attacks on files, runs and the command line, for as long as wanted.

    python benchmarks/hostile.py --minutes 30 [--seed 0]

In turn, until the time is over: damaged copies of the bundled weights and of a
checkpoint; a meta-training run and a grid that are killed (SIGKILL) or interrupted
(Ctrl-C, to all their processes) at random moments and continued until they are done;
bad command lines. Wrong is a damaged file that
loads as something else or raises anything but lopax's errors, Ctrl-C that does not end
a command with 130 or shows a traceback, a continued run whose numbers are not those of
an unbroken one to the bit, a worker that outlives its parent,
a temporary file or lock that is left, a command line that ends with a traceback, with
another exit code than 2, or with a new file. Prints counts per outcome; exit code 1 if
anything was wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Result, finish

# The attacks themselves are those of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile_cases import (
    BAD_COMMANDS,
    PROBLEM,
    RECIPE,
    bad_folder,
    loaded,
    mutants,
)

import lopax
from lopax._core.errors import LopaxError
from lopax.evaluate import Store
from lopax.meta import read_log
from lopax.pretrained import read_arrays

LOPAX = [sys.executable, "-m", "lopax"]
WEIGHTS = Path(lopax.__file__).parent / "pretrained" / "weights"
GRID = ["--optimizers", "sgd@0.1", "adam@0.01", "--reference", "adam@0.01"]
GRID += ["--num-steps", "60", "--seeds", "3", "--workers", "2"]

Counts = collections.Counter[tuple[str, str]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    counts: Counts = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.toml").write_text(
            RECIPE.replace("STEPS", "2000") + "\n[outer]\nlearning_rate = 1e-3\n"
        )
        text = (folder / "run.toml").read_text()
        (folder / "run.toml").write_text("checkpoint_minutes = 0.002\n" + text)
        (folder / "problem.py").write_text(PROBLEM)
        bad_folder(folder / "bad")
        attacks = [
            Files(folder, random.Random(args.seed), counts),
            Training(folder, random.Random(args.seed), counts),
            Grid(folder, random.Random(args.seed), counts),
            Commands(folder, random.Random(args.seed), counts),
        ]
        for attack in itertools.cycle(attacks):
            if time.monotonic() > deadline:
                break
            attack()
    return finish(
        [
            Result(
                benchmark="hostile",
                case=case,
                metric=outcome.removeprefix("WRONG "),
                value=float(count),
                ok=not outcome.startswith("WRONG"),
            )
            for (case, outcome), count in sorted(counts.items())
        ]
    )


class Attack:
    """One kind; each call attacks once more and counts what happened."""

    def __init__(self, folder: Path, rng: random.Random, counts: Counts):
        self.folder, self.rng, self.counts = folder, rng, counts
        self.turn = 0

    def __call__(self) -> None:
        self.turn += 1
        self.attack()

    def attack(self) -> None:
        raise NotImplementedError

    def count(self, case: str, problems: Sequence[str], fine: str) -> None:
        for problem in problems or (fine,):
            outcome = f"WRONG {problem}" if problems else problem
            self.counts[case, outcome] += 1
            if problems:
                print(f"{case}: {problem}", file=sys.stderr, flush=True)


class Files(Attack):
    """Damaged weights and checkpoints."""

    def attack(self) -> None:
        path = self.folder / "damaged.safetensors"
        source = self.rng.choice(sorted(WEIGHTS.glob("*.safetensors")))
        original = lopax.load_theta(source.stem)
        for _, data in mutants(source.read_bytes(), 200, seed=self.turn):
            path.write_bytes(data)
            outcome = loaded(path, original)
            wrong = [] if outcome == "refused" else [outcome]
            self.count("weights", wrong, outcome)
        state = {"a": np.arange(1000.0), "b": {"c": np.zeros((3, 4), np.int32)}}
        lopax.save_state(path, state, tally={"phase": 0, "step": 10})
        for _, data in mutants(path.read_bytes(), 200, seed=self.turn):
            path.write_bytes(data)
            try:
                lopax.load_state(path, state)
                wrong = ["loaded"]
            except LopaxError:
                wrong = []
            except Exception as error:
                wrong = [f"leaked {type(error).__name__}"]
            self.count("checkpoints", wrong, "refused")


class Killed(Attack):
    """A command that is killed now and then and run again until it is done."""

    case = ""

    def attack(self) -> None:
        if self.turn == 1:
            self.finish(self.folder / f"{self.case}-whole")
            return
        out = self.folder / f"{self.case}-{self.turn}"
        kills = 0
        said = self.folder / "said.txt"
        for _ in range(self.rng.choice((1, 2, 3))):
            with said.open("wb") as stream:
                process = subprocess.Popen(
                    self.command(out),
                    stdout=subprocess.DEVNULL,
                    stderr=stream,
                    start_new_session=True,
                )
            self.wait_for_a_moment(process, out)
            workers = _children(process.pid)
            if process.poll() is not None:
                break
            if self.rng.random() < 0.5:
                process.kill()
                process.wait()
                wrong, how = [], "killed"
            else:
                wrong, how = _interrupted(process, said), "interrupted"
            kills += 1
            survivors = _wait_for(workers)
            wrong += ["a worker outlived its parent"] if survivors else []
            self.count(self.case, wrong, how)
            for pid in survivors:
                os.kill(pid, signal.SIGKILL)
        done = self.finish(out)
        wrong = [] if done == 0 else [f"exit code {done} when continued"]
        wrong += self.differences(out, self.folder / f"{self.case}-whole")
        left = [p.name for p in out.rglob(".*") if p.is_file()]
        wrong += [f"{name} is left" for name in left]
        self.count(self.case, wrong, f"bit-equal after {kills} stops")

    def wait_for_a_moment(self, process: subprocess.Popen[bytes], out: Path) -> None:
        """One while it starts, or after it has written something."""
        if self.rng.random() < 0.2:
            time.sleep(self.rng.uniform(0.1, 5.0))
            return
        before = _size(out)
        while process.poll() is None and _size(out) == before:
            time.sleep(0.05)
        time.sleep(self.rng.choice((0.0, 0.1, 1.0, 3.0)) * self.rng.random())

    def finish(self, out: Path) -> int:
        done = subprocess.run(
            self.command(out), capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
        return done.returncode

    def command(self, out: Path) -> list[str]:
        raise NotImplementedError

    def differences(self, found: Path, expected: Path) -> list[str]:
        raise NotImplementedError


class Training(Killed):
    case = "meta-training"

    def command(self, out: Path) -> list[str]:
        if (out / "config.json").exists():
            return [*LOPAX, "train", "--resume", str(out)]
        return [*LOPAX, "train", str(self.folder / "run.toml"), "--out", str(out)]

    def differences(self, found: Path, expected: Path) -> list[str]:
        wrong = []
        for name in ("weights.safetensors", "checkpoint.safetensors"):
            a, b = (read_arrays(folder / name).arrays for folder in (found, expected))
            if not _same(a, b):
                wrong.append(f"{name} differs")
        logs = [
            [
                {k: v for k, v in line.items() if k != "seconds"}
                for line in read_log(folder / "metrics.jsonl")
            ]
            for folder in (found, expected)
        ]
        return wrong if logs[0] == logs[1] else [*wrong, "metrics differ"]


class Grid(Killed):
    case = "grid"

    def command(self, out: Path) -> list[str]:
        problem = str(self.folder / "problem.py")
        return [*LOPAX, "compare", problem, *GRID, "--out", str(out)]

    def differences(self, found: Path, expected: Path) -> list[str]:
        a, b = (Store(folder / "results") for folder in (found, expected))
        if list(a.keys()) != list(b.keys()):
            return ["other runs in the store"]
        pairs = [(a.get(k).arrays, b.get(k).arrays) for k in a.keys()]  # noqa: SIM118
        return [] if all(_same(x, y) for x, y in pairs) else ["curves differ"]


class Commands(Attack):
    """Bad command lines, each in a process of its own."""

    def attack(self) -> None:
        folder = self.folder / "bad"
        for argv in self.rng.sample(BAD_COMMANDS, 4):
            before = set(folder.rglob("*"))
            done = subprocess.run(
                [*LOPAX, *argv],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
            wrong = []
            if done.returncode != 2:
                wrong.append(f"exit code {done.returncode}: {' '.join(argv)}")
            if "Traceback" in done.stderr or not done.stderr.strip():
                wrong.append(f"no message or a traceback: {' '.join(argv)}")
            if new := set(folder.rglob("*")) - before:
                wrong.append(f"new files {sorted(new)}: {' '.join(argv)}")
            self.count("commands", wrong, "one message, exit code 2")


def _interrupted(process: subprocess.Popen[bytes], said: Path) -> list[str]:
    """Ctrl-C in the terminal of a command, and what was wrong with its end."""
    early = not said.read_bytes()
    os.killpg(process.pid, signal.SIGINT)
    try:
        code = process.wait(120.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return ["Ctrl-C did not end it"]
    text = said.read_bytes()
    # Before the command line has begun, it is Python that is interrupted; when its work
    # is done and Python shuts down, the signal itself (130 in a shell) ends it.
    if early or (code in (0, 130, -signal.SIGINT) and b"Traceback" not in text):
        return []
    return [f"Ctrl-C: exit code {code}: {text[-300:].decode(errors='replace')}"]


def _size(folder: Path) -> int:
    """Bytes in all files of a folder, and their number."""
    found = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # renamed in between
                found += 1 + os.stat(Path(root, name)).st_size
    return found


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two tables of arrays are equal to the bit."""
    return a.keys() == b.keys() and all(
        np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a
    )


def _children(pid: int) -> list[int]:
    """Process ids of the workers of a process (Linux; elsewhere none are found)."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(x) for x in task.read_text().split()]
        except OSError:
            continue
    return found + [child for pid in found for child in _children(pid)]


def _wait_for(pids: Sequence[int], seconds: float = 20.0) -> list[int]:
    """Those of the processes that are still alive after a while."""
    deadline = time.monotonic() + seconds
    left = list(pids)
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if _alive(pid)]
        time.sleep(0.2)
    return left


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


if __name__ == "__main__":
    sys.exit(main())
