"""The command line as a user meets it: exit codes, messages, files."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest
from hostile_cases import RECIPE
from interrupted import interrupt
from shared_files import shared

from lopax.cli.main import COMMANDS, main
from lopax.cli.train import stop_on_signal

CELO = (
    RECIPE.replace(
        'architecture = "learned_sgd"', 'settings = { lstm = 18, start = "adam" }'
    )
    + """name = "rule"
trainable = ["rule/*"]
settings = { phase = 1 }
"""
)


def recipe(folder: Path, steps: int = 4) -> Path:
    path = folder / "tiny.toml"
    path.write_text(CELO.replace("STEPS", str(steps)))
    return path


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_bad_input_is_one_message_and_exit_code_2(capsys, tmp_path):
    (tmp_path / "bad.toml").write_text("[outer]\nlearning_rate = -1.0")
    missing = recipe(tmp_path)
    missing.write_text(missing.read_text().replace("digits", "mnist"))
    for argv, says in (
        (["tain"], "did you mean 'train'"),
        (["list", "optimisers"], "did you mean 'optimizers'"),
        (["train", str(tmp_path / "none.toml")], "no recipe at"),
        (["train", str(tmp_path / "bad.toml")], "learning_rate = -1.0"),
        (["train", "--resume", str(tmp_path)], "not the folder of a run"),
        (["convert", str(tmp_path / "no.state"), "x.safetensors"], "no file at"),
        (["compare", "nonsense"], "nonsense"),
        (["bench", "lit"], "did you mean 'lite'"),
        (["tune", "adm", "quadratic"], "did you mean 'adam'"),
        (["report", str(tmp_path)], "not the folder of a run"),
    ):
        assert main(argv) == 2, argv
        captured = capsys.readouterr()
        assert says in captured.err, (argv, captured.err)
        assert "Traceback" not in captured.err


def test_missing_data_says_where_it_looked(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOPAX_DATA_DIR", str(tmp_path / "data"))
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace('"digits"', '"svhn"'))
    assert main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "data") in message
    assert "lopax data fetch svhn" in message
    assert not (tmp_path / "run").exists()


def test_train_report_and_refusal_to_overwrite(tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["train", str(recipe(tmp_path)), "--out", str(out)]
    argv += ["--outer.learning-rate", "0.002", "--seed", "3"]
    assert main(argv) == 0
    saved = json.loads((out / "config.json").read_text())
    assert saved["outer"]["learning_rate"] == 0.002  # a flag beats the recipe
    assert saved["seed"] == 3
    assert saved["estimator"]["particles"] == 4  # the recipe beats the default
    assert saved["outer"]["b1"] is None  # the optimizer's own
    assert (out / "weights.safetensors").exists()
    assert main(argv) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "Meta-loss" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_130(tmp_path):
    out = tmp_path / "run"
    argv = ["train", str(recipe(tmp_path, 1_000_000)), "--out", str(out)]
    code, rest = interrupt(argv, "rule ")
    assert code == 130, rest
    assert f"lopax train --resume {out}" in rest
    assert (out / "checkpoint.safetensors").exists()


def test_a_signal_inside_a_print_asks_for_a_stop(monkeypatch, capfd):
    """A buffered stream lets nobody in while it writes: not even a signal's handler."""

    class Busy(io.StringIO):
        def write(self, text):
            raise RuntimeError("reentrant call")

    monkeypatch.setattr("sys.stderr", Busy())
    with stop_on_signal() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
    assert "stopping after this step" in capfd.readouterr().err


def test_lists(capsys):
    lists = ("optimizers", "weights", "tasks", "suites", "datasets", "environments")
    for what in (*lists, "baselines"):
        assert main(["list", what]) == 0
        assert "name" in capsys.readouterr().out
    assert main(["list", "tasks", "digits_*"]) == 0
    names = [x.split("\t")[0] for x in capsys.readouterr().out.splitlines()[1:]]
    assert names
    assert all(n.startswith("digits_") for n in names)


def test_convert_published_weights(tmp_path, capsys):
    source = shared("weights", "celo_adam", "theta.state")
    target = tmp_path / "c.safetensors"
    assert main(["convert", str(source), str(target), "--licence", "MIT"]) == 0
    assert "celo_adam" in capsys.readouterr().out
    assert target.exists()


def test_compare_on_a_users_file(tmp_path, capsys):
    problem = tmp_path / "my_problem.py"
    problem.write_text(
        "import jax, jax.numpy as jnp\n"
        "def init(key): return {'w': jax.random.normal(key, (10,))}\n"
        "def loss(params): return jnp.sum((params['w'] - 1.0) ** 2)\n"
    )
    out = tmp_path / "out"
    argv = ["compare", str(problem), "--optimizers", "sgd@0.1", "adam"]
    argv += ["--num-steps", "40", "--seeds", "2", "--out", str(out), "--workers", "1"]
    code = main(argv)
    assert code == 0
    shown = capsys.readouterr().out
    assert "sgd" in shown
    assert (out / "report.html").exists()
