"""A small GPT that learns to write, character by character (after nanoGPT).

    python examples/torch_language.py [--compare] [--steps 400]

The text is Tiny Shakespeare if it is under LOPAX_DATA_DIR (`lopax data fetch
tinyshakespeare`), else the descriptions of scikit-learn's data sets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch_judging import example

from lopax import data
from lopax._core.errors import DatasetNotFound

CONTEXT, WIDTH, LAYERS, HEADS, BATCH = 64, 64, 2, 4, 16


def text() -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes to train on, and held out ones, as int64."""
    try:
        found: Any = data.load("tinyshakespeare")
    except DatasetNotFound:
        found = data.load("sklearn_descr")
    train, valid = (
        torch.tensor(x).long().clamp(max=127) for x in (found.train, found.valid)
    )
    return train, valid


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
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
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(128, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 128, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scale = 0.02 if "mix" not in name and "down" not in name else 0.01
                nn.init.normal_(p, std=scale)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(
            self.norm(self.blocks(self.token(tokens) + self.position.weight))
        )


def train(make: Any, steps: int, say: Any) -> float:
    """Returns the held-out loss in nats per character."""
    corpus, held_out = text()
    model = GPT()
    optimizer = make(model)

    def loss_at(source: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        rows = source[starts[:, None] + torch.arange(CONTEXT + 1)]
        scores = model(rows[:, :-1])
        return nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())

    for step in range(steps):
        loss = loss_at(corpus, torch.randint(len(corpus) - CONTEXT, (BATCH,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        if step % 50 == 0 or step == steps - 1:
            say(f"step {step:4d}  loss {loss.item():.4f} nats per character")
    with torch.no_grad():
        starts = torch.linspace(0, len(held_out) - CONTEXT - 2, 128).long()
        return loss_at(held_out, starts).item()


if __name__ == "__main__":
    example(str(__doc__), train, steps=400, unit="held-out loss")
