"""`lopax completion SHELL`: a script that completes commands, flags and names."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from lopax.cli import flags

ABOUT = """Print a script that teaches a shell the commands, flags and names of lopax.

bash: lopax completion bash > ~/.local/share/bash-completion/completions/lopax
zsh:  lopax completion zsh > ~/.lopax.zsh, and in ~/.zshrc: source ~/.lopax.zsh
fish: lopax completion fish > ~/.config/fish/completions/lopax.fish
tcsh: lopax completion tcsh > ~/.lopax.tcsh, and in ~/.tcshrc: source ~/.lopax.tcsh

Names (of tasks, suites, weights ...) are those of today: run it again after an
upgrade."""

Shell = Literal["bash", "zsh", "fish", "tcsh"]

# What stands at a command's positionals, by the lists of `lopax list`; commands that
# are not here take files there.
NAMES = {
    "bench": ("suites",),
    "compare": ("tasks",),
    "tune": ("baselines", "tasks", "suites"),
    "explain": ("weights",),
    "convert": ("weights",),
    "reproduce": ("reproductions",),
    "data": ("datasets",),
}
# The same of flags, in every command that has them.
OF_FLAGS = {
    "optimizers": ("optimizers", "baselines"),
    "reference": ("baselines",),
    "task": ("tasks",),
    "architecture": ("optimizers",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionFlags:
    shell: Annotated[Shell, tyro.conf.Positional]
    """Which shell the script is for."""


class Command(NamedTuple):
    """What can follow a command."""

    about: str
    names: list[str]  # at its positionals
    flags: dict[str, list[str]]  # with the words that may follow each


def main(argv: Sequence[str]) -> int:
    args = flags.parse(CompletionFlags, argv, "completion", ABOUT)
    print(SCRIPTS[args.shell](commands()))
    return 0


def commands() -> dict[str, Command]:
    """Every command of lopax, from the dataclass its flags are declared in."""
    from lopax.cli.main import COMMANDS

    return {name: _command(name, *entry) for name, entry in COMMANDS.items()}


def _command(name: str, module: str, about: str) -> Command:
    found = importlib.import_module(f"lopax.cli.{module}")
    declared = next(
        v
        for k, v in vars(found).items()
        if k.endswith("Flags") and v.__module__ == found.__name__
    )
    hints = typing.get_type_hints(declared, include_extras=True)
    names, known = list(_names(NAMES.get(name, ()))), {}
    if name == "list":
        names += found.LISTS
    elif name == "data":
        names.insert(0, "fetch")
    for field in dataclasses.fields(declared):
        hint = hints[field.name]
        if any(m is tyro.conf.Positional for m in getattr(hint, "__metadata__", ())):
            names += _choices(hint)
            continue
        flag = field.name.replace("_", "-")
        known[f"--{flag}"] = _choices(hint) + _names(OF_FLAGS.get(field.name, ()))
        if isinstance(field.default, bool):
            known[f"--no-{flag}"] = []
    known |= {flag: [] for flag in ("--help", "--json", "--quiet", "--debug")}
    return Command(about, names, known)


def _choices(hint: Any) -> list[str]:
    """The words a `Literal`, also within Annotated, allows."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return list(typing.get_args(hint)) if typing.get_origin(hint) is Literal else []


def _names(lists: Sequence[str]) -> list[str]:
    from lopax.cli.listing import LISTS

    return [row[0] for kind in lists for row in LISTS[kind]("*")[1]]


def _bash(found: dict[str, Command]) -> str:
    words = [
        f"    {name}) words={shlex.quote(' '.join([*c.names, *c.flags]))} ;;"
        for name, c in found.items()
    ]
    after = [
        f"    {name}:{flag}) words={shlex.quote(' '.join(values))} ;;"
        for name, c in found.items()
        for flag, values in c.flags.items()
        if values
    ]
    return "\n".join(
        [
            "# Completion of lopax for bash, and for zsh by bashcompinit.",
            "_lopax() {",
            '  local cur="${COMP_WORDS[COMP_CWORD]}" words=""',
            '  case "$COMP_CWORD:${COMP_WORDS[1]}" in',
            f"    1:*) words={shlex.quote(' '.join(found))} ;;",
            "  esac",
            '  [ "$COMP_CWORD" -gt 1 ] && case "${COMP_WORDS[1]}" in',
            *words,
            "  esac",
            '  [ "$COMP_CWORD" -gt 2 ] && '
            'case "${COMP_WORDS[1]}:${COMP_WORDS[COMP_CWORD-1]}" in',
            *after,
            "  esac",
            '  COMPREPLY=($(compgen -W "$words" -- "$cur"))',
            "}",
            "complete -o default -F _lopax lopax  # default: names of files",
        ]
    )


def _zsh(found: dict[str, Command]) -> str:
    start = "autoload -U +X compinit && compinit -u\n"
    return start + "autoload -U +X bashcompinit && bashcompinit\n" + _bash(found)


def _fish(found: dict[str, Command]) -> str:
    lines = ["# Completion of lopax for fish."]
    for name, c in found.items():
        about = shlex.quote(c.about)
        lines.append(
            f"complete -c lopax -n __fish_use_subcommand -f -a {name} -d {about}"
        )
        here = f"complete -c lopax -n '__fish_seen_subcommand_from {name}'"
        if c.names:
            lines.append(f"{here} -a {shlex.quote(' '.join(c.names))}")
        for flag, values in c.flags.items():
            more = f" -x -a {shlex.quote(' '.join(values))}" if values else ""
            lines.append(f"{here} -l {flag[2:]}{more}")
    return "\n".join(lines)


def _tcsh(found: dict[str, Command]) -> str:
    # One rule a word: a flag's values, then any flag, then a command's names.
    rules = [f"'p/1/({' '.join(found)})/'"]
    values = {f: v for c in found.values() for f, v in c.flags.items() if v}
    rules += [f"'n/{flag}/({' '.join(words)})/'" for flag, words in values.items()]
    known = dict.fromkeys(flag[2:] for c in found.values() for flag in c.flags)
    rules.append(f"'c/--/({' '.join(known)})/'")
    rules += [f"'n/{n}/({' '.join(c.names)})/'" for n, c in found.items() if c.names]
    return "# Completion of lopax for tcsh.\ncomplete lopax " + " ".join(rules)


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish, "tcsh": _tcsh}
