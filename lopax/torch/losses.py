"""The loss of a step: given, observed or returned, and the same on every process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lopax._core.config import check_one_of
from lopax._core.errors import ConfigError
from lopax.torch.sharding import is_dtensor


class ObservedLosses:
    """Losses recorded since the last step; never read back to the host."""

    def __init__(self) -> None:
        self._total: Any = None
        self._count = 0
        self._stale = False

    def add(self, loss: Any, reduce: str) -> None:
        check_one_of("reduce", reduce, ("mean", "sum"))
        if self._stale:
            self.take()
        loss = as_scalar(loss)
        self._total = loss if self._total is None else self._total + loss
        if reduce == "mean":
            self._count += 1

    def gradients_are_gone(self) -> None:
        """What is recorded may still be for the next step, as long as no further loss
        follows; then it was for one that never came."""
        self._stale = self._total is not None

    def take(self) -> Any:
        """The loss of the step, or None; forgets what was recorded."""
        total, count = self._total, self._count
        self._total, self._count, self._stale = None, 0, False
        return total / count if total is not None and count > 1 else total


def as_scalar(loss: Any) -> Any:
    """A detached float32 scalar tensor, or a Python float as it is.

    Raises `ConfigError` if it is not a single number.
    """
    if isinstance(loss, Tensor):
        loss = loss.detach()
        if is_dtensor(loss):
            loss = loss.full_tensor()  # type: ignore[attr-defined]
        if loss.numel() != 1 or loss.is_complex():
            raise ConfigError(
                f"the loss has shape {tuple(loss.shape)} and dtype {loss.dtype}, must "
                "be a single real number; take the mean over the batch"
            )
        return loss.reshape(()).float()
    try:
        item = getattr(loss, "item", None)  # of arrays of one element, of any shape
        value = item() if callable(item) else loss
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ConfigError(
            f"the loss is {loss!r}: must be a scalar tensor or a number"
        ) from None


def processes(group: Any) -> int:
    """How many processes agree on a step; see `agree`."""
    if group is False or not (dist.is_available() and dist.is_initialized()):
        return 1
    return max(1, dist.get_world_size(group))  # -1 if this process is not of the group


def meeting_place(group: Any, loss: Any) -> torch.device:
    """The device for the messages of a process that owns no tensor."""
    if "nccl" in dist.get_backend(group):
        return torch.device("cuda", torch.cuda.current_device())
    return loss.device if isinstance(loss, Tensor) else torch.device("cpu")


def agree(loss: Tensor, bad: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """The mean loss over all processes, and whether any of them has `bad` [] set.

    Without it, replicas that see different batches would drift apart.

    **Arguments:**

    - `group`: a process group, None for the default group (if there is one), False
        for no communication.
    """
    size = processes(group)
    if size == 1:
        return loss, bad
    message = torch.stack([loss, bad.float()])
    dist.all_reduce(message, group=group)
    return message[0] / size, message[1] > 0
