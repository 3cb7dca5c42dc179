"""The exceptions lopax raises. Each message says what is wrong and what to do.

All derive from `LopaxError`, so a program (and the command line, which turns them
into exit code 2 without a traceback) can tell bad input from a bug.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class LopaxError(Exception):
    """Bad input or a bad environment; the message names the fix."""

    exit_code: ClassVar[int] = 2
    """Of the command line: 2 for bad input, 1 where the work itself failed."""


class ConfigError(LopaxError, ValueError):
    """A configuration value is outside its legal range."""


class UnknownName(LopaxError, LookupError):
    """A name is in no registry; the message lists the near matches."""

    def __init__(self, kind: str, name: object, known: Iterable[str]):
        names = sorted(known)
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else ""
        known_text = f"known: {', '.join(names) or 'none'}"
        super().__init__(f"unknown {kind} {name!r}; {hint or known_text}")
        self.kind, self.name, self.near = kind, name, near


class MissingLoss(LopaxError, TypeError):
    """A loss-conditioned optimizer was updated without the loss."""

    def __init__(self, rule: str):
        super().__init__(
            f"{rule!r} looks at the loss of every step, and update() was called "
            "without it. Pass it as `value`:\n"
            "    loss, grads = jax.value_and_grad(loss_fn)(params, batch)\n"
            "    updates, state = opt.update(grads, state, params, value=loss)"
        )


class MissingParams(LopaxError, TypeError):
    """An optimizer whose step depends on the parameters was not given them."""

    def __init__(self, rule: str):
        super().__init__(
            f"{rule!r} looks at the parameters, and update() was called without them. "
            "Call opt.update(grads, state, params, ...)."
        )


class MissingHorizon(LopaxError, TypeError):
    """A rule that follows the fraction of training done was not told the length."""

    def __init__(self, rule: str):
        super().__init__(
            f"{rule!r} needs the number of training steps: "
            f"lopax.optimizer({rule!r}, num_steps=2_000)"
        )


class StructureMismatch(LopaxError, ValueError):
    """Two trees that must have one structure differ; expected and found are shown."""

    @classmethod
    def between(
        cls,
        what: str,
        expected: Mapping[str, Any],
        found: Mapping[str, Any],
        fix: str = "",
    ) -> StructureMismatch:
        """`expected` and `found` map a path to a comparable description of a leaf."""
        lines = [f"{what} does not fit. Expected against found:"]
        for path in sorted(set(expected) | set(found)):
            a, b = expected.get(path), found.get(path)
            if a != b:
                lines.append(
                    f"  {path}: expected {'nothing' if a is None else a}, "
                    f"found {'nothing' if b is None else b}"
                )
        if len(lines) > 21:
            lines[21:] = [f"  ... and {len(lines) - 21} more"]
        if fix:
            lines.append(fix)
        return cls("\n".join(lines))


class FileFormatError(LopaxError, ValueError):
    """A file is truncated, corrupt or of another kind."""


class NotWritable(LopaxError, OSError):
    """A file or folder cannot be written; arguments as of any `OSError`: the number,
    the reason, the path."""

    @classmethod
    def of(cls, path: str | os.PathLike[str], error: OSError) -> NotWritable:
        """What the system said of writing `path`."""
        reasons = {
            errno.EEXIST: "a file is where a folder should be",
            errno.ENOTDIR: "a file is where a folder should be",
            errno.EISDIR: "there is a folder of that name; give the name of a file",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        return cls(error.errno, reason, os.fspath(path))

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return 1 if self.errno in WORK_FAILED else 2

    def __str__(self) -> str:
        return f"{os.fsdecode(self.filename)} cannot be written: {self.strerror}"


WORK_FAILED = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
}
"""Errors of the system that are no fault of the input."""


class NonFiniteTheta(LopaxError, ArithmeticError):
    """Meta-parameters with NaN or infinity were to be saved or loaded."""


class DatasetNotFound(LopaxError, FileNotFoundError):
    """A data set is not where it was looked for; the message says how to get it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingExtra(LopaxError, ImportError):
    """An optional dependency is needed; the message has the pip command."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package {package!r}: pip install 'lopax[{extra}]'"
        )


class TaskError(LopaxError, ValueError):
    """A task breaks its contract (non-scalar loss, non-finite loss at the start)."""


class ResumeMismatch(LopaxError, ValueError):
    """A run is being resumed with a configuration other than its own."""


class IncompleteResults(LopaxError, ValueError):
    """Results are missing where a number was asked for; nothing is made up."""

    exit_code = 1


class PeerLost(LopaxError, RuntimeError):
    """Another process of a distributed job is gone or never came."""

    exit_code = 1


class FolderInUse(LopaxError, RuntimeError):
    """Another process writes into the folder; the message says which."""


class NotApplicable(LopaxError, TypeError):
    """An analysis of an architecture it does not apply to; says what would work."""


class PopulationLost(LopaxError, ArithmeticError):
    """Every member of a population has diverged, so that none can be replaced."""

    exit_code = 1


class MetaTrainingDiverged(LopaxError, ArithmeticError):
    """Theta is no longer finite; the message says where the last good one is."""

    exit_code = 1
