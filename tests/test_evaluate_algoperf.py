"""The AlgoPerf export: signatures as published, and runs of both kinds of submission
on a stand-in for the benchmark (its package is not needed)."""

from __future__ import annotations

import enum
import importlib.util
import inspect
import itertools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_files import NO_TORCH

import lopax
from lopax._core.errors import ConfigError, UnknownName
from lopax.cli.main import main
from lopax.cli.submission import write_submission
from lopax.pretrained import read_weights

# algoperf/spec.py of the benchmark: parameter names in order. `train_state` came later
# and has a default, so that older runners work too.
PUBLISHED = {
    "init_optimizer_state": [
        "workload", "model_params", "model_state", "hyperparameters", "rng",
    ],
    "update_params": [
        "workload", "current_param_container", "current_params_types", "model_state",
        "hyperparameters", "batch", "loss_type", "optimizer_state", "eval_results",
        "global_step", "rng", "train_state",
    ],
    "prepare_for_eval": [
        "workload", "current_param_container", "current_params_types", "model_state",
        "hyperparameters", "loss_type", "optimizer_state", "eval_results",
        "global_step", "rng",
    ],
    "data_selection": [
        "workload", "input_queue", "optimizer_state", "current_param_container",
        "model_state", "hyperparameters", "global_step", "rng",
    ],
    "get_batch_size": ["workload_name"],
}  # fmt: skip
STEPS = 6
X = np.random.default_rng(0).normal(size=(STEPS, 16, 3)).astype(np.float32)
Y = X @ np.asarray([[1.0], [-2.0], [0.5]], np.float32)
W0, B0 = 0.1 * np.ones((3, 1), np.float32), np.zeros(1, np.float32)


class Mode(enum.Enum):
    TRAIN = 0
    EVAL = 1


class Logger:
    def __init__(self):
        self.rows = []

    def append_scalar_metrics(self, metrics, step):
        self.rows.append((step, metrics))


class Workload:
    """Linear regression; checks what submissions pass on."""

    step_hint = STEPS

    def __init__(self, framework):
        self.framework, self.metrics_logger = framework, Logger()

    def model_fn(
        self, params, augmented_and_preprocessed_input_batch, model_state, mode, rng,
        update_batch_norm, dropout_rate,
    ):  # fmt: skip
        assert mode is Mode.TRAIN and update_batch_norm and dropout_rate == 0.1
        x = augmented_and_preprocessed_input_batch["inputs"]
        out = params(x) if self.framework == "pytorch" else x @ params["w"] + params["b"]  # noqa: E501  # fmt: skip
        return out, model_state

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        assert mask_batch is None and label_smoothing == 0.0
        each = ((logits_batch - label_batch) ** 2)[:, 0]
        return {"summed": each.sum(), "n_valid_examples": len(each)}


