"""Comparisons of PyTorch models: paired runs, tuning, divergence, results, report."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lopax._core.errors import ConfigError, FileFormatError, UnknownName  # noqa: E402
from lopax.cli.main import main  # noqa: E402
from lopax.evaluate import LEARNING_RATES, summarise, tune  # noqa: E402
from lopax.evaluate.results.torch_results import read_torch_comparison  # noqa: E402
from lopax.torch import comparison, contestants  # noqa: E402
from lopax.torch.comparison import compare  # noqa: E402

STEPS = 25
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([[1.0], [-1.0], [0.5], [2.0]]) + 0.3


def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))  # noqa: E501  # fmt: skip


def loss_fn(net, batch):
    x, y = batch
    return torch.nn.functional.mse_loss(net(x), y) + 0.1


def loader(**options):
    data = torch.utils.data.TensorDataset(X, Y)
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, **options)


def quick(optimizers, **options):
    defaults = {
        "num_steps": STEPS, "seeds": 2, "learning_rates": (1e-3, 1e-2), "folder": None,
    }  # fmt: skip
    return compare(model, loader(), loss_fn, optimizers, **{**defaults, **options})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch") / "comparison"
    found = quick(
        ["celo", "adam", "sgd@0.01", ("mine", lambda p: torch.optim.SGD(p, lr=0.01))],
        folder=folder,
        report=False,
        valid_loader=[(X, Y)],
        name="regression",
    )
    return folder, found


def test_all_optimizers_start_alike_and_see_the_same_batches(written):
    _, found = written
    first = {n: c.train[:, :, 0] for n, c in found.curves.items()}
    for losses in first.values():
        np.testing.assert_allclose(
            losses, np.repeat(first["celo"], losses.shape[1], 1), rtol=1e-5
        )
    assert first["celo"][0, 0] != first["celo"][1, 0]  # seeds differ
    same, mine = found.curves["sgd@0.01"], found.curves["mine"]
    np.testing.assert_allclose(same.train, mine.train, rtol=1e-5)
    np.testing.assert_allclose(same.valid, mine.valid, rtol=1e-5)


def test_evaluation_does_not_change_the_run(written):
    _, found = written
    without = quick(["sgd@0.01"], reference="sgd@0.01")
    np.testing.assert_array_equal(
        without.curves["sgd@0.01"].train, found.curves["sgd@0.01"].train
    )
    assert np.isnan(without.curves["sgd@0.01"].valid).all()


def test_a_loaders_own_generator_is_seeded_too():
    own = loader(generator=torch.Generator().manual_seed(5))
    twin = ("twin", lambda p: torch.optim.SGD(p, lr=0.01))
    found = compare(
        model, own, loss_fn, ["sgd@0.01", twin], num_steps=6, seeds=1,
        reference="sgd@0.01", folder=None,
    )  # fmt: skip
    a, b = (found.curves[n].train for n in ("sgd@0.01", "twin"))
    np.testing.assert_array_equal(a, b)


def test_curves_costs_and_the_learned_optimizer(written):
    _, found = written
    celo, adam = found.curves["celo"], found.curves["adam"]
    assert celo.train.shape == (2, 1, STEPS) and adam.train.shape == (2, 2, STEPS)
    assert celo.valid.shape == (2, 1, STEPS + 1) and np.isfinite(celo.valid).all()
    assert found.final_loss("celo") < celo.train[:, 0, 0].mean()
    assert celo.parameters == 49 and celo.step_ms > 0
    assert adam.state_bytes >= 2 * 4 * 49 and celo.state_bytes > adam.state_bytes
    assert found.best_rate("adam") == 1  # a rate of 1e-3 gets nowhere in 25 steps
    assert "celo" in str(found) and "0.01 of 2" in str(found)


def test_results_are_judged_as_evaluate_judges(written):
    folder, found = written
    study = read_torch_comparison(folder)
    summary = summarise(study, "adam")
    adam = study.group("adam", "regression")
    assert tune(adam.train, adam.diverged).index == found.best_rate("adam")
    assert summary.target["regression"] == pytest.approx(found.final_loss("adam"))
    assert summary.row("celo").runs == 2 and summary.row("celo").kind == "learned"
    spec = study.spec("celo")
    assert len(spec.settings["weights"]) == 12
    with pytest.raises(ConfigError, match="made in PyTorch"):
        study.problems[0].make()


def test_the_command_line_writes_the_report(written, capsys):
    folder, _ = written
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "regression" in page and "celo" in page and str(folder) in page
    assert "report.html" in capsys.readouterr().out


def test_damaged_results_are_refused(written, tmp_path):
    folder, _ = written
    for file in ("comparison.json", "comparison.npz"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "comparison.npz").write_bytes(b"PK")
    with pytest.raises(FileFormatError, match="run it again"):
        read_torch_comparison(tmp_path)
    assert main(["report", str(tmp_path)]) == 2


def test_divergence_is_shown_and_cannot_win():
    def steep(net, batch):
        return loss_fn(net, batch) * 1e8

    found = compare(
        model, loader(), steep, ["sgd"], num_steps=40, seeds=1, reference="sgd",
        learning_rates=(1e-10, 1.0), folder=None,
    )  # fmt: skip
    curves = found.curves["sgd"]
    assert curves.diverged.tolist() == [[False, True]]
    assert curves.nonfinite[0, 1] > 20 and found.best_rate("sgd") == 0
    only = compare(model, loader(), steep, ["sgd@1"], num_steps=40, seeds=1, reference="sgd@1", folder=None)  # noqa: E501  # fmt: skip
    assert only.final_loss("sgd@1") == float("inf")


def test_names_are_those_of_evaluate():
    assert contestants.LEARNING_RATES == LEARNING_RATES
    get = lambda text: contestants.contestant(text, None, comparison.RULES)  # noqa: E731
    assert get("adam").rates == LEARNING_RATES and not get("adam").learned
    assert get("adam@0.01").name == "adam@0.01" and get("adam@0.01").rates == ()
    assert get("Mine=celo").name == "Mine" and get("Mine=celo").learned
    for name in contestants.BASELINES:
        params = [("w", torch.nn.Parameter(torch.ones(2)))]
        assert get(name).make(params, 5, 0.5).param_groups[0]["lr"] == 0.5
    decoupled = get("nadamw").make([("w", torch.nn.Parameter(torch.ones(2)))], 5, 0.5)
    assert decoupled.param_groups[0]["decoupled_weight_decay"]


def test_bad_input_is_refused():
    for optimizers, error, says in (
        (["adma"], UnknownName, "adam"),
        (["adam@-1"], ConfigError, "no learning rate"),
        (["adam", "adam"], ConfigError, "different"),
        (["star"], UnknownName, "star"),
    ):
        with pytest.raises(error, match=says):
            quick(optimizers)
    with pytest.raises(ConfigError, match="scalar tensor"):
        compare(model, loader(), lambda net, b: net(b[0]), ["adam@0.1"], num_steps=2, folder=None)  # noqa: E501  # fmt: skip
    with pytest.raises(ConfigError, match="gave no batch"):
        compare(model, iter([]), loss_fn, ["adam@0.1"], num_steps=2, folder=None)
    with pytest.raises(ConfigError, match="learning_rates"):
        quick(["adam"], learning_rates=(0.1, 0.1))


def test_needs_no_jax():
    code = "import sys, lopax.torch.comparison; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
