"""The examples run as a user runs them, at reduced length, and their losses fall."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# name -> steps here, packages it needs
RUNS = {
    "torch_language": (12, ["torch"]),
    "torch_vision": (12, ["torch", "sklearn"]),
    "torch_lora": (8, ["torch", "transformers", "peft"]),
    "torch_trainer": (8, ["torch", "transformers", "accelerate"]),
    "torch_lightning": (12, ["torch", "lightning"]),
    "jax_language_nnx": (12, ["flax"]),
    "jax_physics": (40, []),
    "jax_keras": (12, ["keras", "sklearn"]),
    "gymnax_cartpole": (160, ["gymnax"]),
}
HELPERS = ("torch_judging", "jax_judging")
# A program of its own, without --steps; run by hand.
WHOLE = ("jax_digits",)


def test_every_example_is_known_and_short():
    found = {file.stem for file in EXAMPLES.glob("*.py")}
    assert found == {*RUNS, *HELPERS, *WHOLE}
    for file in EXAMPLES.glob("*.py"):
        lines = file.read_text(encoding="utf-8").count("\n")
        assert lines < 150, (file.name, lines)


# Other people's deprecations are not ours.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNS)
def test_example(name, monkeypatch, capsys, tmp_path):
    steps, packages = RUNS[name]
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.setenv("LOPAX_DATA_DIR", str(tmp_path))  # what is always there
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", str(steps)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"step .*loss ([\d.]+)", shown)]
    assert losses[-1] < losses[0], shown
    last = shown.strip().splitlines()[-1]
    if name == "torch_trainer":
        assert last.endswith("the same parameters"), shown
    else:
        assert last.startswith("celo2, untuned"), shown


def test_comparison_tunes_adamw_and_muon(monkeypatch, capsys):
    """The table of --compare: the best of several rates, by the held-out number."""
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    judging = importlib.import_module("torch_judging")
    import torch

    def train(make, steps, say):
        model = torch.nn.Linear(4, 4)
        optimizer = make(model)
        x = torch.randn(64, 4)
        loss = torch.tensor(torch.inf)
        for _ in range(steps):
            loss = (model(x) - 3.0).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)
        return loss.item()

    monkeypatch.setattr(sys, "argv", ["x.py", "--compare", "--steps", "20"])
    judging.example("about", train, steps=5, unit="loss")
    shown = capsys.readouterr().out
    assert "adamw, best of 3 rates (0.01)" in shown
    assert "muon, best of 3 rates (0.03)" in shown
