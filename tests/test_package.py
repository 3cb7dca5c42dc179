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
    "blocks": {"_core"},
    "pretrained": {"_core"},
    "data": {"_core"},
    "architectures": {"_core", "native", "nets", "blocks", "rules"},
    "theta": {"_core", "architectures", "pretrained", "_version"},
    "tasks": {"_core", "nets", "data", "architectures"},
    "estimators": {"_core"},
    "meta": {
        "_core", "_version", "architectures", "estimators", "tasks", "pretrained",
        "theta",
    },
    "optax": {"_core", "architectures", "blocks", "pretrained", "rules", "theta"},
    "inventory": {
        "_core", "architectures", "blocks", "pretrained", "tasks", "theta",
    },
    "statistics": {"_core"},
    "torch": {"_core", "_version", "native", "pretrained", "rules", "statistics"},
    "evaluate": {
        "_core", "_version", "architectures", "tasks", "pretrained", "theta", "optax",
        "statistics",
    },
    "analysis": {
        "_core", "_version", "architectures", "blocks", "evaluate", "nets", "rules",
        "tasks",
    },
    "reproductions": {
        "_core", "analysis", "architectures", "estimators", "evaluate", "meta", "tasks",
        "theta",
    },
}  # fmt: skip

ROOMS = {
    "evaluate": (
        "fingerprint", "specs", "problem", "hybrids", "baselines", "refs", "runs",
        "results", "report", "judge", "compare", "__init__",
    ),
}  # fmt: skip
"""Of parts with rooms: what stands further up may import what stands further down."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in ROOT.rglob("*.py")}


def modules(path: Path) -> set[str]:
    """lopax modules a file imports, at any depth of nesting, type checking aside."""
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
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            inner = {f"{node.module}.{a.name}" for a in node.names}
            found |= {m if m in MODULES else node.module or "" for m in inner}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found & MODULES.keys()


def imports(path: Path) -> set[str]:
    """lopax parts a file imports."""
    return {m.split(".")[1] for m in modules(path) if "." in m}


@pytest.mark.parametrize("part", BELOW)
def test_arrows_point_downward(part: str):
    folder = ROOT / part
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    used = set()
    for file in files:
        used |= imports(file)
        wrong = imports(file) - BELOW[part] - {part}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"
    unused = BELOW[part] - used
    assert not unused, f"{part} may import {sorted(unused)} and does not"


@pytest.mark.parametrize("part", ROOMS)
def test_rooms_of_a_part_stand_on_those_below(part: str):
    order = {room: i for i, room in enumerate(ROOMS[part])}

    def room(module: str) -> str:
        inside = module.split(".")[2:]
        return inside[0] if inside else "__init__"

    there = {m: file for m, file in MODULES.items() if m.split(".")[1:2] == [part]}
    assert {room(m) for m in there} == set(order)
    for module, file in there.items():
        for other in modules(file) & there.keys() - {module}:
            assert order[room(other)] <= order[room(module)], f"{module} -> {other}"


def test_no_modules_import_each_other_in_a_circle():
    left = {m: modules(file) - {m} for m, file in MODULES.items()}
    while free := {m for m, used in left.items() if not used & left.keys()}:
        left = {m: used for m, used in left.items() if m not in free}
    assert not left, f"circles among {sorted(left)}"


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
                assert node.func.id not in ("eval", "exec"), file


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
