"""Numbers from training curves: scores, aggregates, intervals and tests.

numpy only, so that comparisons in JAX (`lopax.evaluate`) and in PyTorch
(`lopax.torch.comparison`) choose learning rates and judge by the same lines. The names
meant for users are those of `lopax.evaluate`.
"""
