"""A small transformer that learns Python, character by character, in PyTorch.

    python examples/torch_language.py [--optimizer celo] [--steps 400]

The text is the source of a few modules of the standard library, so nothing is
downloaded. Matrices decay, vectors and embeddings do not: two parameter groups.
"""

from __future__ import annotations

import argparse
import inspect
import textwrap

import torch
from torch import nn

import lopax.torch

CONTEXT, WIDTH = 64, 64


def text() -> torch.Tensor:
    """Bytes [n] as int64."""
    source = "\n".join(inspect.getsource(m) for m in (argparse, inspect, textwrap))
    return torch.tensor(list(source.encode("ascii", "replace")))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(128, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        x = self.token(tokens) + self.position.weight
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--optimizer", default="celo", choices=lopax.torch.RULES.names()
    )
    parser.add_argument("--weights", help="a weights file instead of the bundled ones")
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()

    torch.manual_seed(0)
    corpus, model = text(), Model()
    held_out = len(corpus) * 9 // 10
    named = list(model.named_parameters())
    decays = [
        p.ndim == 2 and "token" not in n and "position" not in n for n, p in named
    ]
    groups = [
        {
            "params": [np for np, d in zip(named, decays, strict=True) if d == kind],
            "weight_decay": 0.1 if kind else 0.0,
        }
        for kind in (True, False)
    ]
    optimizer = lopax.torch.optimizer(
        args.optimizer, groups, num_steps=args.steps, weights=args.weights
    )

    def loss_at(starts: torch.Tensor) -> torch.Tensor:
        rows = corpus[starts[:, None] + torch.arange(CONTEXT + 1)]
        logits = model(rows[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    for step in range(args.steps):
        loss = loss_at(torch.randint(held_out - CONTEXT, (16,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f} nats per character")
    with torch.no_grad():
        starts = torch.arange(held_out, len(corpus) - CONTEXT - 1, 97)
        print(f"held-out loss: {loss_at(starts).item():.4f} nats per character")


if __name__ == "__main__":
    main()
