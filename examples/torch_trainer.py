"""The Hugging Face Trainer: a run that is stopped half-way and resumed.

    python examples/torch_trainer.py [--optimizer celo2] [--steps 60]

`attach` gives the trainer a learned optimizer: its horizon is the trainer's, and the
loss of every step reaches it. The run is made twice, once in one piece and once with a
stop and `resume_from_checkpoint`; the parameters at the end are the same.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch_language import text
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from lopax.torch import RULES
from lopax.torch.hugging_face import attach

CONTEXT = 32


class StopAt(TrainerCallback):
    """Ends training after a step, as a cluster would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == self.step:
            control.should_training_stop = True
        return control


def trainer(folder: Path, optimizer: str, steps: int, stop: int | None) -> Trainer:
    set_seed(0)
    config = GPT2Config(
        vocab_size=128, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    corpus = text()[0][: 4_096 * CONTEXT]
    rows = corpus[: len(corpus) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        weight_decay=0.01,
        save_strategy="steps",
        save_steps=steps // 2,
        logging_steps=max(1, steps // 4),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    made = Trainer(
        model=GPT2LMHeadModel(config),
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[] if stop is None else [StopAt(stop)],
    )
    return attach(made, optimizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", default="celo2", choices=RULES.names())
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    half = args.steps // 2
    with tempfile.TemporaryDirectory() as place:
        whole = trainer(Path(place, "whole"), args.optimizer, args.steps, None)
        whole.train()
        first = trainer(Path(place, "parts"), args.optimizer, args.steps, half)
        first.train()
        second = trainer(Path(place, "parts"), args.optimizer, args.steps, None)
        second.train(
            resume_from_checkpoint=str(Path(place, f"parts/checkpoint-{half}"))
        )
    losses = [h["loss"] for h in whole.state.log_history if "loss" in h]
    for step, loss in enumerate(losses):
        print(f"step {step * max(1, args.steps // 4):4d}  loss {loss:.4f}")
    pairs = zip(whole.model.parameters(), second.model.parameters(), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    print(
        f"stopped at {half} and resumed: {'the same' if same else 'other'} parameters"
    )


if __name__ == "__main__":
    main()
