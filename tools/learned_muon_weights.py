"""Makes the bundled weights of Learned Muon from where its search ended.

    python tools/learned_muon_weights.py [--out FILE]

`recipes/learned_muon_search.toml` gives `recipes/states/learned_muon_kept.safetensors`:
sixty per cent of the way that search went from zero. From it the bundled weights have
all but `blend`, and beside it what was chosen by hand on `validation`: `signal`, for
which all sizes are smaller, and the `horizon` of matrices, which
`recipes/learned_muon_again.toml` found. `docs/architectures/learned_muon.md` tells what
was tried.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lopax.pretrained.files import WeightsFile, read_arrays, write_arrays

ROOT = Path(__file__).parents[1]
STATE = ROOT / "recipes" / "states" / "learned_muon_kept.safetensors"
BUNDLED = ROOT / "lopax" / "pretrained" / "weights" / "learned_muon.safetensors"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    args = parser.parse_args()
    weights = made()
    write_arrays(args.out, weights.arrays, weights.header)


if __name__ == "__main__":
    main()
