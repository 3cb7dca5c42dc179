"""What an optimizer says by itself, once each, when a run trains nothing.

In every step it looks at the host's own counters, and only in every tenth at what is on
the device. A GPU is not waited for: what it reports is read ten steps later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lopax._core.sizes import SizeBounds, limited_size
from lopax._core.suspicions import ATTENTION_FACTORS, attention_in, of_attention
from lopax._core.warned import (
    GrowthWarning,
    HorizonWarning,
    SkippedWarning,
    StepSizeWarning,
    far_from_one,
    say,
)
from lopax.torch import finite
from lopax.torch.groups import called, named
from lopax.torch.plain import Entry
from lopax.torch.rule import Rule

Groups = Sequence[dict[str, Any]]
WINDOW = 10
"""Steps between two looks at the device."""
GROWN = 80.0
"""Growth is reported from this many times the largest size that a rule follows."""


class Watch:
    """What one optimizer has seen and said."""

    def __init__(self) -> None:
        self._said: set[Any] = set()
        self._idle = 0  # steps in a row in which no parameter had a gradient
        self._unmoved = 0  # steps so far, as long as all gradients were zero
        self.restart()

    def attention(self, name: str, groups: Groups) -> None:
        """Warns of attention under bundled weights whose steps are too large for it."""
        if name not in ATTENTION_FACTORS:
            return
        full = [g for g in groups if float(g["lr"]) == 1.0 and "initial_lr" not in g]
        part = attention_in([n for g in full for _, n in named(g) if n])
        if part and self._first("attention"):
            say(of_attention(name, part, "lr"), StepSizeWarning)

    def restart(self) -> None:
        """After a state was loaded: its counters are read anew."""
        self._made = -1  # steps, counted on the host; -1: not read yet
        self._end = 0
        self._seen = (0, 0)  # steps made and steps skipped, at the last look
        self._streak = 0
        self._held: Tensor | None = None
        self._on_its_way: tuple[int, Tensor] | None = None

    def after_step(
        self,
        rule: Rule,
        shared: Mapping[str, Tensor],
        entries: Sequence[Entry],
        groups: Groups,
        held: Tensor,
    ) -> None:
        """To be called when a step is done; warns where there is a reason to.

        `held`: [] bool, its loss and gradients were finite and its result was not.
        """
        self._held = held
        self._idle = 0
        if 0 <= self._unmoved < WINDOW and finite.can_ask(held):
            self._zero(entries)
        if self._made < 0:
            self._made = int(shared["iteration"]) - 1
            self._end = int(shared["num_steps"]) if rule.needs_horizon else 0
            if self._made:
                self._seen = (self._made + 1, int(shared["skipped"]))
            self._rates(rule, groups, written=False)
        self._made += 1
        if self._end and self._made > self._end and self._first("end"):
            say(
                f"step {self._made} of a run of {self._end}: {rule.name!r} stays at "
                "the end of its schedule, where steps are small or nothing. Make the "
                "optimizer with the number of steps the whole run has.",
                HorizonWarning,
            )
        if self._made == WINDOW * WINDOW:
            self._rates(rule, groups, written=True)
        if self._made % WINDOW == 0:
            self._look(shared["skipped"], groups)
        if self._made >= 64 and not self._made & (self._made - 1):
            self._growth(rule, entries, groups)

    def without_gradients(self, groups: Groups) -> None:
        """To be called instead where no parameter has a gradient."""
        self._idle += 1
        if self._idle == WINDOW and any(g["params"] for g in groups):
            say(
                f"{WINDOW} steps in a row found no gradient at any parameter of this "
                "optimizer, and changed nothing. Were the model's parameters replaced "
                "after it was made (load_state_dict(assign=True), a copy, a wrapper), "
                "or zero_grad() called between backward() and step()?",
                SkippedWarning,
            )

    def _zero(self, entries: Sequence[Entry]) -> None:
        """Warns if no matrix (or if there is none, nothing) ever had a gradient other
        than zero."""
        whole = [e for e in entries if e.sharding is None and e.grad.numel()]
        seen = [e for e in whole if e.param.ndim > 1] or whole
        if not seen or any(bool(e.grad.any()) for e in seen):
            self._unmoved = -1
            return
        self._unmoved += 1
        if self._unmoved == WINDOW:
            what = "weight matrix" if seen[0].param.ndim > 1 else "parameter"
            say(
                f"the gradient of every {what} was exactly zero in the first {WINDOW} "
                "steps, so that none is trained. Is the loss cut off from them "
                "(detach), do several layers in a row start at zero, or did gradients "
                "underflow in half precision (GradScaler)?",
                SkippedWarning,
            )

    def _first(self, key: Any) -> bool:
        new = key not in self._said
        self._said.add(key)
        return new

    def _rates(self, rule: Rule, groups: Groups, written: bool) -> None:
        """Of a scheduled rate what it is a multiple of counts; what a program writes
        into the groups itself (`written`) may be a warm-up, and is not looked at in
        the first steps."""
        for group in groups:
            scheduled = "initial_lr" in group
            if written and scheduled:
                continue
            # OneCycleLR begins with a fraction of what it goes up to.
            start = group["initial_lr" if scheduled else "lr"]
            lr = float(group.get("max_lr", start) if scheduled else start)
            if far_from_one(lr) and self._first("lr"):
                say(
                    f"lr = {lr:g}: for {rule.name!r} lr is a factor on every step, "
                    "not a learning rate, and 1.0 is what the rule was trained for. "
                    "Leave lr out, or tune it around 1.",
                    StepSizeWarning,
                )

    def _look(self, skipped: Tensor, groups: Groups) -> None:
        if skipped.device.type != "cuda":
            self._judge(self._made, int(skipped), groups)
            return
        if self._on_its_way is not None:
            made, count = self._on_its_way
            self._judge(made, int(count), groups)
        host = torch.empty((), dtype=skipped.dtype, device="cpu", pin_memory=True)
        self._on_its_way = self._made, host.copy_(skipped, non_blocking=True)

    def _judge(self, made: int, skipped: int, groups: Groups) -> None:
        steps, bad = made - self._seen[0], skipped - self._seen[1]
        self._seen = made, skipped
        self._streak = self._streak + bad if bad == steps else 0
        if self._streak < WINDOW:
            return
        if self._first(("skipped", int(math.log10(self._streak)))):
            if self._held is not None and bool(self._held):
                what = "led out of the numbers' range: there, parameters stay. Is lr, "
                what += "or a parameter, very large?"
            else:
                what = "were skipped and changed nothing: "
                what += f"{_what_is_not_finite(groups)} is not finite."
            say(f"{self._streak} steps in a row {what}", SkippedWarning)

    def _growth(self, rule: Rule, entries: Sequence[Entry], groups: Groups) -> None:
        bounds = getattr(rule.config, "bounds", None)
        if not isinstance(bounds, SizeBounds) or "growth" in self._said:
            return
        whole = [e for e in entries if e.sharding is None and e.param.numel()]
        if not whole:
            return
        sizes = [e.param.detach().float().square().mean().sqrt() for e in whole]
        usual = [limited_size(e.place.shape, e.place.matrix) for e in whole]
        grown = [s.item() / u for s, u in zip(sizes, usual, strict=True)]
        worst = max(range(len(whole)), key=lambda i: grown[i])
        if not grown[worst] > GROWN:
            return
        self._said.add("growth")
        name = next(
            label
            for label, param in _labelled(groups)
            if param is whole[worst].param or param.shape == whole[worst].param.shape
        )
        say(
            f"{name} is {grown[worst]:.0f} times as large as such a parameter usually "
            "starts. Has the loss no lower bound (a critic's, a GAN's)? Steps of "
            f"{rule.name!r} follow a parameter's size; use a rule whose steps do not, "
            "such as 'learned_muon' with lr=0.1.",
            GrowthWarning,
        )


def _what_is_not_finite(groups: Groups) -> str:
    for label, param in _labelled(groups):
        grad = param.grad
        if grad is not None and not bool(torch.isfinite(grad).all()):
            return f"the gradient of {label}"
    return "the loss"


def _labelled(groups: Groups) -> Iterator[tuple[str, Tensor]]:
    """Parameters with a name for messages."""
    for number, group in enumerate(groups):
        for i, (param, name) in enumerate(named(group)):
            yield f"{called(name, number, i)}, shape {tuple(param.shape)},", param
