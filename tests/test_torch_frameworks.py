"""Hugging Face Trainer, Lightning and Accelerate, each on a tiny model on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_common import (
    NAMES,
    NEEDS_LOSS,
    SETTINGS,
    batch,
    loss_of,
    make,
    random_theta,
    small_model,
    values,
)

import lopax.torch as lt
from lopax._core.errors import ConfigError

# Their warnings are theirs; this file is about what the optimizer does.
pytestmark = pytest.mark.filterwarnings("ignore")


class ModelWithLoss(torch.nn.Module):
    """As transformers models: the forward pass returns the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_model()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict:
        return {"loss": torch.nn.functional.mse_loss(self.net(x), labels)}


def data(steps: int) -> Any:
    rows = []
    for step in range(steps):
        x, y = batch(step)
        rows += [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    return rows


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


def trainer_for(transformers, folder, name, keep_schedule=False, **settings):
    from lopax.torch.hugging_face import attach

    pytest.importorskip("accelerate", reason="accelerate is not installed")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=16,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
        max_grad_norm=0.0,
        **settings,
    )
    trainer = transformers.Trainer(
        model=ModelWithLoss(), args=arguments, train_dataset=data(8)
    )
    options = {"theta": random_theta(name), **SETTINGS.get(name, {})}
    return attach(trainer, name, keep_schedule=keep_schedule, **options)


def learned(trainer):
    """The optimizer under accelerate's wrapper."""
    found = trainer.optimizer
    return getattr(found, "optimizer", found)


@pytest.mark.parametrize("name", NEEDS_LOSS)
def test_trainer_sets_the_horizon_and_feeds_the_loss(transformers, tmp_path, name):
    # 8 batches an epoch, two to a step: 3 epochs make 12 steps.
    trainer = trainer_for(
        transformers,
        tmp_path,
        name,
        num_train_epochs=3,
        gradient_accumulation_steps=2,
        weight_decay=0.1,
        save_strategy="no",
        logging_steps=1,
    )
    trainer.train()
    optimizer = learned(trainer)
    assert isinstance(optimizer, lt.RULES[name])
    state = next(iter(optimizer.state.values()))
    assert int(state["shared_num_steps"]) == 12
    assert int(state["shared_skipped"]) == 0
    # The slowest average is close to the plain mean of the losses the trainer logged.
    logged = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    assert len(logged) == 12
    if name != "rnn_mlp":  # which keeps its last losses only
        assert int(state["shared_loss_count"]) == 12
        average = state["shared_loss_means"] / (1 - state["shared_loss_decays"] ** 12)
        assert float(average[-1]) == pytest.approx(sum(logged) / 12, rel=0.15)
    groups = optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [g["lr"] for g in groups] == [1.0, 1.0]
    assert not torch.equal(values(trainer.model), values(ModelWithLoss()))


@pytest.mark.parametrize("name", ["celo", "celo2"])
def test_trainer_resumes_exactly(transformers, tmp_path, name):
    settings = {"max_steps": 8, "save_steps": 4, "save_strategy": "steps"}
    whole = trainer_for(transformers, tmp_path, name, **settings)
    whole.train()
    again = trainer_for(transformers, tmp_path, name, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert int(learned(again).info().iteration) == 8
    torch.testing.assert_close(values(again.model), values(whole.model))


def test_trainer_can_keep_its_schedule(transformers, tmp_path):
    from lopax.torch.hugging_face import attach

    settings = {"max_steps": 4, "save_strategy": "no", "keep_schedule": True}
    trainer = trainer_for(transformers, tmp_path, "celo", **settings)
    with pytest.raises(ConfigError, match="already has an optimizer"):
        attach(trainer, "celo")
    trainer.train()
    assert learned(trainer).param_groups[0]["lr"] == 0.0  # decayed linearly to the end


@pytest.mark.parametrize("name", NAMES)
def test_lightning_passes_a_closure(tmp_path, name):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_model()

        def training_step(self, rows, index):
            return torch.nn.functional.mse_loss(self.net(rows["x"]), rows["labels"])

        def configure_optimizers(self):
            return make(name, self.parameters(), num_steps=8)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loader = torch.utils.data.DataLoader(data(8), batch_size=16)
    trainer.fit(module, loader)

    expected = small_model()
    optimizer = make(name, expected.parameters(), num_steps=8)
    for step in range(8):
        loss = loss_of(expected, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    torch.testing.assert_close(values(module), values(expected))


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_with_gradient_accumulation(name):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = small_model()
    optimizer = make(name, model.parameters(), num_steps=4)
    loader = torch.utils.data.DataLoader(data(8), batch_size=16)
    prepared, wrapped, loader = accelerator.prepare(model, optimizer, loader)
    for rows in loader:
        with accelerator.accumulate(prepared):
            loss = torch.nn.functional.mse_loss(prepared(rows["x"]), rows["labels"])
            optimizer.observe(loss)
            accelerator.backward(loss)
            wrapped.step()
            wrapped.zero_grad()

    expected = small_model()
    reference = make(name, expected.parameters(), num_steps=4)
    for step in range(0, 8, 2):
        loss = (loss_of(expected, step) + loss_of(expected, step + 1)) / 2
        reference.zero_grad()
        loss.backward()
        reference.step(loss=loss)
    torch.testing.assert_close(values(model), values(expected))
    assert int(optimizer.info().iteration) == 4
