"""The rules of `lopax.rules` as learned optimizers for JAX."""

from __future__ import annotations

from lopax.architectures.described import Described
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


class Celo(Described):
    """See `lopax.rules.celo`."""

    rule_class = celo.Celo


class CeloAdam(Described):
    """See `lopax.rules.celo_adam`."""

    rule_class = celo_adam.CeloAdam


class Celo2(Described):
    """See `lopax.rules.celo2`."""

    rule_class = celo2.Celo2


class Celo2Base(Described):
    """See `lopax.rules.celo2`."""

    rule_class = celo2.Celo2Base


class VeLO(Described):
    """See `lopax.rules.velo`."""

    rule_class = velo.VeLO


class AdafacMLP(Described):
    """See `lopax.rules.adafac_mlp`."""

    rule_class = adafac_mlp.AdafacMLP


class PlainMLP(Described):
    """See `lopax.rules.plain_mlp`."""

    rule_class = plain_mlp.PlainMLP


class MuLO(Described):
    """See `lopax.rules.mulo`."""

    rule_class = mulo.MuLO


class LearnedMuon(Described):
    """See `lopax.rules.learned_muon`."""

    rule_class = learned_muon.LearnedMuon


class STAR(Described):
    """See `lopax.rules.star`."""

    rule_class = star.STAR


class RNNMLP(Described):
    """See `lopax.rules.rnn_mlp`."""

    rule_class = rnn_mlp.RNNMLP


class NNAdam(Described):
    """See `lopax.rules.nn_adam`."""

    rule_class = nn_adam.NNAdam


class L2OLSTM(Described):
    """See `lopax.rules.l2o_lstm`."""

    rule_class = l2o_lstm.L2OLSTM


class L2OGRU(Described):
    """See `lopax.rules.l2o_gru`."""

    rule_class = l2o_gru.L2OGRU


class LearnedSGD(Described):
    """See `lopax.rules.hypers`."""

    rule_class = hypers.LearnedSGD


class LearnedAdam(Described):
    """See `lopax.rules.hypers`."""

    rule_class = hypers.LearnedAdam


class ScheduledAdam(Described):
    """See `lopax.rules.hypers`."""

    rule_class = hypers.ScheduledAdam


class Optim4RL(Described):
    """See `lopax.rules.optim4rl`."""

    rule_class = optim4rl.Optim4RL


class LinearOptim(Described):
    """See `lopax.rules.optim4rl`."""

    rule_class = optim4rl.LinearOptim


class L2LGD2(Described):
    """See `lopax.rules.optim4rl`."""

    rule_class = optim4rl.L2LGD2
