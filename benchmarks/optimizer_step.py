"""What a learned step costs against optax.adamw, in one process, in turn.

    python benchmarks/optimizer_step.py [--quick] [--rules celo celo_adam ...]
    python benchmarks/optimizer_step.py --rules celo2_base velo --against celo
    python benchmarks/optimizer_step.py --rules celo2 celo2:orthogonalizer=auto
        --against muon --process-time

The step is jitted, takes gradients, state and parameters, donates the state and
returns updates; forward and backward passes are not part of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import Result, finish, paired, period_of, settings_of

import lopax
from lopax._core.tree import count_elements

HANDMADE = {
    "adamw": lambda: optax.adamw(1e-3),
    # Matrices alone; all else, convolutions too, goes to Adam.
    "muon": lambda: optax.contrib.muon(1e-3),
}
TARGET_RATIO = {
    ("celo", "adamw"): 4.0,
    ("celo2_base", "celo"): 1.3,
    ("velo", "celo"): 2.0,
    ("celo2:orthogonalizer=auto", "muon"): 0.5,
}
TARGET_BYTES = 24.0
TARGET_COMPILE = 20.0


def matrix() -> dict[str, tuple[int, ...]]:
    return {"w": (1024, 1024)}


def gpt2() -> dict[str, tuple[int, ...]]:
    """GPT-2-shaped, about ten million parameters: 6 blocks of width 320."""
    d, shapes = 320, {"wte": (8192, 320), "wpe": (256, 320), "ln_f": (320,)}
    for i in range(6):
        shapes |= {
            f"h{i}/attn": (d, 3 * d),
            f"h{i}/attn_b": (3 * d,),
            f"h{i}/proj": (d, d),
            f"h{i}/proj_b": (d,),
            f"h{i}/fc": (d, 4 * d),
            f"h{i}/fc_b": (4 * d,),
            f"h{i}/out": (4 * d, d),
            f"h{i}/out_b": (d,),
            f"h{i}/ln1": (d,),
            f"h{i}/ln2": (d,),
        }
    return shapes


def resnet() -> dict[str, tuple[int, ...]]:
    """ResNet-50-like list of small tensors: 161 of them, most of them vectors."""
    shapes: dict[str, tuple[int, ...]] = {"stem": (7, 7, 3, 16), "stem_n": (16,)}
    width = 16
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 16 * 2**stage
        for b in range(blocks):
            name = f"s{stage}b{b}"
            shapes |= {
                f"{name}/c1": (1, 1, width, inner),
                f"{name}/n1": (inner,),
                f"{name}/g1": (inner,),
                f"{name}/c2": (3, 3, inner, inner),
                f"{name}/n2": (inner,),
                f"{name}/g2": (inner,),
                f"{name}/c3": (1, 1, inner, 4 * inner),
                f"{name}/n3": (4 * inner,),
                f"{name}/g3": (4 * inner,),
            }
            width = 4 * inner
    return shapes | {"head": (width, 100), "head_b": (100,)}


CASES = {"matrix_1024": matrix, "gpt2_10m": gpt2, "resnet": resnet}


def arrays(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        k: jnp.asarray(0.02 * rng.standard_normal(s), jnp.float32)
        for k, s in shapes.items()
    }


class Stepper:
    """A compiled optimizer step with its own state."""

    def __init__(self, opt: Any, params: Any, grads: Any):
        opt = optax.with_extra_args_support(opt)

        def step(grads: Any, state: Any, params: Any) -> Any:
            return opt.update(grads, state, params, value=jnp.float32(1.0))

        self.state = opt.init(params)
        self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self.state))
        lowered = jax.jit(step, donate_argnums=1).lower(grads, self.state, params)
        started = time.perf_counter()
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.args = (grads, params)

    def __call__(self) -> Any:
        updates, self.state = self.compiled(self.args[0], self.state, self.args[1])
        return updates

    def several(self, number: int) -> Any:
        """The updates of the last of so many steps."""
        return [self() for _ in range(number)][-1]

    @property
    def temporary_bytes(self) -> int:
        memory = self.compiled.memory_analysis()
        assert memory is not None, "this backend does not tell"
        return memory.temp_size_in_bytes


def transformation(name: str) -> Any:
    if name in HANDMADE:
        return HANDMADE[name]()
    name, settings = settings_of(name)
    rule = lopax.architecture(name, **settings)
    theta = jax.jit(rule.init_theta)(jax.random.key(0))
    return rule.transformation(theta, 1000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument(
        "--rules",
        nargs="+",
        default=["celo", "celo_adam"],
        help="with settings as celo2:orthogonalizer=auto",
    )
    parser.add_argument("--against", default="adamw", help="adamw, muon, or a rule")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--process-time", action="store_true", help="of all threads")
    args = parser.parse_args()
    clock = time.process_time if args.process_time else time.perf_counter
    rounds = 7 if args.quick else 40
    results = []
    for case in args.cases:
        shapes = CASES[case]
        params, grads = arrays(shapes(), 0), arrays(shapes(), 1)
        size = count_elements(params)
        other = Stepper(transformation(args.against), params, grads)
        for name in args.rules:
            step = Stepper(transformation(name), params, grads)
            period = period_of(name)
            value, reference, ratio = paired(
                lambda step=step, n=period: step.several(n), other, rounds, clock
            )
            value, ratio = value / period, ratio / period
            label = f"{name}/{case}"
            goal = TARGET_RATIO.get((name, args.against))
            results += [
                Result(
                    benchmark="optimizer_step",
                    case=label,
                    metric=f"ms, against {args.against}",
                    value=1e3 * value,
                    reference=1e3 * reference,
                    ratio=ratio,
                    target=goal,
                    ok=goal is None or ratio <= goal,
                ),
                Result(
                    benchmark="optimizer_step",
                    case=label,
                    metric="state bytes/parameter",
                    value=step.state_bytes / size,
                ),
                Result(
                    benchmark="optimizer_step",
                    case=label,
                    metric="temporary bytes/parameter",
                    value=step.temporary_bytes / size,
                    target=TARGET_BYTES,
                    ok=step.temporary_bytes / size <= TARGET_BYTES,
                ),
                Result(
                    benchmark="optimizer_step",
                    case=label,
                    metric="compile s",
                    value=step.compile_seconds,
                    target=TARGET_COMPILE,
                    ok=step.compile_seconds <= TARGET_COMPILE,
                ),
            ]
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
