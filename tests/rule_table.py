"""The one table of tests: which rule runs in which framework by which backend.

It is read off the registries and the rules, so that a new rule is in all tests that
take their parameters from here; where a combination does not exist it says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lopax._core.config import from_dict
from lopax.native.coverage import not_covered
from lopax.rules.element_rule import ElementRule
from lopax.rules.form import Rule

BACKENDS = ("plain", "fused", "triton")
"""The rule's own arithmetic, the C core on a CPU, the kernels for CUDA."""
TRITON = ("celo", "celo_adam")
"""Rules that kernels for CUDA were written for."""


def rules(framework: str) -> Mapping[str, type[Rule] | None]:
    """By name; None for a rule that is told in JAX alone."""
    if framework == "torch":
        import lopax.torch as lt

        return {name: lt.RULES[name].rule_class for name in lt.RULES}
    from lopax.architectures import ARCHITECTURES

    made = {name: ARCHITECTURES[name].make for name in ARCHITECTURES}
    return {name: getattr(make, "rule_class", None) for name, make in made.items()}


def why_not(framework: str, name: str, backend: str, **settings: Any) -> str | None:
    """Why there is no such combination; None if there is."""
    known = rules(framework)
    if name not in known:
        return f"{name!r} is not told for {framework}"
    if backend == "plain":
        return None
    if backend == "triton":
        if framework == "torch" and name in TRITON:
            return None
        return f"no kernel for CUDA was written for {name!r} in {framework}"
    rule = known[name]
    if rule is None or not issubclass(rule, ElementRule):
        return f"the step of {name!r} is not an element network's"
    made = rule(from_dict(rule.config_class, settings, where=name))
    nets = {made.element_net(role) for role in made.roles or ("",)} - {None}
    return next((why for net in nets if net and (why := not_covered(net))), None)


def rows(framework: str, *backends: str) -> list[tuple[str, str]]:
    """(name, backend) for all there are, of these backends."""
    return [
        (name, backend)
        for backend in backends
        for name in rules(framework)
        if why_not(framework, name, backend) is None
    ]


def names(framework: str, backend: str = "plain") -> tuple[str, ...]:
    return tuple(name for name, _ in rows(framework, backend))


def jax_backends(name: str) -> list[dict[str, Any]]:
    """Settings of an architecture for each backend that there is on this machine."""
    from lopax.native import xla

    if why_not("jax", name, "fused"):
        return [{}]
    kinds = ("plain", "fused") if xla.why_not(4) is None else ("plain",)
    return [{"backend": kind} for kind in kinds]
