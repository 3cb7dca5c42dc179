"""Two processes over gloo: replicas, shards, distributed checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch_workers
from torch_common import NAMES, NEEDS_LOSS, make, small_model, train, values

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="this torch has no gloo backend",
)


def finishes(work: str, folder: Path, seconds: float = 240.0) -> bool:
    """Whether two processes come to their end in time; raises what one of them does."""
    folder.mkdir()
    multiprocessing: Any = torch.multiprocessing
    jobs = multiprocessing.spawn(
        getattr(torch_workers, work), args=(str(folder),), nprocs=2, join=False
    )
    end = time.monotonic() + seconds
    while not jobs.join(timeout=1.0):
        if time.monotonic() > end:
            for process in jobs.processes:
                process.kill()
            return False
    return True


@pytest.mark.parametrize("work", ["replicas", "shards", "owners"])
def test_two_processes(work, tmp_path):
    # What kept these processes from their end is told in `torch_workers.in_a_group`.
    # The second attempt is for a machine too busy; a wrong result raises at once.
    assert any(finishes(work, tmp_path / str(attempt)) for attempt in range(2))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", NAMES)
def test_distributed_checkpoint_in_one_process(name, tmp_path):
    """A fresh optimizer is brought up by the bare step the checkpoint code makes."""
    import torch.distributed.checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    dcp: Any = torch.distributed.checkpoint
    model = small_model()
    optimizer = make(name, model.parameters())
    train(model, optimizer, range(3))
    weights, state = get_state_dict(model, optimizer)
    dcp.save(
        {"model": weights, "optimizer": state}, checkpoint_id=tmp_path, no_dist=True
    )
    expected = train(model, optimizer, range(3, 6))

    fresh = small_model(seed=1)
    resumed = make(name, fresh.parameters())
    weights, state = get_state_dict(fresh, resumed)
    # Without the loss a step at lr = 0 is no step, for rules that look at it.
    counted = int(resumed.state_dict()["state"][0]["shared_iteration"])
    assert counted == int(name not in NEEDS_LOSS)
    dcp.load(
        {"model": weights, "optimizer": state}, checkpoint_id=tmp_path, no_dist=True
    )
    set_state_dict(fresh, resumed, model_state_dict=weights, optim_state_dict=state)
    assert train(fresh, resumed, range(3, 6)) == expected
    assert torch.equal(values(fresh), values(model))
