"""What a learned step costs in PyTorch against AdamW, in one process, in turn.

    python benchmarks/torch_step.py [--quick] [--threads 1]
    python benchmarks/torch_step.py --against muon --threads 1 --process-time
        --rules celo2:orthogonalizer=auto learned_muon:learned=False

Only the optimizer's step is timed: gradients are given, and change in size from step
to step. On the CPU the reference is
`torch.optim.AdamW(foreach=True)`; where there is a CUDA device, `fused=True` on a
ViT-B/16 and a GPT-2 of 124 million parameters. With `--against muon` it is
`torch.optim.Muon` for matrices (convolutions as one matrix each) and AdamW for the
rest. The row "materialised" is the straightforward way to write such a rule in torch,
one tensor at a time with an array of 30 features per element: what the batching and
the kernels are there to avoid. Rules without a kernel of their own have rows, and no
target.

"temporary bytes/parameter": the most that torch holds during a step beyond what it
held before.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import Result, finish, period_of, settings_of

import lopax.torch as lt
from lopax.torch.theta import theta_shapes

CPU_TARGET, CUDA_TARGET, CUDA_BYTES = 5.0, 3.0, 8.0
MUON_TARGET = {"celo2": 1.3, "learned_muon": 1.0}
# The targets are for rules with kernels of their own; Celo-Adam's plain step needs none
# on the CPU. Celo2's matrix products alone cost more than AdamW there.
CPU_KERNELS = ("celo", "celo_adam", "velo", "adafac_mlp")
CUDA_KERNELS = ("celo", "celo_adam")
Shapes = list[tuple[int, ...]]


def gpt2(width: int, layers: int, vocabulary: int, context: int) -> Shapes:
    d = width
    block = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)]
    block += [(d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(vocabulary, d), (context, d), *block * layers, (d,), (d,)]


def resnet18() -> Shapes:
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for inner in (64, 128, 256, 512):
        for first in (width, inner):
            shapes += [(inner, first, 3, 3), (inner,), (inner,)]
            shapes += [(inner, inner, 3, 3), (inner,), (inner,)]
            if first != inner:
                shapes += [(inner, first, 1, 1), (inner,), (inner,)]
        width = inner
    return [*shapes, (1000, 512), (1000,)]


def vit_b16() -> Shapes:
    d = 768
    head = [(1000, d), (1000,)]
    embedding = [(1, 1, d), (1, 197, d), (d, 3, 16, 16), (d,)]
    return embedding + gpt2(d, 12, 1, 1)[2:] + head


def materialised_step(optimizer: Any) -> Callable[[], None]:
    """Celo's step with all 30 features of every element in one array; the moments are
    not even updated, so the real thing costs more."""
    rule = optimizer._rule
    theta = [rule.theta[f"rule/{k}"] for k in ("w0", "b0", "w1", "b1", "w2", "b2")]

    @torch.no_grad()
    def step() -> None:
        for p, state in optimizer.state.items():
            m, v, g = state["momenta"], state["second"], p.grad
            if "full" in state:
                row = col = state["full"]
            else:
                d1, d0 = _two_largest(p.shape)
                row = state["row"].unsqueeze(1 + d0).expand_as(m)
                col = state["col"].unsqueeze(1 + d1).expand_as(m)
            q = torch.rsqrt(v + 1e-6)
            f = torch.rsqrt(row.clamp_min(1e-9)) * torch.rsqrt(col.clamp_min(1e-9))
            parts = [g[None], g.clamp(-0.1, 0.1)[None], p[None], m, v[None], m * q]
            parts += [q[None], g * f, (g * q)[None], row, col]
            parts += [torch.rsqrt(row + 1e-8), torch.rsqrt(col + 1e-8), m * f]
            x = torch.cat([part.reshape(len(part), -1) for part in parts]).T
            x = x * torch.rsqrt(1e-5 + x.square().mean(0))
            x = torch.relu(x @ theta[0] + theta[1])
            x = torch.relu(x @ theta[2] + theta[3])
            out = x @ theta[4] + theta[5]
            size = 1e-3 * torch.sqrt(p.square().mean() + 1e-9)
            p -= (size * out[:, 0] * torch.exp(1e-3 * out[:, 1])).view(p.shape)

    return step


def _two_largest(shape: tuple[int, ...]) -> tuple[int, int]:
    from lopax.torch.geometry import place_of

    return place_of(tuple(shape), "out_in").factored or (0, 0)


def random_theta(name: str, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Meta-parameters of the right shapes; their values do not change the cost."""
    rule = lt.RULES[name].rule_class
    rng = np.random.default_rng(0)
    shapes = theta_shapes(rule(rule.config_class(**settings)))
    return {k: 0.1 * rng.standard_normal(s) for k, s in shapes.items()}


def make_params(shapes: Shapes, device: str) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(0.02 * torch.randn(s, device=device)) for s in shapes]
    for p in params:
        p.grad = 0.01 * torch.randn_like(p)
    return params


def seconds(step: Callable[[], Any], device: str, clock: Callable[[], float]) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def muon(named: list[tuple[str, torch.nn.Parameter]]) -> Callable[[], None]:
    """The step of torch's Muon and AdamW together, as people combine them."""
    matrices, others = [], []
    for name, p in named:
        if p.ndim < 2 or "embedding" in name:
            others.append(p)
            continue
        flat = torch.nn.Parameter(p.detach().flatten(1))
        assert p.grad is not None
        flat.grad = p.grad.flatten(1)
        matrices.append(flat)
    both = (
        torch.optim.Muon(matrices, lr=1e-6),
        torch.optim.AdamW(others, lr=1e-6, foreach=True),
    )

    def step() -> None:
        for optimizer in both:
            optimizer.step()

    return step


