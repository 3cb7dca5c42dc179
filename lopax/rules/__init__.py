"""Rules told once for JAX and PyTorch: one file each, importing neither.

`form` says what a rule is, `ops` what arithmetic it may use. The drivers that run one
are `lopax.architectures.described` (JAX) and `lopax.torch.rule`.
"""
