"""Makes the bundled weights of Learned Muon from where its search ended.

    python tools/learned_muon_weights.py [--out FILE] [--elements | --kernels]

`recipes/learned_muon_search.toml` gives `recipes/states/learned_muon_kept.safetensors`:
sixty per cent of the way that search went from zero. From it the bundled weights have
all but `blend`, and beside it what was chosen by hand on `validation`: `signal`, for
which all sizes are smaller, and the `horizon` of matrices, which
`recipes/learned_muon_again.toml` found. `docs/architectures/learned_muon.md` tells what
was tried. `--elements` makes the start of `recipes/learned_muon_elements.toml` instead:
these numbers, and the bundled Celo2's network with a last layer of zeros. `--kernels`
makes that of `recipes/learned_muon_kernels.toml`: smaller sizes, but for convolutions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lopax.pretrained.files import WeightsFile, read_arrays, write_arrays

ROOT = Path(__file__).parents[1]
STATE = ROOT / "recipes" / "states" / "learned_muon_kept.safetensors"
WEIGHTS = ROOT / "lopax" / "pretrained" / "weights"
BUNDLED = WEIGHTS / "learned_muon.safetensors"
ELEMENTS = ROOT / "recipes" / "states" / "learned_muon_elements_start.safetensors"
KERNELS = ROOT / "recipes" / "states" / "learned_muon_kernels_start.safetensors"
SMALLER = 0.6
SIGNAL = (1.0, 0.5)
HORIZON = (-0.167, 0.0, 0.0)
SETTINGS = {"blend": False, "orthogonalizer": "auto", "signal": True}


def made() -> WeightsFile:
    """The weights, and a header that tells where they come from."""
    state = read_arrays(STATE)
    kept = {k: v for k, v in state.arrays.items() if k != "blend"}
    kept["size"] = kept["size"] - np.float32(SMALLER)
    kept["signal"] = np.array(SIGNAL, np.float32)
    kept["horizon"] = np.array(HORIZON, np.float32)
    header = {
        **state.header,
        "config": {**state.header["config"], **SETTINGS},
        "made_by": "tools/learned_muon_weights.py",
    }
    return WeightsFile(header, kept)


def with_elements(weights: WeightsFile) -> WeightsFile:
    """The same with Celo2's per-element network, of which nothing is heard yet."""
    celo2 = read_arrays(WEIGHTS / "celo2.safetensors")
    found = {k.replace("rule/", "elements/"): v for k, v in celo2.arrays.items()}
    for last in ("elements/w2", "elements/b2"):
        found[last] = np.zeros_like(found[last])
    units = found["elements/w1"].shape[-1]
    config = {**weights.header["config"], "elements": units}
    return WeightsFile({**weights.header, "config": config}, weights.arrays | found)


def with_kernels(weights: WeightsFile) -> WeightsFile:
    """The same with smaller sizes, but for kernels of convolutions."""
    found = {
        "size": weights.arrays["size"] - np.float32(0.2),
        "kernels": np.float32(0.4),
    }
    config = {**weights.header["config"], "kernels": True}
    return WeightsFile({**weights.header, "config": config}, weights.arrays | found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--elements", action="store_true")
    kind.add_argument("--kernels", action="store_true")
    args = parser.parse_args()
    weights, out = made(), BUNDLED
    if args.elements:
        weights, out = with_elements(weights), ELEMENTS
    if args.kernels:
        weights, out = with_kernels(weights), KERNELS
    out = args.out or out
    write_arrays(out, weights.arrays, weights.header)


if __name__ == "__main__":
    main()
