"""What a rule's `advance` learns of the tensors of a step, and tells them.

Tensors may lie on several devices; `advance` runs on one, where the shared state is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lopax.torch.backends import Job
from lopax.torch.batch import Advance, Rows
from lopax.torch.narrow_backend import opened
from lopax.torch.plain import summaries


def gather(
    jobs: Sequence[Job], home: torch.device, shared: Mapping[str, Tensor]
) -> Rows:
    """One row for each entry of all jobs, in order, on the device `home`."""
    every = [e for job in jobs for e in job.entries]
    carried = jobs[0].rule.carried if jobs else ()
    rows = {k: torch.stack([e.state[k].to(home) for e in every]) for k in carried}
    if not (jobs and jobs[0].rule.summarises):
        return Rows(len(every), None, rows)
    found: list[Tensor] = []
    for job in jobs:
        there = {k: v.to(job.device) for k, v in shared.items()}
        for entries in opened(job.entries):
            found += [r.to(home) for r in summaries(job.rule, entries, there)]
    return Rows(len(every), torch.stack(found), rows)


def hand_out(jobs: Sequence[Job], result: Advance, finite: Tensor) -> list[Job]:
    """The jobs, their entries with what they are told; keeps what is carried if
    `finite`."""
    told, at = [], 0
    for job in jobs:
        entries, device = job.entries, job.device
        here = slice(at, at + len(entries))
        at = here.stop
        for name, rows in result.carried.items():
            keep = finite.to(device)
            for e, row in zip(entries, rows[here].to(device).unbind(0), strict=True):
                old = e.state[name]
                old.copy_(torch.where(keep, row, old))
        split = {k: v[here].to(device).unbind(0) for k, v in result.told.items()}
        if split:
            entries = [
                e._replace(told={k: rows[i] for k, rows in split.items()})
                for i, e in enumerate(entries)
            ]
        told.append(job._replace(entries=entries))
    return told
