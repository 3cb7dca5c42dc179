"""What goes wrong in the PyTorch interface, said in PyTorch's terms."""

from __future__ import annotations

from collections.abc import Sequence

from lopax._core.errors import LopaxError, MissingHorizon, MissingLoss, UnknownName


class LossNotGiven(MissingLoss):
    """`step()` of a loss-conditioned rule was called without the loss."""

    def __init__(self, rule: str):
        TypeError.__init__(
            self,
            f"{rule!r} looks at the loss of every step, and step() was called without "
            "it. Give it in one of three ways:\n"
            "    optimizer.step(loss=loss)          # in your own loop\n"
            "    optimizer.observe(loss)            # anywhere before step()\n"
            "    optimizer.step(closure)            # a closure that returns the loss\n"
            "In the Hugging Face Trainer lopax.torch.hugging_face.attach does it.",
        )


class HorizonNotGiven(MissingHorizon):
    """The length of the run was not given to a rule that follows it."""

    def __init__(self, rule: str):
        TypeError.__init__(
            self,
            f"{rule!r} needs the number of optimizer steps of the whole run: "
            f"lopax.torch.optimizer({rule!r}, params, num_steps=2_000)",
        )


class WeightsNotGiven(UnknownName):
    """A rule without bundled weights was made without meta-parameters."""

    def __init__(self, rule: str, bundled: Sequence[str]):
        LookupError.__init__(
            self,
            f"there are no bundled weights for {rule!r} (there are for: "
            f"{', '.join(bundled) or 'none'}). Pass a weights file, "
            f"lopax.torch.optimizer({rule!r}, params, weights='theta.safetensors'), "
            "or arrays in memory, theta={...}",
        )
        self.kind, self.name, self.near = "weights", rule, []


class UnsupportedParameter(LopaxError, TypeError):
    """A parameter, a gradient or a sharding this optimizer cannot treat rightly."""


class BackendUnavailable(LopaxError, RuntimeError):
    """`backend="fused"` was asked for and cannot be had; the message says why.

    `expected`: nothing is broken, there is only no such kernel here.
    """

    def __init__(self, reason: str, expected: bool = True):
        super().__init__(reason)
        self.expected = expected
