"""A character GPT in PyTorch, only the optimizer changed: what a user chooses from.

    python benchmarks/char_gpt.py [--optimizers learned_muon muon@0.01 adamw@0.003 ...]
        [--steps 2000] [--seeds 1] [--threads 1]

The setting for a CPU of nanoGPT's public training script: Tiny Shakespeare, four layers
of 128 with four heads, 64 characters of context, batches of 12, the embedding tied to
the output layer, no dropout, gradients clipped to 1; hand-made optimizers with its
schedule (100 steps of warm-up, cosine to a tenth). `muon@RATE` is `torch.optim.Muon`
for the blocks' matrices and AdamW for the rest; a learned optimizer takes settings, as
`learned_muon:orthogonalizer=auto` or `celo_adam:lr=0.3`. Prints the loss on held-out
text after the last step, and the cost of a whole training step over that of AdamW's:
medians, measured in turn.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import Result, finish, settings_of
from torch import nn

import lopax.torch
from lopax import data

WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 128, 4, 4, 64, 12
WARMUP, BETAS = 100, (0.9, 0.99)
DEFAULT = (
    *("learned_muon", "celo2", "celo", "muon@0.01", "muon@0.003"),
    *("adamw@0.01", "adamw@0.003", "adamw@0.001"),
)
Step = Callable[[torch.Tensor], None]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, bias=False)
        self.norm2 = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(y.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, letters: int):
        super().__init__()
        self.wte = nn.Embedding(letters, WIDTH)
        self.wpe = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("mix.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * LAYERS) if last else 0.02
                nn.init.normal_(p, std=std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.blocks(self.wte(tokens) + self.wpe.weight))
        return x @ self.wte.weight.T


def stepper(name: str, model: nn.Module, steps: int) -> Step:
    """What to do with a loss whose gradients are there."""
    kind, _, rate = name.partition("@")
    if kind not in ("adamw", "muon"):
        kind, settings = settings_of(name)
        learned = lopax.torch.optimizer(
            kind, model.named_parameters(), num_steps=steps, **settings
        )
        return lambda loss: learned.step(loss=loss)
    named = list(model.named_parameters())
    inner = [p for n, p in named if p.ndim == 2 and n.startswith("blocks")]
    rest = [p for _, p in named if not any(p is q for q in inner)]
    made: list[Any] = []
    if kind == "muon":
        made.append(torch.optim.Muon(inner, lr=float(rate), weight_decay=0.0))
    else:
        rest = [p for _, p in named]
    made.append(torch.optim.AdamW(rest, float(rate), BETAS, weight_decay=0.1))

    def factor(i: int) -> float:
        if i < WARMUP:
            return (i + 1) / (WARMUP + 1)
        done = min(1.0, (i - WARMUP) / max(1, steps - WARMUP))
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * done))

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in made]

    def step(loss: torch.Tensor) -> None:
        for optimizer, schedule in zip(made, schedules, strict=True):
            optimizer.step()
            schedule.step()

    return step


class Training:
    """One run, a step at a time."""

    def __init__(self, name: str, seed: int, steps: int, source: torch.Tensor):
        torch.manual_seed(seed)
        self.source, self.model = source, GPT(int(source.max()) + 1)
        self.after = stepper(name, self.model, steps)
        self.draws = torch.Generator().manual_seed(seed)

    def loss(self, source: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        rows = source[starts[:, None] + torch.arange(CONTEXT + 1)]
        scores = self.model(rows[:, :-1])
        return nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())

    def step(self) -> float:
        """Seconds it took."""
        began = time.perf_counter()
        last = len(self.source) - CONTEXT
        starts = torch.randint(last, (BATCH,), generator=self.draws)
        loss = self.loss(self.source, starts)
        self.model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.after(loss)
        return time.perf_counter() - began

    @torch.no_grad()
    def held_out(self, source: torch.Tensor) -> float:
        """Nats per character over 1,024 windows."""
        starts = torch.linspace(0, len(source) - CONTEXT - 2, 1024).long()
        parts = [self.loss(source, part) for part in starts.split(64)]
        return float(torch.stack(parts).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", nargs="+", default=DEFAULT)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text: Any = data.load("tinyshakespeare")
    train, valid = (torch.tensor(x).long() for x in (text.train, text.valid))
    names = list(dict.fromkeys([*args.optimizers, "adamw@0.001"]))
    results = []
    seconds: dict[str, list[float]] = {name: [] for name in names}
    turns = {name: Training(name, 0, 60, train) for name in names}
    for i in range(60):
        for name, training in turns.items():
            took = training.step()
            if i >= 10:
                seconds[name].append(took)
    medians = {name: sorted(s)[len(s) // 2] for name, s in seconds.items()}
    for name in names:
        for seed in range(args.seeds):
            run = Training(name, seed, args.steps, train)
            for _ in range(args.steps):
                run.step()
            loss = run.held_out(valid)
            cost = medians[name] / medians["adamw@0.001"]
            print(f"{name}, seed {seed}: {loss:.3f} at {cost:.2f}x", file=sys.stderr)
            results.append(
                Result(
                    benchmark="char_gpt",
                    case=f"{name}/seed {seed}",
                    metric="held-out loss (reference: step cost over AdamW's)",
                    value=loss,
                    reference=cost,
                )
            )
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
