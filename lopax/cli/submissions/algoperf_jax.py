"""A learned optimizer as an AlgoPerf submission (self-tuning ruleset, JAX).

Written by `lopax convert --to algoperf`; the weights lie beside this file. Nothing is
tuned: the only settings are below, and the horizon is the workload's step hint.
Needs the packages algoperf and lopax.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from algoperf import jax_sharding_utils, spec

import lopax
from lopax.pretrained import read_weights

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
    """(state of the optimizer, the compiled training step)."""
    del model_state, hyperparameters, rng
    optimizer = lopax.optimizer(
        read_weights(WEIGHTS).header["architecture"],
        num_steps=workload.step_hint,
        weights=WEIGHTS,
        weight_decay=WEIGHT_DECAY,
    )
    state = jax_sharding_utils.replicate(optimizer.init(model_params))
    return state, _training_step(workload, optimizer)


def _training_step(workload: Any, optimizer: Any) -> Any:
    """The compiled step: everything is replicated but the batch, whose first axis is
    sharded; the compiler adds the sums over devices."""
    replicated = jax_sharding_utils.get_replicate_sharding()

    def step(params: Any, model_state: Any, state: Any, batch: Any, rng: Any) -> Any:
        def mean_loss(params: Any) -> tuple[Any, Any]:
            logits, new_model_state = workload.model_fn(
                params,
                batch,
                model_state,
                spec.ForwardPassMode.TRAIN,
                rng,
                update_batch_norm=True,
                dropout_rate=DROPOUT_RATE,
            )
            losses = workload.loss_fn(
                label_batch=batch["targets"],
                logits_batch=logits,
                mask_batch=batch.get("weights"),
                label_smoothing=LABEL_SMOOTHING,
            )
            return losses["summed"] / losses["n_valid_examples"], new_model_state

        (loss, new_model_state), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            params
        )
        updates, state = optimizer.update(grads, state, params, value=loss)
        params = optax.apply_updates(params, updates)
        return params, new_model_state, state, loss, optax.global_norm(grads)

    return jax.jit(step, donate_argnums=(0, 1, 2), out_shardings=replicated)


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
    state, step = optimizer_state
    params, model_state, state, loss, norm = step(
        current_param_container, model_state, state, batch, rng
    )
    if global_step % LOG_EVERY == 0 and workload.metrics_logger is not None:
        workload.metrics_logger.append_scalar_metrics(
            {"loss": float(jnp.mean(loss)), "grad_norm": float(norm)}, global_step
        )
    return (state, step), params, model_state


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
