"""The rules of `lopax.rules` for torch."""

from __future__ import annotations

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
from lopax.torch.rule import Rule


class CeloRule(Rule):
    """See `lopax.rules.celo`."""

    rule_class = celo.Celo


class CeloAdamRule(Rule):
    """See `lopax.rules.celo_adam`."""

    rule_class = celo_adam.CeloAdam


class Celo2Rule(Rule):
    """See `lopax.rules.celo2`."""

    rule_class = celo2.Celo2


class Celo2BaseRule(Rule):
    """See `lopax.rules.celo2`."""

    rule_class = celo2.Celo2Base


class VeLORule(Rule):
    """See `lopax.rules.velo`."""

    rule_class = velo.VeLO


class AdafacMLPRule(Rule):
    """See `lopax.rules.adafac_mlp`."""

    rule_class = adafac_mlp.AdafacMLP


class MuLORule(Rule):
    """See `lopax.rules.mulo`."""

    rule_class = mulo.MuLO


class STARRule(Rule):
    """See `lopax.rules.star`."""

    rule_class = star.STAR


class LearnedMuonRule(Rule):
    """See `lopax.rules.learned_muon`."""

    rule_class = learned_muon.LearnedMuon


class PlainMLPRule(Rule):
    """See `lopax.rules.plain_mlp`."""

    rule_class = plain_mlp.PlainMLP


class RNNMLPRule(Rule):
    """See `lopax.rules.rnn_mlp`."""

    rule_class = rnn_mlp.RNNMLP


class NNAdamRule(Rule):
    """See `lopax.rules.nn_adam`."""

    rule_class = nn_adam.NNAdam


class LearnedSGDRule(Rule):
    """See `lopax.rules.hypers`."""

    rule_class = hypers.LearnedSGD


class LearnedAdamRule(Rule):
    """See `lopax.rules.hypers`."""

    rule_class = hypers.LearnedAdam


class ScheduledAdamRule(Rule):
    """See `lopax.rules.hypers`."""

    rule_class = hypers.ScheduledAdam


class Optim4RLRule(Rule):
    """See `lopax.rules.optim4rl`."""

    rule_class = optim4rl.Optim4RL


class LinearOptimRule(Rule):
    """See `lopax.rules.optim4rl`."""

    rule_class = optim4rl.LinearOptim


class L2LGD2Rule(Rule):
    """See `lopax.rules.optim4rl`."""

    rule_class = optim4rl.L2LGD2


class L2OLSTMRule(Rule):
    """See `lopax.rules.l2o_lstm`."""

    rule_class = l2o_lstm.L2OLSTM


class L2OGRURule(Rule):
    """See `lopax.rules.l2o_gru`."""

    rule_class = l2o_gru.L2OGRU
