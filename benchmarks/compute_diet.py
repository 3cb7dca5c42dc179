"""Score against meta-training compute: what each inner step bought.

    python benchmarks/compute_diet.py [--suite lite] [--seeds 3] [--out runs/diet]
        [--published celo:PATH] [--plot docs/pictures/compute_diet.svg]

Every state of `recipes/states/` and the bundled weights, untuned, on a suite. A point's
compute is that of its recipe and of all the recipes it started from, as the files'
headers tell; attempts that came to nothing are not in it (the pages of the weights tell
those). Finished runs are kept in `--out`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import Result, finish

from lopax import evaluate
from lopax.pretrained import read_arrays, read_weights

ROOT = Path(__file__).parents[1]
BUNDLED = ("celo", "celo2", "learned_muon")
LABEL_HEIGHT = 0.03
PUBLISHED_STEPS = 6.4e8
"""Of the published Celo: two phases of 100,000 outer steps, 64 runs, windows of 50."""


def header(name: str) -> Mapping[str, Any]:
    """Of a state or of bundled weights."""
    path = ROOT / name
    return (read_arrays(path) if path.is_file() else read_weights(name)).header


def ancestors(name: str) -> set[str]:
    """The weights themselves and all they were started from."""
    recipe = header(name).get("recipe", {})
    given = [recipe.get("start_from"), *(recipe.get("start_parts") or {}).values()]
    return {name}.union(*(ancestors(n) for n in given if n))


def inner_steps(name: str) -> float:
    return sum(float(header(n).get("inner_steps", 0.0)) for n in ancestors(name))


def plot(points: list[tuple[str, str, float, Any]], path: Path) -> None:
    """A point per weights with its interval, a colour per architecture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, rule in enumerate(dict.fromkeys(p[1] for p in points)):
        own = sorted((p for p in points if p[1] == rule), key=lambda p: p[2])
        x, y = [p[2] for p in own], [p[3].value for p in own]
        spread = [
            [p[3].value - p[3].low for p in own],
            [p[3].high - p[3].value for p in own],
        ]
        axis.errorbar(x, y, spread, fmt="o", color=f"C{i}", label=rule, capsize=3)
    heights: dict[str, float] = {}
    for name, _, steps, score in sorted(points, key=lambda p: p[3].value):
        # Above the labels of points that are as far to the right.
        near = [heights[n] for n, _, s, _ in points if n in heights and s < 4 * steps]
        near = [h for h in near if abs(h - score.value) < LABEL_HEIGHT]
        heights[name] = max([score.value, *(h + LABEL_HEIGHT for h in near)])
        axis.annotate(name, (1.12 * steps, heights[name]), fontsize=7, va="center")
    axis.margins(x=0.2, y=0.08)
    axis.axhline(1.0, color="#777", lw=0.8)
    axis.set_xscale("log")
    axis.set_xlabel("inner steps of meta-training")
    axis.set_ylabel("score on the suite (tuned Adam: 1)")
    axis.legend(fontsize=8)
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="lite")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/diet"))
    parser.add_argument("--published")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    states = sorted((ROOT / "recipes" / "states").glob("*.safetensors"))
    weights: dict[str, tuple[str, str, float]] = {}  # name -> spec, rule, inner steps
    for path in states:
        name = str(path.relative_to(ROOT))
        rule = str(header(name)["architecture"])
        label = f"{path.stem} (state)"
        weights[label] = (f"{label}={rule}:{path}", rule, inner_steps(name))
    for name in BUNDLED:
        rule = str(header(name)["architecture"])
        weights[name] = (name, rule, inner_steps(name))
    if args.published:
        label = "published Celo"
        weights[label] = (f"{label}={args.published}", "published", PUBLISHED_STEPS)
    found = evaluate.bench(
        args.suite,
        ["adam", *(spec for spec, _, _ in weights.values())],
        folder=args.out,
        seeds=args.seeds,
        measure_cost=False,
    )
    rows = {row.optimizer: row for row in found.summary.rows}
    points, results = [], []
    for label, (_, rule, steps) in weights.items():
        score = rows[label].iqm
        points.append((label, rule, steps, score))
        interval = f"[{score.low:.2f}, {score.high:.2f}]"
        results.append(
            Result(
                benchmark="compute_diet",
                case=label,
                metric=f"score {interval} (reference: inner steps)",
                value=score.value,
                reference=steps,
            )
        )
    if args.plot:
        plot(points, args.plot)
    return finish(results)


if __name__ == "__main__":
    sys.exit(main())
