"""RNN-MLP: an LSTM per tensor steers an MLP per element, and both report back.

Metz, Maheswaranathan, Freeman, Poole and Sohl-Dickstein, "Tasks, stability,
architecture, and compute: Training more effective learned optimizers, and using them
to train themselves" (2020, arXiv 2009.11243). Three levels exchange messages: the MLP
sends the LSTM of its tensor the mean over elements of 16 outputs, the LSTM sends its
MLP 17 numbers, and all LSTMs share the mean of 18.

Needs the loss, not the horizon; sees every parameter, of any shape (dimensions from
the fourth on are folded into one; the published code fails beyond four). Gradients are
clipped at ten times their own running size. The loss on validation data is an input:
hand it in with `observe_validation`, before the first step and now and then after it.
Until then its feature is masked: zero, which says "as the average training loss". The
published code shows a validation loss of zero instead, the best news there is; a theta
that was meta-trained so wants `unseen_validation="zero"`. 35,799 meta-parameters, all
of which act.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopax._core import tree as trees
from lopax._core.config import check_choice, check_range
from lopax._core.lifting import Leaf
from lopax._core.optimizer import OptState
from lopax._core.tensor_rule import TensorRule
from lopax._core.types import Count, Key, Scalar, Theta
from lopax.blocks import accumulators, loss_normalizer, tensor_features, time_features
from lopax.blocks.loss_normalizer import LossMoments
from lopax.blocks.normalize import rms_scale
from lopax.blocks.tensor_features import flag, log_magnitude, mean, norm, variance
from lopax.nets import initializers, linear, lstm, mlp
from lopax.nets.lstm import LSTMState

DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
TRAIN_DECAY, VALID_DECAY, CLIP_DECAY = 0.9, 0.95, 0.99
TO_LSTM, TO_ALL, TO_MLP = 16, 18, 17  # sizes of the three messages
BEFORE_LOSS, AFTER_LOSS = TO_LSTM + 13, 3  # places of the tensor's own features
UNSEEN = ("mask", "zero")
NUM_MLP_INPUTS = 3 + 4 * len(DECAYS) + time_features.NUM_TIME + 3 + TO_MLP


@dataclasses.dataclass(frozen=True, kw_only=True)
class RNNMLPConfig:
    """Settings of `RNNMLP`; the defaults fit the published ones."""

    lstm: int = 64
    hidden: int = 32
    """Width of the MLP's two hidden layers."""
    step_mult: float = 1e-3
    exp_mult: float = 1e-3
    clip_mult: float = 10.0
    """Gradients are clipped at this many times their running root mean square."""
    unseen_validation: str = "mask"
    """What the rule is shown before the first validation loss: "mask", a feature of
    zero, or "zero", a loss of zero, as the published code."""

    def __post_init__(self) -> None:
        check_range(self, "lstm", low=1)
        check_range(self, "hidden", low=1)
        check_range(self, "step_mult", above=0.0)
        check_range(self, "exp_mult", low=0.0)
        check_range(self, "clip_mult", above=0.0)
        check_choice(self, "unseen_validation", UNSEEN)


class RNNMLPShared(NamedTuple):
    steps: Count  # [] int32, training and validation updates
    lstm: LSTMState  # one row a tensor
    message: Float[Array, "18"]  # mean of what the LSTMs said last
    train: LossMoments
    valid: LossMoments
    grad_size: Scalar  # [] running size of the clipped gradient, not bias-corrected


class RNNMLPContext(NamedTuple):
    steps: Count
    messages: Float[Array, "tensors 17"]


class RNNMLPState(NamedTuple):
    momenta: Float[Array, "5 *s"]
    seconds: Float[Array, "5 *s"]
    message: Float[Array, "16"]  # mean over elements of what the MLP said last


