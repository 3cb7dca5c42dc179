"""Pieces that several architectures share: accumulators, features, schedulers."""
