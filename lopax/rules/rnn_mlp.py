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
import math
from typing import Any, ClassVar, NamedTuple

from lopax._core.config import check_choice, check_range
from lopax._core.run import Run
from lopax.rules import form, layers, loss_normalizer, time_features
from lopax.rules.form import Advance, Keeps, Place, Rows, StepContext, Steps
from lopax.rules.layers import LSTMState
from lopax.rules.log_features import log_magnitude, log_shape
from lopax.rules.loss_normalizer import LossMoments
from lopax.rules.ops import Array, Draw, Ops
from lopax.rules.time_features import NUM_TIME

DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
TRAIN_DECAY, VALID_DECAY, CLIP_DECAY = 0.9, 0.95, 0.99
TO_LSTM, TO_ALL, TO_MLP = 16, 18, 17  # sizes of the three messages
BEFORE_LOSS, AFTER_LOSS = TO_LSTM + 13, 3  # places of the tensor's own features
UNSEEN = ("mask", "zero")
HUGE = 1e14
"""Larger parameters count as this where they are squared for features."""
NUM_MLP_INPUTS = 3 + 4 * len(DECAYS) + NUM_TIME + 3 + TO_MLP


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
    steps: Any  # [] float32, training and validation updates
    message: Any  # [18] mean of what the LSTMs said last
    train: LossMoments
    valid: LossMoments
    grad_size: Any  # [] running size of the clipped gradient, not bias-corrected


class RNNMLPState(NamedTuple):
    momenta: Any  # [5, *s]
    seconds: Any  # [5, *s]
    message: Any  # [16] mean over elements of what the MLP said last


