"""Learned optimizers for PyTorch: the same weights and numbers as in JAX, without JAX.

import lopax.torch

optimizer = lopax.torch.Celo(model.parameters(), num_steps=2_000)
for batch in batches:
    loss = loss_fn(model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(loss=loss)
"""

from __future__ import annotations

from typing import Any

from lopax._core.registry import Registry, by_rule
from lopax._core.routing import Route
from lopax._core.warned import (
    GrowthWarning,
    HorizonWarning,
    LopaxWarning,
    SkippedWarning,
    StepSizeWarning,
)
from lopax.rules import (
    adafac_mlp,
    celo,
    celo2,
    celo_adam,
    hypers,
    l2o_gru,
    l2o_lstm,
    learned_muon,
    mulo,
    nn_adam,
    optim4rl,
    plain_mlp,
    rnn_mlp,
    star,
    velo,
)
from lopax.torch.errors import (
    BackendUnavailable,
    HorizonNotGiven,
    LossNotGiven,
    UnsupportedParameter,
    WeightsNotGiven,
)
from lopax.torch.optimizer import Info, LearnedOptimizer


class Celo(LearnedOptimizer):
    """Celo; see `LearnedOptimizer` for the arguments and `lopax.rules.celo` for the
    rule. Needs `num_steps`, and the loss at every step."""

    rule_class = celo.Celo


class CeloAdam(LearnedOptimizer):
    """Celo-Adam; see `LearnedOptimizer` for the arguments and `lopax.rules.celo_adam`
    for the rule. Needs `num_steps`, and the loss at every step. The bundled weights'
    steps are too large for transformers: begin with lr=0.3 there; a warning says so
    where a name tells of attention."""

    rule_class = celo_adam.CeloAdam


class Celo2(LearnedOptimizer):
    """Celo2; see `LearnedOptimizer` for the arguments and `lopax.rules.celo2` for the
    rule. Pass `model.named_parameters()`, or groups with a `role`: matrices, vectors
    and embeddings are treated differently. `lr` and its schedule are yours."""

    rule_class = celo2.Celo2


class Celo2Base(LearnedOptimizer):
    """Celo2 with the learned rule for every parameter, not orthogonalised; see
    `lopax.rules.celo2`."""

    rule_class = celo2.Celo2Base


class VeLO(LearnedOptimizer):
    """VeLO; see `LearnedOptimizer` for the arguments and `lopax.rules.velo` for the
    rule. Needs `num_steps`, and the loss at every step."""

    rule_class = velo.VeLO


Velo = VeLO
"""The name it had before."""


class AdafacMLP(LearnedOptimizer):
    """Adafac-MLP; see `LearnedOptimizer` for the arguments and
    `lopax.rules.adafac_mlp` for the rule."""

    rule_class = adafac_mlp.AdafacMLP


class MuLO(LearnedOptimizer):
    """µLO; see `LearnedOptimizer` for the arguments and `lopax.rules.mulo` for the
    rule. Pass the model, or `model.named_parameters()`: hidden matrices and other
    parameters are treated differently."""

    rule_class = mulo.MuLO


class STAR(LearnedOptimizer):
    """STAR; see `LearnedOptimizer` for the arguments and `lopax.rules.star` for the
    rule."""

    rule_class = star.STAR


class LearnedMuon(LearnedOptimizer):
    """Learned Muon; see `lopax.rules.learned_muon` for the rule and
    `LearnedOptimizer` for the arguments. Needs `num_steps`. Pass the model, or
    `model.named_parameters()`: matrices, vectors and embeddings are treated
    differently."""

    rule_class = learned_muon.LearnedMuon


class PlainMLP(LearnedOptimizer):
    """Plain MLP; see `lopax.rules.plain_mlp` for the rule and
    `LearnedOptimizer` for the arguments."""

    rule_class = plain_mlp.PlainMLP


