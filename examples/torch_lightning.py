"""Lightning: the optimizer is returned by `configure_optimizers`, and that is all.

    python examples/torch_lightning.py [--compare] [--steps 300]

Lightning gives `step` a closure, so the loss arrives by itself.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torch_judging import Scheduled, example
from torch_vision import images, network

BATCH = 64
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(lightning.LightningModule):
    def __init__(self, make: Any, say: Any) -> None:
        super().__init__()
        self.model, self.make, self.say = network(), make, say

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.model(x), y)
        if index % 50 == 0 or index == self.trainer.max_steps - 1:
            self.say(f"step {index:4d}  loss {loss.item():.4f}")
        return loss

    def configure_optimizers(self) -> Any:
        made = self.make(self.model)
        if not isinstance(made, Scheduled):
            return made  # a learned optimizer
        schedule = {"scheduler": made.schedule, "interval": "step"}
        return {"optimizer": made.optimizer, "lr_scheduler": schedule}


def train(make: Any, steps: int, say: Any) -> float:
    """Returns the share of held-out images that are classified wrongly."""
    x, y, test_x, test_y = images()
    data = TensorDataset(x, y)
    batches = RandomSampler(data, replacement=True, num_samples=steps * BATCH)
    module = Classifier(make, say)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about workers of the loader
        lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, DataLoader(data, BATCH, sampler=batches))
    module.eval()
    with torch.no_grad():
        return (module.model(test_x).argmax(1) != test_y).float().mean().item()


if __name__ == "__main__":
    example(str(__doc__), train, steps=300, unit="held-out error")
