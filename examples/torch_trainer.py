"""The Hugging Face Trainer: a run that is stopped half-way and resumed.

    python examples/torch_trainer.py [--compare] [--optimizer celo2] [--steps 60]

`attach` gives the trainer a learned optimizer: its horizon is the trainer's, and the
loss of every step reaches it. At the end the run is made again, once in one piece and
once with a stop and `resume_from_checkpoint`; the parameters at the end are the same.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch_judging import Learned, Make, example
from torch_language import text
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

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


def trainer(folder: str, make: Make, steps: int, stop: int = 0) -> Trainer:
    """A trainer of a small GPT-2 on characters, with the optimizer attached."""
    set_seed(0)
    config = GPT2Config(
        vocab_size=128, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    arguments = TrainingArguments(
        folder,
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
    model = GPT2LMHeadModel(config)
    common: Any = {"model": model, "args": arguments, "train_dataset": rows(text()[0])}
    common["callbacks"] = [StopAt(stop)] if stop else []
    if isinstance(make, Learned):
        return attach(Trainer(**common), make.name, weights=make.weights)
    made = make(model)
    return Trainer(**common, optimizers=(made.optimizer, made.schedule))


def rows(corpus: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    corpus = corpus[: min(4_096, len(corpus) // CONTEXT) * CONTEXT]
    return [{"input_ids": x, "labels": x} for x in corpus.view(-1, CONTEXT)]


def train(make: Make, steps: int, say: Any) -> float:
    """Returns the loss on held-out text, in nats per character."""
    with tempfile.TemporaryDirectory() as folder:
        whole = trainer(folder, make, steps)
        whole.train()
        for line in whole.state.log_history:
            if "loss" in line:
                say(f"step {line['step']:4d}  loss {float(line['loss']):.4f}")
        held_out: Any = rows(text()[1])[:256]
        return whole.evaluate(held_out)["eval_loss"]


def resumes(make: Make, steps: int) -> bool:
    """Whether a run that was stopped half-way ends as one in one piece does."""
    half, ends = steps // 2, []
    with tempfile.TemporaryDirectory() as place:
        whole = trainer(f"{place}/whole", make, steps)
        whole.train()
        trainer(f"{place}/parts", make, steps, half).train()
        second = trainer(f"{place}/parts", make, steps)
        second.train(resume_from_checkpoint=f"{place}/parts/checkpoint-{half}")
        for made in (whole, second):
            ends.append(made.accelerator.unwrap_model(made.model).parameters())
    return all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


if __name__ == "__main__":
    learned = example(str(__doc__), train, steps=60, unit="held-out loss")
    same = "the same" if resumes(learned, learned.steps) else "other"
    print(f"stopped at {learned.steps // 2} and resumed: {same} parameters")
