"""What is true of every rule that is told once for both frameworks."""

from __future__ import annotations

import ast
import contextlib
import inspect
from pathlib import Path

import pytest
import rule_table
import torch

import lopax.rules
import lopax.torch as lt
from lopax.architectures import ARCHITECTURES, architecture
from lopax.rules.ops import Ops

FOLDER = Path(lopax.rules.__file__).parent
FRAMEWORKS = {"jax", "jaxtyping", "torch", "optax", "flax"}


def test_no_rule_imports_a_framework_or_is_long() -> None:
    for file in FOLDER.rglob("*.py"):
        text = file.read_text()
        assert text.count("\n") <= 300, file
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {n.split(".")[0] for n in names} & FRAMEWORKS, file


def test_a_rule_is_the_same_in_both_frameworks() -> None:
    """One class of rule, so one configuration and one set of names."""
    in_torch = rule_table.rules("torch")
    for name, rule in rule_table.rules("jax").items():
        if rule is None:
            assert rule_table.why_not("torch", name, "plain")
            continue
        assert ARCHITECTURES[name].config is rule.config_class
        assert rule.name == name
        assert in_torch[name] is rule


@pytest.mark.parametrize("name", rule_table.names("torch"))
def test_the_table_of_backends_is_what_the_drivers_say(name: str) -> None:
    from torch_common import SETTINGS, make, needs_compiler

    needs_compiler()
    settings = SETTINGS.get(name, {})
    for backend in ("plain", "fused"):
        param = torch.nn.Parameter(torch.ones(3, 2))
        param.grad = torch.ones(3, 2)
        why = rule_table.why_not("torch", name, backend, **settings)
        told = contextlib.nullcontext()
        if why:
            told = pytest.raises(lt.BackendUnavailable, match=name)
        with told:
            make(name, [param], backend=backend).step(loss=1.0)
        if why is None and backend == "fused":
            architecture(name, backend=backend)


def test_both_frameworks_have_all_the_arithmetic() -> None:
    from lopax.architectures.jax_ops import JaxOps
    from lopax.torch.ops import TorchOps

    wanted = {k for k, v in vars(Ops).items() if inspect.isfunction(v) and k[0] != "_"}
    for ops in (JaxOps, TorchOps):
        assert wanted <= set(dir(ops)), wanted - set(dir(ops))