class RNNMLP(LearnedOptimizer):
    """RNN-MLP; see `lopax.rules.rnn_mlp` for the rule and
    `LearnedOptimizer` for the arguments. Needs the loss at every step,
    and now and then `observe_validation`."""

    rule_class = rnn_mlp.RNNMLP


class NNAdam(LearnedOptimizer):
    """NN-Adam; see `lopax.rules.nn_adam` for the rule and
    `LearnedOptimizer` for the arguments."""

    rule_class = nn_adam.NNAdam


class L2OLSTM(LearnedOptimizer):
    """The LSTM of learning to learn; see `lopax.rules.l2o_lstm` for the rule and
    `LearnedOptimizer` for the arguments."""

    rule_class = l2o_lstm.L2OLSTM


class L2OGRU(LearnedOptimizer):
    """A coordinate-wise GRU; see `lopax.rules.l2o_gru` for the rule and
    `LearnedOptimizer` for the arguments."""

    rule_class = l2o_gru.L2OGRU


class LearnedSGD(LearnedOptimizer):
    """Heavy-ball momentum with learned settings; see `lopax.rules.hypers` for the
    rule and `LearnedOptimizer` for the arguments."""

    rule_class = hypers.LearnedSGD


class LearnedAdam(LearnedOptimizer):
    """Adam with learned settings; see `lopax.rules.hypers` for the rule and
    `LearnedOptimizer` for the arguments."""

    rule_class = hypers.LearnedAdam


class ScheduledAdam(LearnedOptimizer):
    """Adam with learned settings and schedule; see `lopax.rules.hypers` for the rule
    and `LearnedOptimizer` for the arguments. Needs `num_steps`."""

    rule_class = hypers.ScheduledAdam


class Optim4RL(LearnedOptimizer):
    """Optim4RL; see `lopax.rules.optim4rl` for the rule and
    `LearnedOptimizer` for the arguments."""

    rule_class = optim4rl.Optim4RL


class LinearOptim(LearnedOptimizer):
    """Optim4RL's ablation without Adam's form; see `lopax.rules.optim4rl` for the
    rule and `LearnedOptimizer` for the arguments."""

    rule_class = optim4rl.LinearOptim


class L2LGD2(LearnedOptimizer):
    """One learned rate per element; see `lopax.rules.optim4rl` for the rule and
    `LearnedOptimizer` for the arguments."""

    rule_class = optim4rl.L2LGD2


RULES: Registry[type[LearnedOptimizer]] = Registry("optimizer for PyTorch")
"""Architecture names to optimizer classes; a further rule is one more entry."""
for _name, _optimizer in by_rule(LearnedOptimizer, globals()).items():
    RULES.add(_name, _optimizer)


def optimizer(name: str, params: Any, **options: Any) -> LearnedOptimizer:
    """The optimizer class called `name` (as in `lopax.optimizer`), on `params`.

    Raises `UnknownName` (near matches), and what `LearnedOptimizer` raises.
    """
    return RULES[name](params, **options)


__all__ = [
    "L2LGD2",
    "L2OGRU",
    "L2OLSTM",
    "RNNMLP",
    "RULES",
    "STAR",
    "AdafacMLP",
    "BackendUnavailable",
    "Celo",
    "Celo2",
    "Celo2Base",
    "CeloAdam",
    "GrowthWarning",
    "HorizonNotGiven",
    "HorizonWarning",
    "Info",
    "LearnedAdam",
    "LearnedMuon",
    "LearnedOptimizer",
    "LearnedSGD",
    "LinearOptim",
    "LopaxWarning",
    "LossNotGiven",
    "MuLO",
    "NNAdam",
    "Optim4RL",
    "PlainMLP",
    "Route",
    "ScheduledAdam",
    "SkippedWarning",
    "StepSizeWarning",
    "UnsupportedParameter",
    "VeLO",
    "Velo",
    "WeightsNotGiven",
    "optimizer",
]