class RNNMLP(TensorRule[RNNMLPShared, RNNMLPContext, RNNMLPState]):
    """See the module docstring."""

    name: ClassVar[str] = "rnn_mlp"
    needs_loss: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = False
    takes_validation: ClassVar[bool] = True
    reference: ClassVar[str] = "Metz et al., 2020, arXiv 2009.11243"

    def __init__(self, config: RNNMLPConfig | None = None):
        self.config = config or RNNMLPConfig()

    def init_theta(self, key: Key) -> Theta:
        c = self.config
        k_all, k_one, k_lstm, k_mlp, k_out, k_net = jax.random.split(key, 6)
        inputs = TO_ALL + BEFORE_LOSS + 2 + AFTER_LOSS
        sizes = (NUM_MLP_INPUTS, c.hidden, c.hidden, 2 + TO_LSTM)
        start = initializers.truncated_normal
        return {
            "initial": {
                "hidden": jnp.zeros((c.lstm,), jnp.float32),
                "cell": jnp.zeros((c.lstm,), jnp.float32),
                "to_all": start(k_all, (TO_ALL,), TO_ALL**-0.5),
                "to_lstm": start(k_one, (TO_LSTM,), TO_LSTM**-0.5),
            },
            "lstm": lstm.init(k_lstm, inputs, c.lstm),
            "to_mlp": initializers.linear(k_mlp, c.lstm, TO_MLP),
            "to_all": initializers.linear(k_out, c.lstm, TO_ALL),
            "net": mlp.init(k_net, sizes),
        }

    def init_shared(
        self, theta: Theta, num_steps: Count, num_tensors: int
    ) -> RNNMLPShared:
        del num_steps
        return RNNMLPShared(
            steps=jnp.zeros((), jnp.int32),
            lstm=lstm.tile(theta["initial"], num_tensors),
            message=jnp.asarray(theta["initial"]["to_all"]),
            train=loss_normalizer.init(),
            valid=loss_normalizer.init(),
            grad_size=jnp.asarray(1.0 - CLIP_DECAY, jnp.float32),
        )

    def init_tensor(self, theta: Theta, param: Array) -> RNNMLPState:
        zeros = accumulators.zeros(len(DECAYS), param)
        return RNNMLPState(zeros, zeros, jnp.asarray(theta["initial"]["to_lstm"]))

    def gradient_bound(self, shared: RNNMLPShared) -> Scalar:
        t = (shared.train.count + 1).astype(jnp.float32)
        return self.config.clip_mult * shared.grad_size / (1.0 - CLIP_DECAY**t)

    def summarise(
        self, theta: Theta, leaf: Leaf, grad: Array, state: RNNMLPState, param: Array
    ) -> Float[Array, "33"]:
        """The tensor's own LSTM inputs, in the published alphabetical order around
        the two loss features, then the mean square of the clipped gradient."""
        del theta
        new = _accumulate(state, grad)
        means = [mean(x) for x in (new.momenta, new.seconds, param)]
        scalars = [log_magnitude(norm(grad)), flag(len(leaf.shape) == 0)]
        for m in means:
            scalars += [log_magnitude(m), jnp.sign(m)]
        scalars.append(log_magnitude(norm(param)))
        spreads = [variance(x) for x in (new.momenta, new.seconds, param)]
        return jnp.concatenate(
            [
                state.message,
                jnp.stack(scalars),
                tensor_features.log_shape(leaf.shape),
                log_magnitude(jnp.stack(spreads)),
                mean(jnp.square(grad))[None],
            ]
        )

    def advance(
        self,
        theta: Theta,
        shared: RNNMLPShared,
        value: Scalar,
        fraction: Scalar,
        summaries: Float[Array, "tensors 33"],
    ) -> tuple[RNNMLPShared, RNNMLPContext, Scalar]:
        del fraction
        train = loss_normalizer.update(shared.train, value, TRAIN_DECAY)
        valid_loss = loss_normalizer.corrected_mean(shared.valid, VALID_DECAY)
        losses = [
            loss_normalizer.score(train, x, TRAIN_DECAY) for x in (value, valid_loss)
        ]
        if self.config.unseen_validation == "mask":
            losses[1] = jnp.where(shared.valid.count > 0, losses[1], 0.0)

        def repeat(row: Array) -> Array:
            return jnp.broadcast_to(row, (summaries.shape[0], row.shape[0]))

        before, after, squares = jnp.split(
            summaries, [BEFORE_LOSS, BEFORE_LOSS + AFTER_LOSS], axis=1
        )
        inputs = [repeat(shared.message), before, repeat(jnp.stack(losses)), after]
        out = lstm.apply(theta["lstm"], jnp.concatenate(inputs, axis=1), shared.lstm)
        said = linear.apply(theta["to_all"], out.hidden)
        size = jnp.sqrt(1e-8 + jnp.mean(squares))
        moved = RNNMLPShared(
            steps=shared.steps + 1,
            lstm=out,
            message=jnp.mean(said, axis=0),
            train=train,
            valid=shared.valid,
            grad_size=CLIP_DECAY * shared.grad_size + (1.0 - CLIP_DECAY) * size,
        )
        messages = linear.apply(theta["to_mlp"], out.hidden)
        scale = jnp.asarray(self.config.step_mult, jnp.float32)
        return moved, RNNMLPContext(shared.steps, messages), scale

    def step(
        self,
        theta: Theta,
        context: RNNMLPContext,
        index: Leaf,
        grad: Array,
        state: RNNMLPState,
        param: Array,
    ) -> tuple[Array, RNNMLPState]:
        c = self.config
        state = _accumulate(state, grad)
        inverse = jax.lax.rsqrt(state.seconds + 1e-6)
        channels = [
            *(grad, param, jnp.log(jnp.abs(param) + 1e-8)),
            *(*state.momenta, *state.seconds),
            *(*(state.momenta * inverse), *inverse),
        ]
        num_tensors = context.messages.shape[0]
        constants = [
            *time_features.sine_of_step(context.steps),
            jnp.log(jnp.asarray(num_tensors, jnp.float32)) - 1.0,
            jnp.log(norm(param) + 1e-8),
            jnp.log(jnp.asarray(max(param.size, 1), jnp.float32)),
            *context.messages[int(index)],
        ]
        one = jnp.ones((), jnp.float32)
        outputs = mlp.apply_dense(
            theta["net"],
            [*channels, *constants],
            [*(rms_scale(x) for x in channels), *(one for _ in constants)],
        )
        direction, magnitude = outputs[..., 0], outputs[..., 1]
        said = outputs[..., 2:].reshape(-1, TO_LSTM)
        message = jnp.mean(said, axis=0) if param.size else state.message
        delta = -direction * jnp.exp(c.exp_mult * magnitude) * c.step_mult
        reached = accumulators.reached(state.momenta, state.seconds)
        return jnp.where(reached, delta, 0.0), state._replace(message=message)

    def observe_validation(self, state: OptState, loss: Scalar) -> OptState:
        """State after a look at the validation loss [] between two updates.

        It counts as a step for the time features, as in the published code. A
        non-finite loss changes nothing.
        """
        shared: RNNMLPShared = state.shared
        loss = jnp.asarray(loss, jnp.float32)
        finite = jnp.isfinite(loss)
        valid = loss_normalizer.update(shared.valid, loss, VALID_DECAY)
        seen = shared._replace(steps=shared.steps + 1, valid=valid)
        return state._replace(shared=trees.select(finite, seen, shared))

    def _translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
        if "initial_from_lstm" not in arrays:
            return arrays
        found = {
            "initial/to_all": arrays["initial_from_lstm"],
            "initial/to_lstm": arrays["initial_from_mlp"],
        }
        for k in ("hidden", "cell"):
            found[f"initial/{k}"] = arrays[f"lstm_init_state/{k}"].reshape(-1)
        layers = {
            "lstm": "rnn_params/rnn/linear",
            "to_mlp": "rnn_to_ff_params/rnn_to_ff",
            "to_all": "rnn_to_in_params/rnn_to_in",
        }
        for ours, theirs in layers.items():
            found |= {f"{ours}/{k}": arrays[f"{theirs}/{k}"] for k in ("w", "b")}
        for i in range(3):
            layer = f"ffmod_params/mlp/~/linear_{i}"
            found |= {f"net/{k}{i}": arrays[f"{layer}/{k}"] for k in ("w", "b")}
        return found


def _accumulate(state: RNNMLPState, grad: Array) -> RNNMLPState:
    return state._replace(
        momenta=accumulators.ema(state.momenta, grad, DECAYS),
        seconds=accumulators.ema(state.seconds, jnp.square(grad), DECAYS),
    )
