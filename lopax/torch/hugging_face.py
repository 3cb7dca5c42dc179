"""Using a learned optimizer in a `transformers.Trainer`.

    trainer = attach(Trainer(model=model, args=args, train_dataset=data), "celo")
    trainer.train()

transformers itself is not imported here: a trainer, or a subclass of it, is given.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from lopax._core.errors import ConfigError
from lopax.torch import optimizer as make_optimizer
from lopax.torch.optimizer import LearnedOptimizer


def attach(
    trainer: Any, name: str = "celo", *, keep_schedule: bool = False, **options: Any
) -> Any:
    """Makes `trainer` use the learned optimizer `name`; returns the trainer.

    The horizon is the trainer's own number of steps, also if a run is resumed with
    another one. The loss of each optimizer step
    is that of all its micro-batches, as the trainer scales them. Weight decay is
    `args.weight_decay` for the parameters the trainer would decay.

    **Arguments:**

    - `trainer`: a `transformers.Trainer` that has no optimizer yet.
    - `keep_schedule`: let the trainer's learning-rate schedule (by default a decay to
        zero) multiply the updates. The rules have a schedule of their own, so that
        otherwise the multiplier stays at 1; `args.learning_rate` is not used.
    - `options`: for the optimizer, but not `num_steps` or `weight_decay`.

    Raises `ConfigError` if the trainer has an optimizer already.
    """
    if trainer.optimizer is not None or hasattr(trainer, "_lopax_attached"):
        raise ConfigError("the trainer already has an optimizer; attach() to a new one")
    trainer._lopax_attached = name
    attached: list[LearnedOptimizer] = []
    at = [-1]  # the step that the losses observed so far are for
    create_scheduler, training_step = trainer.create_scheduler, trainer.training_step

    def create_optimizer(model: Any = None) -> Any:
        if trainer.optimizer is None:
            groups = _groups(trainer, trainer.model if model is None else model)
            # A provisional length: the trainer knows its own when it makes a schedule.
            steps = max(trainer.args.max_steps, 1)
            # Resumed with another length: the trainer's, as for its own schedules.
            settings = {"on_resume": "new", **options}
            learned = make_optimizer(name, groups, num_steps=steps, **settings)
            attached[:] = [learned]
            trainer.optimizer = learned
        return trainer.optimizer

    @functools.wraps(create_scheduler)
    def create_scheduler_too(
        num_training_steps: int, optimizer: Any = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        learned = attached[0]
        if not learned.state:  # else the trainer trains on, with the first length
            learned.set_num_steps(num_training_steps)
        if keep_schedule:
            return create_scheduler(num_training_steps, optimizer)
        schedule = torch.optim.lr_scheduler.ConstantLR(learned, factor=1.0)
        trainer.lr_scheduler = schedule
        return schedule

    @functools.wraps(training_step)
    def training_step_too(*args: Any, **kwargs: Any) -> Any:
        loss = training_step(*args, **kwargs)
        if trainer.state.global_step != at[0]:  # the last step may have been left out
            at[0] = trainer.state.global_step
            attached[0].forget_observed()
        attached[0].observe(loss, reduce="sum")
        return loss

    trainer.create_optimizer = create_optimizer
    trainer.create_scheduler = create_scheduler_too
    trainer.training_step = training_step_too
    return trainer


def _groups(trainer: Any, model: Any) -> list[dict[str, Any]]:
    """Trained parameters, those the trainer would decay first; no empty group."""
    decay = set(trainer.get_decay_parameter_names(model))
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [(n, p) for n, p in named if (n in decay) == decays],
            "weight_decay": trainer.args.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    return [g for g in groups if g["params"]]