class RNNMLP(form.Rule):
    """See the module docstring. The LSTM's state is a row of every tensor."""

    name: ClassVar[str] = "rnn_mlp"
    reference: ClassVar[str] = "Metz et al., 2020, arXiv 2009.11243"
    config_class: ClassVar[type] = RNNMLPConfig
    needs_loss = True
    takes_validation: ClassVar[bool] = True
    num_summaries = BEFORE_LOSS + AFTER_LOSS + 1
    config: RNNMLPConfig

    def init_theta(self, draw: Draw, key: Any) -> Any:
        c = self.config
        k_all, k_one, k_lstm, k_mlp, k_out, k_net = draw.split(key, 6)
        inputs = TO_ALL + BEFORE_LOSS + 2 + AFTER_LOSS
        sizes = (NUM_MLP_INPUTS, c.hidden, c.hidden, 2 + TO_LSTM)
        start = draw.truncated_normal
        return {
            "initial": {
                "hidden": draw.full((c.lstm,)),
                "cell": draw.full((c.lstm,)),
                "to_all": start(k_all, (TO_ALL,), TO_ALL**-0.5),
                "to_lstm": start(k_one, (TO_LSTM,), TO_LSTM**-0.5),
            },
            "lstm": layers.lstm_init(draw, k_lstm, inputs, c.lstm),
            "to_mlp": layers.linear(draw, k_mlp, c.lstm, TO_MLP),
            "to_all": layers.linear(draw, k_out, c.lstm, TO_ALL),
            "net": layers.mlp_init(draw, k_net, sizes),
        }

    def keeps(self, role: str) -> RNNMLPState:
        averages = Keeps(copies=len(DECAYS))
        return RNNMLPState(averages, averages, Keeps(copies=TO_LSTM, each=False))

    def starts(self, xp: Ops, theta: Any) -> dict[str, Array]:
        return {"message": theta["initial"]["to_lstm"]}

    def init_shared(
        self, xp: Ops, theta: Any, num_steps: Array, starts: Array
    ) -> RNNMLPShared:
        return RNNMLPShared(
            steps=xp.zeros(()),
            message=theta["initial"]["to_all"],
            train=loss_normalizer.init(xp),
            valid=loss_normalizer.init(xp),
            grad_size=xp.constant(1.0 - CLIP_DECAY),
        )

    def init_rows(self, xp: Ops, theta: Any, shared: Any, starts: Array) -> LSTMState:
        return layers.tiled(xp, theta["initial"], starts.shape[0])

    def gradient_bound(self, xp: Ops, shared: RNNMLPShared) -> Array:
        t = shared.train.count + 1.0
        correction = 1.0 - xp.constant(CLIP_DECAY) ** t
        return self.config.clip_mult * shared.grad_size / correction

    def summarise(
        self,
        xp: Ops,
        theta: Any,
        place: Place,
        grad: Array,
        state: RNNMLPState,
        param: Array,
    ) -> Steps:
        """The tensor's own LSTM inputs, in the published alphabetical order around
        the two loss features, then the mean square of the clipped gradient."""
        momenta, seconds = _accumulate(xp, place, state, grad)
        param = place.layered(xp.clip(param, -HUGE, HUGE))
        arrays = (momenta, seconds, param)
        sums = yield [
            place.total(xp, x)
            for x in (*arrays, xp.square(place.layered(grad)), xp.square(param))
        ]
        *sums, grad_square, param_square = sums
        counts = [place.size * x.shape[-1] for x in sums]
        means = [xp.sum(x, axis=-1) / n for x, n in zip(sums, counts, strict=True)]
        spreads = yield [
            place.total_square(xp, x - place.column(m[..., None]))
            for x, m in zip(arrays, means, strict=True)
        ]
        grad_square, param_square = grad_square[..., 0], param_square[..., 0]
        zero = 0.0 * grad_square
        scalars = [
            log_magnitude(xp, xp.sqrt(grad_square)),
            zero + (1.0 if place.scalar else -1.0),
        ]
        for m in means:
            scalars += [log_magnitude(xp, m), xp.sign(m)]
        scalars.append(log_magnitude(xp, xp.sqrt(param_square)))
        scalars += [zero + x for x in log_shape(place.sizes)]
        scalars += [
            log_magnitude(xp, xp.sum(x, axis=-1) / n)
            for x, n in zip(spreads, counts, strict=True)
        ]
        scalars.append(grad_square / place.size)
        return xp.concat([state.message, xp.stack(scalars, axis=-1)], axis=-1)

    def advance(
        self, xp: Ops, theta: Any, shared: RNNMLPShared, run: Run, rows: Rows
    ) -> Advance:
        train = loss_normalizer.update(xp, shared.train, run.loss, TRAIN_DECAY)
        valid_loss = loss_normalizer.corrected_mean(xp, shared.valid, VALID_DECAY)
        losses = [
            loss_normalizer.score(xp, train, x, TRAIN_DECAY)
            for x in (run.loss, valid_loss)
        ]
        if self.config.unseen_validation == "mask":
            losses[1] = xp.where(shared.valid.count > 0.0, losses[1], 0.0)

        def repeat(row: Array) -> Array:
            return xp.broadcast_to(row, (rows.count, row.shape[0]))

        before = rows.summaries[:, :BEFORE_LOSS]
        after = rows.summaries[:, BEFORE_LOSS:-1]
        inputs = [repeat(shared.message), before, repeat(xp.stack(losses)), after]
        inputs = xp.concat(inputs, axis=1)
        out = layers.lstm(xp, theta["lstm"], inputs, rows.carried)
        said = layers.affine(xp, theta["to_all"], out.hidden)
        num = max(rows.count, 1)
        size = xp.sqrt(1e-8 + xp.sum(rows.summaries[:, -1]) / num)
        moved = RNNMLPShared(
            steps=shared.steps + 1.0,
            message=xp.sum(said, axis=0) / num,
            train=train,
            valid=shared.valid,
            grad_size=CLIP_DECAY * shared.grad_size + (1.0 - CLIP_DECAY) * size,
        )
        times = time_features.sine_of_step(xp, shared.steps)
        size_of_all = xp.constant((math.log(num) - 1.0,))
        return Advance(
            moved,
            xp.constant(self.config.step_mult),
            carried=out,
            told={"message": layers.affine(xp, theta["to_mlp"], out.hidden)},
            common={"constants": xp.concat([times, size_of_all])},
        )

    def step(
        self,
        xp: Ops,
        theta: Any,
        at: StepContext,
        grad: Array,
        state: RNNMLPState,
        param: Array,
    ) -> Steps:
        c, place, told = self.config, at.place, at.told["message"]
        momenta, seconds = _accumulate(xp, place, state, grad)
        inverse = xp.rsqrt(seconds + 1e-6)
        stacks = (momenta, seconds, momenta * inverse, inverse)
        channels = [
            *(grad, param, xp.log(xp.abs(param) + 1e-8)),
            *(place.layer(x, k) for x in stacks for k in range(len(DECAYS))),
        ]
        squares = yield [
            place.total_square(xp, x) for x in (*channels, xp.clip(param, -HUGE, HUGE))
        ]
        norm = xp.sqrt(squares.pop())
        scales = [layers.unit_scale(xp, s / place.size) for s in squares]
        lead, common = place.lead(grad), at.common["constants"]
        own = [xp.log(norm + 1e-8), 0.0 * norm + math.log(place.size)]
        constants = [
            xp.broadcast_to(common, (*lead, *common.shape)),
            xp.stack(own, axis=-1),
            told,
        ]
        told = xp.concat(constants, axis=-1)
        mlp = xp.element_mlp(place, theta["net"], scales, told)
        direction, magnitude, *said = mlp(channels)
        said = yield [place.total(xp, x) for x in said]
        message = xp.stack(said, axis=-1) / place.size
        if not math.prod(place.shape):
            message = state.message
        delta = -direction * xp.exp(c.exp_mult * magnitude) * c.step_mult
        delta = layers.hold_unreached(xp, place, delta, momenta, seconds)
        return delta, RNNMLPState(momenta, seconds, message)

    def observe_validation(
        self, xp: Ops, shared: RNNMLPShared, loss: Array
    ) -> RNNMLPShared:
        """It counts as a step for the time features, as in the published code."""
        valid = loss_normalizer.update(xp, shared.valid, loss, VALID_DECAY)
        return shared._replace(steps=shared.steps + 1.0, valid=valid)

    def translate_published(self, arrays: dict[str, Any]) -> dict[str, Any]:
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


def _accumulate(
    xp: Ops, place: Place, state: RNNMLPState, grad: Array
) -> tuple[Array, Array]:
    column = place.per_layer(xp.constant(DECAYS))
    grad = place.layered(grad)
    return (
        xp.ema(state.momenta, grad, column),
        xp.ema(state.seconds, xp.square(grad), column),
    )