@pytest.fixture
def algoperf(monkeypatch):
    """The few names of the benchmark's package that submissions use."""
    package = types.ModuleType("algoperf")
    spec = types.ModuleType("algoperf.spec")
    for name in (
        "Workload", "ParameterContainer", "ModelAuxiliaryState", "Hyperparameters",
        "RandomState", "OptimizerState", "ParameterTypeTree", "Tensor", "LossType",
        "UpdateReturn",
    ):  # fmt: skip
        setattr(spec, name, object)
    spec.ForwardPassMode = Mode  # type: ignore[attr-defined]
    sharding = types.ModuleType("algoperf.jax_sharding_utils")
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    sharding.get_replicate_sharding = lambda: everywhere  # type: ignore[attr-defined]
    sharding.replicate = lambda x: jax.device_put(x, everywhere)  # type: ignore[attr-defined]
    torch_utils = types.ModuleType("algoperf.pytorch_utils")
    torch_utils.pytorch_setup = lambda: (False, 0, "cpu", 1)  # type: ignore[attr-defined]
    package.spec, package.jax_sharding_utils = spec, sharding  # type: ignore[attr-defined]
    for module in (package, spec, sharding, torch_utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return mesh


def load(folder):
    path = folder / "submission.py"
    spec = importlib.util.spec_from_file_location("submission_under_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export(folder, framework):
    argv = ["convert", "celo", str(folder), "--to", "algoperf"]
    assert main([*argv, "--framework", framework]) == 0
    assert {p.name for p in folder.iterdir()} == {
        "submission.py",
        "weights.safetensors",
    }
    return load(folder)


def train(module, framework, params, batches):
    """What the benchmark's runner does."""
    workload = Workload(framework)
    state = module.init_optimizer_state(workload, params, None, None, jax.random.key(0))
    queue = itertools.cycle(batches)
    for step in range(STEPS):
        batch = module.data_selection(workload, queue, state, params, None, None, step, None)  # noqa: E501  # fmt: skip
        state, params, model_state = module.update_params(
            workload, params, None, None, None, batch, None, state, [], step,
            jax.random.key(step), train_state={},
        )  # fmt: skip
        assert model_state is None
    state, params, _ = module.prepare_for_eval(
        workload, params, None, None, None, None, state, [], STEPS, None
    )
    return params, workload


def by_hand():
    """The same run with lopax.optimizer."""
    opt = lopax.optimizer("celo", num_steps=STEPS)
    params = {"w": jnp.asarray(W0), "b": jnp.asarray(B0)}
    state = opt.init(params)

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean((x @ p["w"] + p["b"] - y) ** 2)
        )(params)
        updates, state = opt.update(grads, state, params, value=loss)
        return jax.tree.map(jnp.add, params, updates), state

    for x, y in zip(X, Y, strict=True):
        params, state = step(params, state, x, y)
    return params


@pytest.mark.parametrize("framework", ["jax", "pytorch"])
def test_signatures_are_the_published_ones(tmp_path, algoperf, framework):
    if framework == "pytorch":
        pytest.importorskip("torch", reason=NO_TORCH)
    module = export(tmp_path / "submission", framework)
    for name, parameters in PUBLISHED.items():
        signature = inspect.signature(getattr(module, name))
        assert list(signature.parameters) == parameters, name
        for parameter in signature.parameters.values():
            has_default = parameter.default is not inspect.Parameter.empty
            assert has_default == (parameter.name == "train_state")
    sizes = {"criteo1tb": 262_144, "fastmri": 32, "imagenet_vit": 1024, "wmt": 128}
    assert {n: module.get_batch_size(n) for n in sizes} == sizes
    with pytest.raises(ValueError, match="nonsense"):
        module.get_batch_size("nonsense")


def test_a_jax_submission_trains_as_the_optimizer_itself(tmp_path, algoperf):
    module = export(tmp_path / "submission", "jax")
    split = jax.sharding.NamedSharding(algoperf, jax.sharding.PartitionSpec("batch"))
    batches = [
        jax.device_put({"inputs": x, "targets": y}, split)
        for x, y in zip(X, Y, strict=True)
    ]
    start = jax.device_put({"w": W0, "b": B0}, jax.sharding.NamedSharding(algoperf, jax.sharding.PartitionSpec()))  # noqa: E501  # fmt: skip
    params, workload = train(module, "jax", start, batches)
    for name, expected in by_hand().items():
        np.testing.assert_allclose(params[name], expected, rtol=2e-4, atol=1e-6)
        assert params[name].sharding.is_fully_replicated
    assert [step for step, _ in workload.metrics_logger.rows] == [0]
    assert workload.metrics_logger.rows[0][1]["grad_norm"] > 0


def test_a_pytorch_submission_trains_as_the_optimizer_itself(tmp_path, algoperf):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    module = export(tmp_path / "submission", "pytorch")
    model = torch.nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(W0.T.copy()))
        model.bias.copy_(torch.from_numpy(B0.copy()))
    batches = [
        {"inputs": torch.from_numpy(x), "targets": torch.from_numpy(y)}
        for x, y in zip(X, Y, strict=True)
    ]
    trained, workload = train(module, "pytorch", model, batches)
    expected = by_hand()
    weight = trained.weight.detach().numpy().T
    np.testing.assert_allclose(weight, expected["w"], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(
        trained.bias.detach().numpy(), expected["b"], rtol=2e-4, atol=1e-6
    )
    assert workload.metrics_logger.rows[0][1]["loss"] > 0


def test_what_cannot_be_exported_is_said(tmp_path, capsys):
    weights = read_weights("celo")
    with pytest.raises(ConfigError, match="jax, pytorch"):
        write_submission(weights, tmp_path / "a", framework="tensorflow")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="this is a file"):
        write_submission(weights, tmp_path / "file")
    pytest.importorskip("torch", reason=NO_TORCH)
    rule = lopax.architecture("l3rs")
    path = tmp_path / "l3rs.safetensors"
    lopax.save_theta(path, rule.init_theta(jax.random.key(0)), rule)
    with pytest.raises(UnknownName, match="l3rs"):
        write_submission(read_weights(path), tmp_path / "b", framework="pytorch")
    assert main(["convert", "cello", str(tmp_path / "c"), "--to", "algoperf"]) == 2
    assert "Traceback" not in capsys.readouterr().err