def steps_for(
    params: list[torch.nn.Parameter],
    device: str,
    slow: bool,
    rules: list[str],
    against: str,
) -> dict[str, Callable[[], Any]]:
    """The steps to time, the reference first."""
    # Celo2 gives embeddings to Adam, by name: those have far more rows than columns.
    named = [
        (f"{i}.embedding" if p.ndim == 2 and p.shape[0] > 8192 else f"{i}.weight", p)
        for i, p in enumerate(params)
    ]
    loss = torch.ones((), device=device)

    def learned(spec: str, backend: str) -> Any:
        name, settings = settings_of(spec)
        kept = {"momentum_dtype": settings.pop("momentum_dtype", "float32")}
        theta = random_theta(name, settings)
        given = {"theta": theta, "backend": backend, "settings": settings}
        return lt.optimizer(name, named, num_steps=100_000, lr=1e-6, **kept, **given)

    kind = {"fused": True} if device == "cuda" else {"foreach": True}
    adamw = torch.optim.AdamW(params, lr=1e-6, **kind)  # type: ignore[arg-type]
    steps: dict[str, Callable[[], Any]] = {
        against: adamw.step if against == "adamw" else muon(named)
    }
    for spec in rules:
        optimizer = learned(spec, "auto")
        steps[spec] = lambda o=optimizer: o.step(loss=loss)
    if slow:
        plain = learned("celo", "plain")
        steps["celo plain"] = lambda: plain.step(loss=loss)
        plain.step(loss=loss)
        steps["celo materialised"] = materialised_step(plain)
    return steps


def peak_bytes(step: Callable[[], Any], device: str) -> int:
    """The most a step holds beyond what was held before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        step()
    found: Any = profile.profiler
    moves = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(
        e.nbytes() for e in sorted(moves, key=lambda e: e.start_ns())
    )
    return max([0, *held])


def target_of(spec: str, against: str, device: str) -> float | None:
    if against == "muon":
        return MUON_TARGET.get(spec.partition(":")[0])
    if device == "cuda":
        return CUDA_TARGET if spec in CUDA_KERNELS else None
    return CPU_TARGET if spec in CPU_KERNELS else None


def measure(
    case: str, params: list[torch.nn.Parameter], device: str, slow: bool, args: Any
) -> list[Result]:
    """`slow`: also the rows that show what the kernels are there to avoid."""
    against, rounds = args.against, 5 if args.quick else 30
    steps = steps_for(params, device, slow, args.rules, against)
    for step in steps.values():
        step()
    targets = {name: target_of(name, against, device) for name in steps}
    # What takes seconds a step, and has no target, takes part in every fifth round.
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    clock = time.process_time if args.process_time else time.perf_counter
    for i in range(rounds):
        for p in params:  # kernels may be compiled for values that stay the same
            assert p.grad is not None
            p.grad.mul_(1.0 + 0.1 * (-1) ** i * (1.0 + i % 7))
        reference = 0.0
        for name, step in steps.items():
            frequent = name == against or targets[name] is not None
            if frequent or i % 5 == 0 or args.only:
                whole = [seconds(step, device, clock) for _ in range(period_of(name))]
                spent = statistics.fmean(whole)
                reference = spent if name == against else reference
                times[name].append((spent, reference))
    results, size = [], sum(p.numel() for p in params)
    for name, step in steps.items():
        label = f"{name}/{case}"
        if name != against:
            ratio = statistics.median(a / b for a, b in times[name])
            target = targets[name]
            results.append(
                Result(
                    benchmark="torch_step",
                    case=label,
                    metric=f"ms, against {against}",
                    value=1e3 * statistics.median(a for a, _ in times[name]),
                    reference=1e3 * statistics.median(b for _, b in times[name]),
                    ratio=ratio,
                    target=target,
                    ok=target is None or ratio <= target,
                )
            )
        extra = peak_bytes(step, device) / size
        bound = CUDA_BYTES if device == "cuda" and targets[name] else None
        results.append(
            Result(
                benchmark="torch_step",
                case=label,
                metric="temporary bytes/parameter",
                value=extra,
                target=bound,
                ok=bound is None or extra <= bound,
            )
        )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--rules",
        nargs="+",
        default=[],
        help="these alone, with settings as celo2:orthogonalizer=auto; default: all",
    )
    parser.add_argument("--against", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--cases", nargs="+", help="names of some of the cases")
    parser.add_argument("--process-time", action="store_true", help="of all threads")
    args = parser.parse_args()
    args.only, args.rules = bool(args.rules), args.rules or list(lt.RULES)
    if args.threads:
        torch.set_num_threads(args.threads)
    cuda, results = torch.cuda.is_available(), []
    cases = {"gpt2_10m": gpt2(256, 8, 14_000, 256), "resnet18": resnet18()}
    large = {"vit_b16": vit_b16(), "gpt2_124m": gpt2(768, 12, 50_257, 1024)}
    for case, shapes in {**cases, **(large if cuda else {})}.items():
        if args.cases and case not in args.cases:
            continue
        device = "cuda" if case in large else "cpu"
        slow = device == "cpu" and not args.only
        slow = slow and (not args.quick or case == "gpt2_10m")
        results += measure(case, make_params(shapes, device), device, slow, args)
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
