"""`lopax list WHAT [PATTERN]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import tyro

from lopax._core.errors import UnknownName
from lopax.cli import flags

ABOUT = """List what there is: optimizers, weights, tasks, suites, datasets,
environments, baselines, estimators, reproductions. PATTERN is a shell pattern such as
'digits_*'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListFlags:
    what: Annotated[str, tyro.conf.Positional]
    pattern: Annotated[str, tyro.conf.Positional] = "*"


Rows = tuple[list[str], list[list[str]]]


def _optimizers(pattern: str) -> Rows:
    from lopax.inventory import optimizer_facts

    rows = [
        [
            f.name,
            f"{f.meta_parameters:,}",
            f"{f.bytes_per_parameter:.1f}",
            _bytes(f.narrow_bytes_per_parameter),
            _bytes(f.int8_bytes_per_parameter),
            "yes" if f.needs_loss else "no",
            "yes" if f.needs_horizon else "no",
            "yes" if f.has_weights else "no",
            f.reference,
        ]
        for f in optimizer_facts(pattern)
    ]
    columns = ["name", "meta-parameters", "state B/param", "bf16 momenta"]
    return [*columns, "int8", "loss", "num_steps", "bundled weights", "source"], rows


def _bytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _weights(pattern: str) -> Rows:
    from lopax._core.suspicions import ATTENTION_FACTORS
    from lopax.pretrained import list_weights, read_weights

    rows = []
    for name in list_weights(pattern):
        header = read_weights(name).header
        factor = ATTENTION_FACTORS.get(name)
        remark = "" if factor is None else f"transformers: begin with lr {factor}"
        row = [name, header["architecture"], header["checksum"][:12], remark]
        rows.append(row)
    return ["name", "architecture", "sha256", "remark"], rows


def _tasks(pattern: str) -> Rows:
    from lopax.tasks import TASKS, list_tasks, task_available

    rows = [
        [n, "yes" if task_available(n) else "no", TASKS[n].about]
        for n in list_tasks(pattern)
    ]
    return ["name", "data here", "about"], rows


def _suites(pattern: str) -> Rows:
    from lopax.tasks.suites import SUITES, list_suites

    rows = [
        [n, str(len(SUITES[n].tasks)), SUITES[n].about] for n in list_suites(pattern)
    ]
    return ["name", "tasks", "about"], rows


def _datasets(pattern: str) -> Rows:
    from lopax.data import DATASETS, available, list_datasets

    rows = [
        [n, "yes" if available(n) else "no", DATASETS[n].about]
        for n in list_datasets(pattern)
    ]
    return ["name", "here", "about"], rows


def _environments(pattern: str) -> Rows:
    from lopax.tasks.rl import ENVIRONMENTS

    rows = []
    for name in ENVIRONMENTS.names(pattern):
        made = ENVIRONMENTS[name]
        shape = "x".join(map(str, made.observation_shape))
        rows.append([name, shape, str(made.num_actions)])
    return ["name", "observations", "actions"], rows


def _baselines(pattern: str) -> Rows:
    from lopax.evaluate import BASELINES

    return ["name", "about"], [[n, BASELINES[n].note] for n in BASELINES.names(pattern)]


def _estimators(pattern: str) -> Rows:
    from lopax.estimators import ESTIMATORS

    rows = [
        [n, "back-propagation" if ESTIMATORS[n].uses_backprop else "evolution"]
        for n in ESTIMATORS.names(pattern)
    ]
    return ["name", "kind"], rows


def _reproductions(pattern: str) -> Rows:
    from lopax.reproductions import AT_SIZE, REPRODUCTIONS

    rows = [
        [n, study.size, f"{study.minutes:.0f} min", study.claim]
        for n in REPRODUCTIONS.names(pattern)
        for study in (REPRODUCTIONS[n], *([AT_SIZE[n]] if n in AT_SIZE else []))
    ]
    return ["name", "size", "takes about", "claim"], rows


LISTS: dict[str, Callable[[str], Rows]] = {
    "optimizers": _optimizers,
    "weights": _weights,
    "tasks": _tasks,
    "suites": _suites,
    "datasets": _datasets,
    "environments": _environments,
    "baselines": _baselines,
    "estimators": _estimators,
    "reproductions": _reproductions,
}


def main(argv: Sequence[str]) -> int:
    from lopax.cli.console import table

    args = flags.parse(ListFlags, argv, "list", ABOUT)
    if args.what not in LISTS:
        raise UnknownName("list", args.what, LISTS)
    columns, rows = LISTS[args.what](args.pattern)
    table(args.what, columns, rows)
    return 0
