"""Fine-tuning with LoRA (peft): a small GPT-2 learns one text and adapts to another.

    python examples/torch_lora.py [--compare] [--steps 150]

Nothing is downloaded: the model is pretrained here, with AdamW, on the text of
torch_language.py. Then low-rank adapters learn Python source.
"""

from __future__ import annotations

import argparse
import copy
import functools
import inspect
import textwrap
import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch_judging import adamw, example
from torch_language import text
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT, BATCH, PRETRAINING = 64, 16, 200


def rows(source: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    return source[starts[:, None] + torch.arange(CONTEXT)]


def fit(model: Any, optimizer: Any, source: torch.Tensor, steps: int, say: Any) -> None:
    for step in range(steps):
        batch = rows(source, torch.randint(len(source) - CONTEXT, (BATCH,)))
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        if step % 50 == 0 or step == steps - 1:
            say(f"step {step:4d}  loss {loss.item():.4f} nats per character")


@functools.cache
def pretrained(steps: int) -> GPT2LMHeadModel:
    """The base model; the same for every optimizer that is compared."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=128, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    fit(model, adamw(3e-3, steps)(model), text()[0], steps, lambda _: None)
    return model


def python_source() -> torch.Tensor:
    source = "\n".join(inspect.getsource(m) for m in (argparse, inspect, textwrap))
    return torch.tensor(list(source.encode("ascii", "replace")))


def train(make: Any, steps: int, say: Any) -> float:
    """Returns the held-out loss on Python source, in nats per character."""
    base = copy.deepcopy(pretrained(min(PRETRAINING, 4 * steps)))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2 stores its linear layers transposed
        model = get_peft_model(
            base,
            LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"]),
        )
    source = python_source()
    split = len(source) * 9 // 10
    # B of every adapter starts at zero, A does not: only trained parameters are given.
    fit(model, make(model), source[:split], steps, say)
    with torch.no_grad():
        held_out = rows(source, torch.arange(split, len(source) - CONTEXT, 61))
        return model(input_ids=held_out, labels=held_out).loss.item()


if __name__ == "__main__":
    example(str(__doc__), train, steps=150, unit="held-out loss")
