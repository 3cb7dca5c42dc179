"""The PyTorch examples run, and their losses fall."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from shared_files import shared

from lopax.pretrained import list_weights

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("example", "steps"), [("torch_vision", 60), ("torch_language", 40)]
)
def test_example(example, steps):
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), "--steps", str(steps)]
    if "celo" not in list_weights():
        command += ["--weights", str(shared("weights", "celo", "theta.state"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"step .*loss ([\d.]+)", done.stdout)]
    assert losses[-1] < 0.9 * losses[0], done.stdout
