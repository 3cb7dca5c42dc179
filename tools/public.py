"""What is public in lopax, read from the source without importing it.

Public is what stands in the `__all__` of one of the packages below. Everything here is
text: the documentation is built where neither JAX nor torch is installed.
"""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

# The packages users import from, in the order of the reference.
PACKAGES = (
    "lopax",
    "lopax.optax",
    "lopax.torch",
    "lopax.torch.hugging_face",
    "lopax.torch.comparison",
    "lopax.architectures",
    "lopax.estimators",
    "lopax.tasks",
    "lopax.tasks.rl",
    "lopax.tasks.suites",
    "lopax.data",
    "lopax.meta",
    "lopax.meta.distributed",
    "lopax.evaluate",
    "lopax.analysis",
    "lopax.reproductions",
    "lopax.pretrained",
)


class Name(NamedTuple):
    """A public name and where it is defined."""

    package: str  # the package it is imported from
    name: str
    module: str  # the module that defines it

    @property
    def public(self) -> str:
        return f"{self.package}.{self.name}"

    @property
    def canonical(self) -> str:
        return f"{self.module}.{self.name}"


def source_of(module: str) -> Path | None:
    """The file of a module, or None if there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module; raises `FileNotFoundError`."""
    file = source_of(module)
    if file is None:
        raise FileNotFoundError(f"there is no module {module}")
    return ast.parse(file.read_text(encoding="utf-8"))


def summary(module: str, name: str | None = None) -> str:
    """The first sentence of a docstring, on one line; "" without one."""
    tree = tree_of(module)
    node: ast.AST | None = tree
    if name is not None:
        node = next(
            (n for n in ast.walk(tree) if getattr(n, "name", None) == name), None
        )
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    text = ast.get_docstring(node) if isinstance(node, kinds) else None
    if node is None and name is not None:
        text = _below(tree, name)
    first = " ".join((text or "").split("\n\n")[0].split())
    return first.split(". ")[0].rstrip(".:")


def _below(tree: ast.Module, name: str) -> str | None:
    """The string under the assignment to `name` in a module."""
    for line, following in itertools.pairwise(tree.body):
        if not isinstance(following, ast.Expr) or name not in _targets(line):
            continue
        if isinstance(following.value, ast.Constant):
            return str(following.value.value)
    return None


def _targets(node: ast.stmt) -> list[str]:
    """The names that an assignment gives a value."""
    found = node.targets if isinstance(node, ast.Assign) else []
    found = [node.target] if isinstance(node, ast.AnnAssign) else found
    return [target.id for target in found if isinstance(target, ast.Name)]


def about(module: str) -> str:
    """The whole docstring of a module; "" without one."""
    return ast.get_docstring(tree_of(module)) or ""


def names_of(package: str) -> list[Name]:
    """The public names of a package, without its subpackages and `__version__`.

    A module without `__all__` offers what it defines itself without an underscore.
    """
    tree = tree_of(package)
    exported = _exported(tree)
    origin = _imports(tree)
    found = []
    for name in exported if exported is not None else _defined(tree):
        is_module = name not in origin and source_of(f"{package}.{name}")
        if name.startswith("__") or is_module:
            continue
        found.append(Name(package, name, _definer(origin.get(name, package), name)))
    return found


def _definer(module: str, name: str) -> str:
    """Follows re-exports to the module that defines a name."""
    tree = tree_of(module)
    further = _imports(tree).get(name)
    return module if further is None else _definer(further, name)


def _imports(tree: ast.Module) -> dict[str, str]:
    """name -> module, for the imports of lopax (those for type checkers, too)."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lopax")
        for alias in node.names
        if node.module and not source_of(f"{node.module}.{alias.name}")
    }


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            return ast.literal_eval(node.value)
    return None


def _defined(tree: ast.Module) -> list[str]:
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [
        n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")
    ]
