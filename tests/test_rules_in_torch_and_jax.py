"""What is true of every rule that is told once for both frameworks."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import lopax.rules
import lopax.torch as lt
from lopax.architectures import ARCHITECTURES
from lopax.architectures.described import Described
from lopax.rules.ops import Ops

FOLDER = Path(lopax.rules.__file__).parent
FRAMEWORKS = {"jax", "jaxtyping", "torch", "optax", "flax"}


def test_no_rule_imports_a_framework_or_is_long() -> None:
    for file in FOLDER.rglob("*.py"):
        text = file.read_text()
        assert text.count("\n") <= 300 or file.name == "learned_muon.py", file
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {n.split(".")[0] for n in names} & FRAMEWORKS, file


def test_a_rule_is_the_same_in_both_frameworks() -> None:
    """One class of rule, so one configuration and one set of names."""
    for name, entry in ARCHITECTURES._entries.items():
        if not issubclass(entry.make, Described):
            continue
        rule = entry.make.rule_class
        assert entry.config is rule.config_class
        assert rule.name == name
        assert lt.RULES[name].rule_class is rule


def test_both_frameworks_have_all_the_arithmetic() -> None:
    from lopax.architectures.jax_ops import JaxOps
    from lopax.torch.ops import TorchOps

    wanted = {k for k, v in vars(Ops).items() if inspect.isfunction(v) and k[0] != "_"}
    for ops in (JaxOps, TorchOps):
        assert wanted <= set(dir(ops)), wanted - set(dir(ops))
