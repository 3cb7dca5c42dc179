"""What it costs to orthogonalise a matrix, how well it is done, and what it does.

    python benchmarks/orthogonalize.py [--quick] [--shapes 64x32 ...]
        [--methods auto gram ...] [--backend torch]
    python benchmarks/orthogonalize.py --train [--methods auto ...] [--tasks NAME ...]

Time and multiplications are against the published iteration as it is mostly written,
five quintic rounds in a loop, the two in turn. The time is the process's, all threads
together, which other work on the machine changes least; `--wall` takes the clock's. The
error is that of two kinds of
matrices, normally distributed elements ("normal") and singular values 1, 1/2, 1/3, ...
("power"): the relative distance to the polar factor, the angle to it, and the singular
values of the result.

With `--train` the bundled weights (`--weights`) train tasks of the suite `validation`
through each method: the final training loss against that through the published one, the
same seeds on both sides, and how far two seeds lie apart.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Clock, Result, final_losses, finish, paired

import lopax
from lopax import evaluate
from lopax._core import polar
from lopax.blocks.orthogonalize import orthogonalize, orthogonalize_all
from lopax.pretrained import read_weights
from lopax.tasks.suites import suite

SHAPES = (
    "64x32", "128x128", "784x128", "288x64", "512x512", "768x3072", "4608x512", "50x2",
    "1x512",
)  # fmt: skip
MANY: dict[str, list[tuple[int, int]]] = {
    "16x16": [(16, 16)],
    "64x32": [(64, 32)],
    "128x128": [(128, 128)],
    "of four unlike shapes": [(64, 32), (30, 50), (60, 20), (10, 64)],
}
METHODS = tuple(name for name in polar.CHOICES if name != "quintic")
TRAINED = ("mnist_mlp_layernorm", "fashion_mnist_autoencoder", "mnist_conv")
BUNDLED = ("celo2", "learned_muon")
LIMIT = {"quintic": 1.2, "auto": 1.1}
"""The most that a method's time may be, in that of the published loop."""


def published(x: Any) -> Any:
    """Five quintic rounds of Jordan et al., in a loop, in JAX."""
    tall = x.shape[-2] > x.shape[-1]
    x = jnp.swapaxes(x, -2, -1) if tall else x
    x = x / (jnp.linalg.norm(x) + 1e-8)
    a, b, c = polar.METHODS["quintic"].rounds[0]

    def once(_: int, y: Any) -> Any:
        gram = jnp.matmul(y, y.T, precision="highest")
        square = jnp.matmul(gram, gram, precision="highest")
        return a * y + jnp.matmul(b * gram + c * square, y, precision="highest")

    x = jax.lax.fori_loop(0, 5, once, x)
    return jnp.swapaxes(x, -2, -1) if tall else x


def published_torch(x: Any) -> Any:
    """The same in torch."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-8)
    a, b, c = polar.METHODS["quintic"].rounds[0]
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


def in_jax(method: str | None, x: np.ndarray) -> Callable[[], Any]:
    one = published if method is None else lambda x: orthogonalize(x, method)
    given = jnp.asarray(x)
    return functools.partial(jax.jit(one).lower(given).compile(), given)


def in_torch(method: str | None, x: np.ndarray) -> Callable[[], Any]:
    import torch

    from lopax.torch import orthogonalize as twin

    torch.set_grad_enabled(False)
    given = torch.from_numpy(x)
    if method is None:
        return functools.partial(published_torch, given)
    return functools.partial(twin.orthogonalize, given, method)


def matrices(shape: tuple[int, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(X, its polar factor) of each kind, float32."""
    normal = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    u, _, vt = np.linalg.svd(normal, full_matrices=False)
    fall = 1.0 / np.arange(1, min(shape) + 1, dtype=np.float32)
    return {"normal": (normal, u @ vt), "power": ((u * fall) @ vt, u @ vt)}


def errors(got: np.ndarray, want: np.ndarray) -> dict[str, float]:
    size = np.linalg.norm(want)
    cosine = np.sum(got * want) / (np.linalg.norm(got) * size)
    gram = got @ got.T if got.shape[0] <= got.shape[1] else got.T @ got
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    return {
        "distance": float(np.linalg.norm(got - want) / size),
        "angle, degrees": float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))),
        "lowest singular value": float(values[0]),
        "highest singular value": float(values[-1]),
    }


