"""`lopax COMMAND`: finds the command, turns exceptions into exit codes.

Exit codes: 0 done, 1 the work failed, 2 bad usage or bad input (in both cases one
message, no traceback unless --debug), 130 interrupted after a clean save.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from lopax._core.errors import MissingExtra, PeerLost, UnknownName
from lopax._version import __version__
from lopax.cli import failures, interrupts, stdio

# command -> (module with `main(argv) -> int`, one line for the overview)
COMMANDS = {
    "quickstart": ("quickstart", "meta-train a small Celo and compare it, in minutes"),
    "train": ("train", "meta-train a learned optimizer from a recipe, or resume"),
    "bench": ("bench", "run optimizers over a suite of tasks and report"),
    "report": ("report", "write the report of a folder of results or of a run"),
    "tune": ("tune", "tune baselines' learning rates on a task or a suite"),
    "compare": ("compare", "optimizers on your own problem, with a report"),
    "explain": ("explain", "what a meta-trained rule sees and does, on one page"),
    "reproduce": ("reproduce", "re-run a paper's claim at small scale"),
    "list": ("listing", "list optimizers, weights, tasks, suites, datasets, ..."),
    "convert": ("convert", "convert a weights file, or export an AlgoPerf submission"),
    "data": ("data", "fetch a data set"),
    "doctor": ("doctor", "versions, devices, folders, and a ten-second self-check"),
    "completion": ("completion", "a script for Tab in bash, zsh, fish or tcsh"),
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            f"lopax {__version__}: learned optimizers for JAX and PyTorch.",
            "",
            "usage: lopax COMMAND [options]     (lopax COMMAND --help)",
            "",
            *rows,
            "",
            "  --json anywhere prints tables as JSON lines (list, tune, bench, ...)",
            "  --quiet anywhere shows no progress, only results and errors",
            "  --debug anywhere shows the traceback of a failure",
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        interrupts.say()
        return interrupts.CODE


def _run(argv: Sequence[str], own: bool = False) -> int:
    args = list(argv)
    debug = "--debug" in args
    stdio.JSON.set("--json" in args)
    stdio.QUIET.set("--quiet" in args)
    args = [a for a in args if a not in ("--debug", "--json", "--quiet")]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(__version__)
        return 0
    try:
        if args[0] not in COMMANDS:
            raise UnknownName("command", args[0], COMMANDS)
        with interrupts.kept(own):
            module = importlib.import_module(f"lopax.cli.{COMMANDS[args[0]][0]}")
            return module.main(args[1:])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("lopax"):
            return _fail(error, debug)
        extra = {"tyro": "train", "rich": "train", "sklearn": "train"}
        extra |= {"matplotlib": "report", "jinja2": "report", "datasets": "data"}
        name = (error.name or "?").split(".")[0]
        return _fail(
            MissingExtra(name, extra.get(name, "all"), f"lopax {args[0]}"), debug
        )
    except PeerLost as error:
        _fail(error, debug)
        # JAX's shutdown at exit waits for all processes and aborts if one is gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    except stdio.OutputLost as lost:
        return stdio.give_up(lost)
    except Exception as error:
        return _fail(error, debug)


def _fail(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    message, code = failures.explain(error)
    print(f"lopax: {message}", file=sys.stderr)
    return code


def entry_point() -> None:
    stdio.prepare()
    try:
        code = _run(sys.argv[1:], own=True)
    except KeyboardInterrupt:
        interrupts.say()
        interrupts.leave()
    except SystemExit as stop:  # of the parser: --help, bad usage
        code = stop.code if isinstance(stop.code, int) else 1
    sys.exit(stdio.finish(code))
