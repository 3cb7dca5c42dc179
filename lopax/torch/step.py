"""One step of all tensors, on whatever devices and processes they lie.

Nothing waits for a device: whether the step counts is a tensor until the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lopax._core.run import Run
from lopax.torch import sharding
from lopax.torch import state as states
from lopax.torch.backends import Job
from lopax.torch.losses import agree
from lopax.torch.rows import gather, hand_out
from lopax.torch.rule import Rule


class Stepped(NamedTuple):
    """What is known of a step, on the device of what the tensors share."""

    scale: Tensor  # [] the rule's learning-rate-like scalar
    finite: Tensor  # [] bool: the step was made
    held: Tensor  # [] bool: it was, but for some elements that were not finite


def take(
    jobs: Sequence[Job], rule: Rule, shared: states.State, loss: Any, group: Any
) -> Stepped:
    """Steps parameters and states, and what is `shared`, in place.

    **Arguments:**

    - `jobs`: one for each device and backend; none where a process owns no tensor.
    - `rule`: the one on the device of `shared`.
    - `group`: as `losses.agree` takes it.
    """
    home = shared["iteration"].device
    jobs, loss, finite = _look(jobs, loss, home, group)
    old = {k: shared[k] for k in shared if k not in states.COUNTERS}
    done = shared["iteration"].float() / shared["num_steps"].clamp_min(1).float()
    run = Run(
        loss=torch.where(finite, loss, torch.zeros_like(loss)),
        fraction=done.clamp_max(1.0),  # past the end the schedule holds
        updates=shared["iteration"] - shared["skipped"],
        num_steps=shared["num_steps"],
    )
    result = rule.advance(old, run, gather(jobs, home, old))
    # What is not finite here would make every parameter so, now or later.
    common = result.common
    made = (*result.shared.values(), *result.told.values(), common.scale)
    made = (*made, *result.carried.values(), *common.told.values())
    for x in made if common.bound is None else (*made, common.bound):
        finite = finite & torch.isfinite(x).all()
    told = hand_out(jobs, result, finite)
    for name, new in result.shared.items():
        shared[name].copy_(torch.where(finite, new, shared[name]))
    shared["iteration"] += 1
    shared["skipped"] += ~finite

    alive = finite.float()
    halted = torch.zeros((), dtype=torch.bool, device=home)
    for job in told:
        there = common.to(job.device), alive.to(job.device)
        halted = halted | job.backend.finish(job.rule, job.entries, *there).to(home)
    shared["skipped"] += halted & finite
    return Stepped(common.scale, finite, halted & finite)


def _look(
    jobs: Sequence[Job], loss: Any, home: torch.device, group: Any
) -> tuple[list[Job], Tensor, Tensor]:
    """The jobs after their first half, the loss [] of all processes, and [] bool
    whether that and all gradients are finite."""
    looks = [job.backend.begin(job.rule, job.entries) for job in jobs]
    jobs = [
        job._replace(entries=[e._replace(within=look.within) for e in job.entries])
        for job, look in zip(jobs, looks, strict=True)
    ]
    none = torch.zeros((), dtype=torch.bool, device=home)
    bad = torch.stack([none, *(look.bad.to(home) for look in looks)]).any()
    loss = torch.as_tensor(loss, dtype=torch.float32, device=home)
    loss, bad = agree(loss, bad, group)
    if group is not None:  # which need not hold all shards
        bad = sharding.any_shard(bad, [e.sharding for j in jobs for e in j.entries])
    return jobs, loss, torch.isfinite(loss) & ~bad
