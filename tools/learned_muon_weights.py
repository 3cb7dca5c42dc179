"""Makes the weights of Learned Muon: bundled ones, starts of searches, and others.

    python tools/learned_muon_weights.py [--of NAME] [--out FILE]

- `bundled`: `recipes/learned_muon_search.toml` gives
  `recipes/states/learned_muon_kept.safetensors`, sixty per cent of the way that search
  went from zero. From it the bundled weights have all but `blend`, and beside it what
  was chosen by hand on `validation`: `signal`, for which all sizes are smaller, and the
  `horizon` of matrices, which `recipes/learned_muon_again.toml` found.
- `elements_start`: these, and the bundled Celo2's network with a last layer of zeros.
- `kernels_start`: these with smaller sizes, but for kernels of convolutions.
- `half_way`: half of the way of `recipes/learned_muon_kernels.toml` from there, with
  the `horizon` of the start: better for small networks, worse for transformers.

`docs/architectures/learned_muon.md` tells what was tried.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lopax.pretrained.files import WeightsFile, read_arrays, write_arrays

ROOT = Path(__file__).parents[1]
STATES = ROOT / "recipes" / "states"
WEIGHTS = ROOT / "lopax" / "pretrained" / "weights"
SMALLER = 0.6
SIGNAL = (1.0, 0.5)
HORIZON = (-0.167, 0.0, 0.0)
LESS, KERNELS = 0.2, 0.4
KEPT = 0.5


def bundled() -> WeightsFile:
    """The first search's numbers, and those chosen by hand."""
    state = read_arrays(STATES / "learned_muon_kept.safetensors")
    kept = {k: v for k, v in state.arrays.items() if k != "blend"}
    kept["size"] = kept["size"] - np.float32(SMALLER)
    kept["signal"] = np.array(SIGNAL, np.float32)
    kept["horizon"] = np.array(HORIZON, np.float32)
    settings = {"blend": False, "orthogonalizer": "auto", "signal": True}
    return _like(state, kept, settings)


def elements_start() -> WeightsFile:
    """The same with Celo2's per-element network, of which nothing is heard yet."""
    celo2, weights = read_arrays(WEIGHTS / "celo2.safetensors"), bundled()
    found = {k.replace("rule/", "elements/"): v for k, v in celo2.arrays.items()}
    for last in ("elements/w2", "elements/b2"):
        found[last] = np.zeros_like(found[last])
    units = found["elements/w1"].shape[-1]
    return _like(weights, weights.arrays | found, {"elements": units})


def kernels_start() -> WeightsFile:
    """The same with smaller sizes, but for kernels of convolutions."""
    weights = bundled()
    size = weights.arrays["size"] - np.float32(LESS)
    found = {"size": size, "kernels": np.asarray(KERNELS, np.float32)}
    return _like(weights, weights.arrays | found, {"kernels": True})


def half_way() -> WeightsFile:
    """From there half of the way to where the search ended."""
    start = kernels_start()
    end = read_arrays(STATES / "learned_muon_kernels.safetensors")
    found = {
        k: np.asarray(x + KEPT * (end.arrays[k] - x), np.float32)
        for k, x in start.arrays.items()
    }
    found["horizon"] = start.arrays["horizon"]
    return _like(end, found, {})


def _like(
    weights: WeightsFile, arrays: dict[str, np.ndarray], settings: dict[str, object]
) -> WeightsFile:
    """Such weights with other arrays and settings."""
    config = {**weights.header["config"], **settings}
    header = {
        **weights.header,
        "config": config,
        "made_by": f"tools/{Path(__file__).name}",
    }
    return WeightsFile(header, arrays)


MADE: dict[str, tuple[Callable[[], WeightsFile], Path]] = {
    "bundled": (bundled, WEIGHTS / "learned_muon.safetensors"),
    **{
        make.__name__: (make, STATES / f"learned_muon_{make.__name__}.safetensors")
        for make in (elements_start, kernels_start, half_way)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=MADE, default="bundled")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    make, path = MADE[args.of]
    weights = make()
    write_arrays(args.out or path, weights.arrays, weights.header)


if __name__ == "__main__":
    main()
