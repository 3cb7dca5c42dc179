"""A learned optimizer as an AlgoPerf submission (self-tuning ruleset, PyTorch).

Written by `lopax convert --to algoperf`; the weights lie beside this file. Nothing is
tuned: the only settings are below, and the horizon is the workload's step hint.
Needs the packages algoperf and lopax.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.nn as dist_nn
from algoperf import spec
from algoperf.pytorch_utils import pytorch_setup

import lopax.torch
from lopax.pretrained import read_weights

USE_PYTORCH_DDP = pytorch_setup()[0]

WEIGHTS = Path(__file__).with_name("weights.safetensors")
WEIGHT_DECAY = 0.0
DROPOUT_RATE = 0.1
LABEL_SMOOTHING = 0.0
LOG_EVERY = 100

BATCH_SIZES = {
    "criteo1tb": 262_144,
    "fastmri": 32,
    "finewebedu_lm": 64,
    "imagenet_resnet": 1024,
    "imagenet_resnet_gelu": 512,
    "imagenet_resnet_silu": 512,
    "imagenet_vit": 1024,
    "librispeech_conformer": 256,
    "librispeech_deepspeech": 256,
    "ogbg": 512,
    "wmt": 128,
    "cifar": 128,
    "mnist": 16,
}


def init_optimizer_state(
    workload: spec.Workload,
    model_params: spec.ParameterContainer,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    rng: spec.RandomState,
) -> spec.OptimizerState:
    """{"optimizer": the optimizer}."""
    del model_state, hyperparameters, rng
    optimizer = lopax.torch.optimizer(
        read_weights(WEIGHTS).header["architecture"],
        model_params.parameters(),
        num_steps=workload.step_hint,
        weights=WEIGHTS,
        weight_decay=WEIGHT_DECAY,
    )
    return {"optimizer": optimizer}


def update_params(
    workload: spec.Workload,
    current_param_container: spec.ParameterContainer,
    current_params_types: spec.ParameterTypeTree,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    batch: dict[str, spec.Tensor],
    loss_type: spec.LossType,
    optimizer_state: spec.OptimizerState,
    eval_results: list[tuple[int, float]],
    global_step: int,
    rng: spec.RandomState,
    train_state: dict[str, Any] | None = None,
) -> spec.UpdateReturn:
    """One update: (optimizer state, parameters, model state)."""
    del current_params_types, hyperparameters, loss_type, eval_results, train_state
    model, optimizer = current_param_container, optimizer_state["optimizer"]
    model.train()
    optimizer.zero_grad()
    logits, new_model_state = workload.model_fn(
        params=model,
        augmented_and_preprocessed_input_batch=batch,
        model_state=model_state,
        mode=spec.ForwardPassMode.TRAIN,
        rng=rng,
        update_batch_norm=True,
        dropout_rate=DROPOUT_RATE,
    )
    losses = workload.loss_fn(
        label_batch=batch["targets"],
        logits_batch=logits,
        mask_batch=batch.get("weights"),
        label_smoothing=LABEL_SMOOTHING,
    )
    summed, count = losses["summed"], losses["n_valid_examples"]
    if USE_PYTORCH_DDP:  # the loss of all devices; gradients are scaled to fit
        summed, count = dist_nn.all_reduce(summed), dist_nn.all_reduce(count)
    loss = summed / count
    loss.backward()
    optimizer.step(loss=loss.detach())
    if global_step % LOG_EVERY == 0 and workload.metrics_logger is not None:
        grads = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        norm = torch.stack(grads).norm()
        workload.metrics_logger.append_scalar_metrics(
            {"loss": loss.item(), "grad_norm": norm.item()}, global_step
        )
    return optimizer_state, model, new_model_state


def prepare_for_eval(
    workload: spec.Workload,
    current_param_container: spec.ParameterContainer,
    current_params_types: spec.ParameterTypeTree,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    loss_type: spec.LossType,
    optimizer_state: spec.OptimizerState,
    eval_results: list[tuple[int, float]],
    global_step: int,
    rng: spec.RandomState,
) -> spec.UpdateReturn:
    """Parameters are evaluated as they are."""
    del workload, current_params_types, hyperparameters, loss_type
    del eval_results, global_step, rng
    return optimizer_state, current_param_container, model_state


def get_batch_size(workload_name: str) -> int:
    """The global batch sizes of the benchmark's own baselines."""
    if workload_name not in BATCH_SIZES:
        raise ValueError(
            f"no batch size for workload {workload_name!r}; known: "
            f"{', '.join(BATCH_SIZES)}"
        )
    return BATCH_SIZES[workload_name]


def data_selection(
    workload: spec.Workload,
    input_queue: Iterator[dict[str, spec.Tensor]],
    optimizer_state: spec.OptimizerState,
    current_param_container: spec.ParameterContainer,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    global_step: int,
    rng: spec.RandomState,
) -> dict[str, spec.Tensor]:
    """The next batch of the queue."""
    del workload, optimizer_state, current_param_container, model_state
    del hyperparameters, global_step, rng
    return next(input_queue)
