"""The rules of `lopax.rules` for torch."""

from __future__ import annotations

from lopax.rules import hypers, learned_muon, nn_adam, optim4rl, plain_mlp, rnn_mlp
from lopax.torch.described import Described


class LearnedMuonRule(Described):
    """See `lopax.rules.learned_muon`."""

    rule_class = learned_muon.LearnedMuon


class PlainMLPRule(Described):
    """See `lopax.rules.plain_mlp`."""

    rule_class = plain_mlp.PlainMLP


class RNNMLPRule(Described):
    """See `lopax.rules.rnn_mlp`."""

    rule_class = rnn_mlp.RNNMLP


class NNAdamRule(Described):
    """See `lopax.rules.nn_adam`."""

    rule_class = nn_adam.NNAdam


class LearnedSGDRule(Described):
    """See `lopax.rules.hypers`."""

    rule_class = hypers.LearnedSGD


class LearnedAdamRule(Described):
    """See `lopax.rules.hypers`."""

    rule_class = hypers.LearnedAdam


class ScheduledAdamRule(Described):
    """See `lopax.rules.hypers`."""

    rule_class = hypers.ScheduledAdam


class Optim4RLRule(Described):
    """See `lopax.rules.optim4rl`."""

    rule_class = optim4rl.Optim4RL


class LinearOptimRule(Described):
    """See `lopax.rules.optim4rl`."""

    rule_class = optim4rl.LinearOptim


class L2LGD2Rule(Described):
    """See `lopax.rules.optim4rl`."""

    rule_class = optim4rl.L2LGD2