def measure(
    shape: tuple[int, int],
    methods: Iterable[str],
    prepare: Callable,
    clock: Clock,
    seconds: float,
) -> list[Result]:
    label, found = "{}x{}".format(*shape), []
    kinds, (short, long) = matrices(shape), sorted(shape)
    reference = prepare(None, kinds["normal"][0])
    usual = polar.flops(polar.plan("quintic", None, short, long), short, long, True)
    for method in methods:
        run = prepare(method, kinds["normal"][0])
        _, once, _ = paired(run, reference, 1, clock)
        rounds = int(np.clip(seconds / (2 * once), 1, 200))
        value, other, ratio = paired(run, reference, rounds, clock)
        flops = polar.flops(polar.plan(method, None, short, long), short, long)
        limit = LIMIT.get(method)
        say = functools.partial(Result, benchmark="orthogonalize")
        found += [
            say(
                case=f"{method}/{label}",
                metric="ms, against the published loop",
                value=1e3 * value,
                reference=1e3 * other,
                ratio=ratio,
                target=limit,
                ok=limit is None or ratio <= limit,
            ),
            say(
                case=f"{method}/{label}",
                metric="GFLOP",
                value=flops / 1e9,
                reference=usual / 1e9,
                ratio=flops / usual,
            ),
        ]
        for kind, (x, want) in kinds.items():
            got = np.asarray(prepare(method, x)())
            found += [
                say(case=f"{method}/{label}", metric=f"{name}, {kind}", value=value)
                for name, value in errors(got, want).items()
            ]
    return found


def together(clock: Clock, rounds: int) -> list[Result]:
    """Sixteen matrices in one call, against one call each, in one compiled program."""
    found = []
    for label, shapes in MANY.items():
        xs = [jnp.asarray(matrices(s)["normal"][0]) for s in (shapes * 16)[:16]]
        at_once, one_by_one = (
            functools.partial(jax.jit(call).lower(xs).compile(), xs)
            for call in (orthogonalize_all, lambda xs: [orthogonalize(x) for x in xs])
        )
        value, reference, ratio = paired(at_once, one_by_one, rounds, clock)
        found.append(
            Result(
                benchmark="orthogonalize",
                case=f"sixteen {label}",
                metric="ms together, against one by one",
                value=1e3 * value,
                reference=1e3 * reference,
                ratio=ratio,
            )
        )
    return found


def train(
    weights: str, methods: Iterable[str], tasks: Iterable[str], quick: bool
) -> list[Result]:
    header = read_weights(weights).header
    theta, found = lopax.load_theta(weights), []
    for member in suite("validation").tasks:
        if member.name not in tasks:
            continue
        task, losses = member.make(), {}
        for method in ("quintic", *methods):
            settings = header["config"] | {"orthogonalizer": method}
            spec = evaluate.learned(header["architecture"], theta, **settings)
            steps = 60 if quick else member.num_steps
            losses[method] = final_losses(spec, task, steps, range(2))
        usual = losses.pop("quintic")
        for method, value in losses.items():
            found += [
                Result(
                    benchmark="orthogonalize",
                    case=f"{weights}/{method}/{member.name}",
                    metric="final loss, against quintic",
                    value=float(value.mean()),
                    reference=float(usual.mean()),
                    ratio=float(np.exp(np.mean(np.log(value / usual)))),
                ),
                Result(
                    benchmark="orthogonalize",
                    case=f"{weights}/{method}/{member.name}",
                    metric="seeds apart, relative",
                    value=float(np.ptp(value) / value.mean()),
                    reference=float(np.ptp(usual) / usual.mean()),
                ),
            ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--methods", nargs="+", choices=polar.CHOICES)
    parser.add_argument("--backend", choices=("jax", "torch"), default="jax")
    parser.add_argument("--wall", action="store_true", help="the clock's time")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--weights", choices=BUNDLED, default=BUNDLED[0])
    parser.add_argument("--tasks", nargs="+", default=TRAINED)
    args = parser.parse_args()
    if args.train:
        return finish(
            train(args.weights, args.methods or ("auto",), args.tasks, args.quick)
        )
    prepare = in_jax if args.backend == "jax" else in_torch
    clock = time.perf_counter if args.wall else time.process_time
    results = []
    for text in args.shapes:
        rows, cols = map(int, text.split("x"))
        seconds = 0.1 if args.quick else 3.0
        methods = args.methods or ("quintic", *METHODS)
        results += measure((rows, cols), methods, prepare, clock, seconds)
    if args.backend == "jax":
        results += together(clock, 20 if args.quick else 100)
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
