"""The shape of the package: arrows, light imports, honest registries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lopax

ROOT = Path(lopax.__file__).parent
BELOW = {
    "_core": set(),
    "rules": {"_core"},
    "native": {"_core", "rules"},
    "nets": {"_core"},
    "blocks": {"_core", "native", "nets", "rules"},
    "pretrained": {"_core"},
    "data": {"_core"},
    "architectures": {"_core", "native", "nets", "blocks", "rules"},
    "theta": {"_core", "architectures", "pretrained", "_version"},
    "tasks": {"_core", "nets", "data", "architectures"},
    "estimators": {"_core", "tasks", "architectures"},
    "meta": {
        "_core", "_version", "architectures", "estimators", "tasks", "pretrained",
        "theta",
    },
    "optax": {"_core", "architectures", "blocks", "pretrained", "rules", "theta"},
    "inventory": {
        "_core", "architectures", "blocks", "pretrained", "tasks", "theta",
    },
    "torch": {"_core", "_version", "native", "pretrained", "rules"},
    "evaluate": {
        "_core", "_version", "architectures", "data", "tasks", "pretrained", "theta",
        "optax",
    },
    "analysis": {
        "_core", "_version", "architectures", "blocks", "evaluate", "nets",
        "pretrained", "rules", "tasks", "theta",
    },
    "reproductions": {
        "_core", "analysis", "architectures", "evaluate", "meta", "tasks", "theta",
    },
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """lopax parts a file imports, at any depth of nesting, type checking aside."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, ast.ImportFrom) and module.startswith("lopax"):
            parts = module.split(".")
            found |= {parts[1]} if parts[1:] else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "lopax" and parts[1:]:
                    found.add(parts[1])
    return found


@pytest.mark.parametrize("part", BELOW)
def test_arrows_point_downward(part: str):
    folder = ROOT / part
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    for file in files:
        wrong = imports(file) - BELOW[part] - {part}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_command_line_is_a_leaf():
    for file in ROOT.rglob("*.py"):
        inside = file.relative_to(ROOT).parts[0]
        if inside not in ("cli", "__main__.py"):
            assert "cli" not in imports(file), file


def test_no_star_imports_eval_pickle_or_huge_files():
    for file in ROOT.rglob("*.py"):
        text = file.read_text()
        tree = ast.parse(text)
        assert text.count("\n") <= 400, f"{file.name} has over 400 lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert all(a.name != "*" for a in node.names), file
                assert node.module not in ("pickle", "cloudpickle"), file
            if isinstance(node, ast.Import):
                assert all(a.name not in ("pickle", "gin") for a in node.names), file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "globals_"), file


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_is_light():
    heavy = "{'jax', 'torch', 'matplotlib', 'sklearn', 'flax', 'rich', 'tyro'}"
    assert python(f"import sys, lopax; print({heavy} & set(sys.modules))") == "set()"


def test_public_names_resolve():
    for name in lopax.__all__:
        if name != "torch":
            assert getattr(lopax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = lopax.nope
