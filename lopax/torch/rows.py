"""What a rule's `advance` learns of the tensors of a step, and tells them.

Tensors may lie on several devices; `advance` runs on one, where the shared state is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lopax.torch.batch import Advance, Rows
from lopax.torch.plain import Entry, summaries
from lopax.torch.rule import Rule

Job = tuple[Rule, Sequence[Entry]]  # a device's rule, and the entries there


def gather(
    jobs: Sequence[Job], home: torch.device, shared: Mapping[str, Tensor]
) -> Rows:
    """One row for each entry of all jobs, in order, on the device `home`."""
    every = [e for _, entries in jobs for e in entries]
    carried = jobs[0][0].carried if jobs else ()
    rows = {k: torch.stack([e.state[k].to(home) for e in every]) for k in carried}
    if not (jobs and jobs[0][0].summarises):
        return Rows(len(every), None, rows)
    found = [
        row.to(home)
        for rule, entries in jobs
        for row in summaries(rule, entries, _on(shared, entries[0].param.device))
    ]
    return Rows(len(every), torch.stack(found), rows)


def _on(shared: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {k: v.to(device) for k, v in shared.items()}


def hand_out(
    jobs: Sequence[Job], result: Advance, finite: Tensor
) -> list[Sequence[Entry]]:
    """Each job's entries with what they are told; keeps what is carried if `finite`."""
    told, at = [], 0
    for _, entries in jobs:
        here = slice(at, at + len(entries))
        device, at = entries[0].param.device, here.stop
        for name, rows in result.carried.items():
            keep = finite.to(device)
            for e, row in zip(entries, rows[here].to(device).unbind(0), strict=True):
                old = e.state[name]
                old.copy_(torch.where(keep, row, old))
        split = {k: v[here].to(device).unbind(0) for k, v in result.told.items()}
        told.append(
            [
                e._replace(told={k: rows[i] for k, rows in split.items()})
                for i, e in enumerate(entries)
            ]
            if split
            else entries
        )
    return told
