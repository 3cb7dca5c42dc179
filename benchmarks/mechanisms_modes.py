"""The slowest modes of meta-trained GRUs at their fixed points, per meta-seed.

    lopax reproduce mechanisms --size paper
    python benchmarks/mechanisms_modes.py runs/reproduce-mechanisms-paper

A mode is a momentum term: decay beta, rate alpha. Beside them the constants of the
theory for heavy-ball momentum on the same quadratics.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from lopax import analysis
from lopax.architectures import architecture
from lopax.reproductions.mechanisms_measures import AT_SIZE, SETTINGS, visit
from lopax.theta import load_theta


def modes(weights: Path) -> analysis.Modes:
    """At the first fixed point that is found from states of the rule's own runs."""
    theta = load_theta(weights)
    units = theta["head"]["w"].shape[0]
    settings = AT_SIZE if units == AT_SIZE["units"] else SETTINGS
    view = analysis.recurrent_view(architecture("l2o_gru", units=units), theta)
    states = np.asarray(visit(view, settings).states).reshape(-1, units)
    chosen = np.random.default_rng(0).choice(len(states), 64, replace=False)
    points = analysis.find_fixed_points(
        view, states[chosen], tolerance=settings["tolerance"]
    )
    return analysis.modes(analysis.linearise(view, points.states[0]))


def main(folder: Path) -> None:
    alpha, beta = analysis.heavy_ball_optimum(SETTINGS["low"], SETTINGS["high"])
    print(f"theory: beta {beta:.3f}, alpha {alpha:.2f}")
    for weights in sorted(folder.glob("GRU-*/run/weights.safetensors")):
        found = modes(weights)
        first = ", ".join(
            f"beta {b:.3f} alpha {a:.2f}"
            for a, b in list(zip(found.alphas, found.betas, strict=True))[:3]
        )
        print(f"{weights.parts[-3]}: {first}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
