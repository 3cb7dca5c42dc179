"""What the pages show works: Python blocks run, commands exist, recipes load."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import ROOT, Block, blocks, pages, run

from lopax import evaluate
from lopax.cli import listing
from lopax.cli.main import COMMANDS
from lopax.meta import recipes
from lopax.tasks.suites import list_suites

# Packages that readers of some pages have and others do without.
OPTIONAL = (
    "torch", "flax", "equinox", "orbax", "transformers", "lightning", "peft", "timm",
    "gymnax", "keras", "huggingface_hub", "pytorch_optimizer",
)  # fmt: skip
_IMPORT = re.compile(r"^\s*(?:import|from) (\w+)(\.torch\b)?|\b(lopax\.torch)\b", re.M)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix(""))


def with_language(*languages: str) -> list[Any]:
    return [
        pytest.param(page, id=name_of(page))
        for page in pages()
        if any(b.language in languages for b in blocks(page))
    ]


def missing(block: Block) -> str | None:
    """An optional package that the block imports and that is not here."""
    for name, of_torch, whole in _IMPORT.findall(block.code):
        wanted = "torch" if of_torch or whole else name
        if wanted in OPTIONAL and importlib.util.find_spec(wanted) is None:
            return wanted
    return None


@pytest.mark.parametrize("page", with_language("python"))
def test_python_blocks_run(page, tmp_path, monkeypatch, shortened):
    del shortened
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    space: dict[str, Any] = {"__name__": "__page__"}
    ran, lacking = 0, set()
    for block in blocks(page):
        if block.language != "python" or block.not_run is not None:
            continue
        if missing(block) is not None:
            lacking.add(missing(block))
            continue
        try:
            run(page, block, space)
        except NameError as error:  # defined in a block that was left out?
            if not lacking:
                raise
            pytest.skip(f"{sorted(lacking)} not installed; {ran} blocks ran ({error})")
        ran += 1
    if lacking:
        pytest.skip(f"{sorted(lacking)} not installed; {ran} blocks ran")
    assert ran or all(b.not_run for b in blocks(page) if b.language == "python")
    if page.stem == "use_in_jax":
        assert space["accuracy"] > 0.9


@pytest.fixture
def shortened(monkeypatch):
    """Comparisons of hours become seconds; their arguments are still checked."""
    compare, bench = evaluate.compare, evaluate.bench
    problems = evaluate.suite_problems
    learned = {"celo", "celo2", "celo_adam"}

    def short_compare(*args: Any, **kwargs: Any) -> Any:
        asked = inspect.signature(compare).bind(*args, **kwargs).arguments
        names = asked.get("optimizers", ())
        specs = evaluate.optimizer_specs(list(names))
        few = [n for n in names if n in learned][:1]
        short = {"num_steps": 5, "seeds": 1, "measure_cost": False}
        assert specs
        return compare(
            asked["problem"],
            [*few, "sgd@0.1"],
            reference="sgd@0.1",
            folder=asked.get("folder", "comparison"),
            **short,
        )

    def short_bench(*args: Any, **kwargs: Any) -> Any:
        asked = inspect.signature(bench).bind(*args, **kwargs)
        assert asked.arguments["suite"] in list_suites()
        return short_compare("quadratic", asked.arguments["optimizers"])

    def short_problems(*args: Any, **kwargs: Any) -> Any:
        inspect.signature(problems).bind(*args, **kwargs)
        return [evaluate.task_problem("quadratic", evaluate.RunConfig(num_steps=5))]

    monkeypatch.setattr(evaluate, "bench", short_bench)
    monkeypatch.setattr(evaluate, "compare", short_compare)
    monkeypatch.setattr(evaluate, "suite_problems", short_problems)
    if importlib.util.find_spec("torch") is not None:
        from lopax.torch import comparison

        whole = comparison.compare

        def short_torch(*args: Any, **kwargs: Any) -> Any:
            asked = inspect.signature(whole).bind(*args, **kwargs)
            asked.arguments |= {"num_steps": 2, "seeds": 1, "optimizers": ["celo"]}
            asked.arguments |= {"reference": "celo", "report": False}
            return whole(*asked.args, **asked.kwargs)

        monkeypatch.setattr(comparison, "compare", short_torch)


@pytest.mark.parametrize("page", with_language("toml"))
def test_toml_blocks_parse(page):
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.code)


@pytest.mark.parametrize("page", with_language("bash"))
def test_commands_exist(page):
    """Commands of lopax, the files of the repository they name, and what they list."""
    for block in blocks(page):
        if block.language != "bash":
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for word in words:
                if word.startswith(("recipes/", "benchmarks/", "examples/", "tools/")):
                    assert recipes.find(ROOT / word).exists(), line
            for called in re.split(r"&&|\|", " ".join(words)):
                command, *rest = called.split() or [""]
                if command != "lopax" or rest[:1] == ["--version"]:
                    continue
                assert rest[0] in COMMANDS, line
                assert rest[0] != "list" or rest[1] in listing.LISTS, line


@pytest.mark.parametrize("page", [pytest.param(p, id=name_of(p)) for p in pages()])
def test_links_and_pictures(page):
    """Files that are linked exist; pictures say in words what they show."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    generated = ("contributing.md", "reference/", "notebooks/", "architectures/index")
    for shown, target in re.findall(r"!?\[([^\]]*)\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|#|mailto:", target):
            continue
        file = (page.parent / target.split("#")[0]).resolve()
        made = any(str(file).startswith(f"{ROOT}/docs/{g}") for g in generated)
        assert file.exists() or made, (target, shown)
    for alt in re.findall(r"!\[([^\]]*)\]\(", text):
        assert len(alt.split()) >= 4, f"say what {alt!r} shows"


@pytest.mark.parametrize("page", [pytest.param(p, id=name_of(p)) for p in pages()])
def test_names_exist(page):
    """`lopax.some.name` in the text is a name of the package."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for name in sorted(set(re.findall(r"`(lopax(?:\.\w+)+)", text))):
        if name.startswith("lopax.torch"):
            pytest.importorskip("torch")
        assert resolves(name), f"there is no {name}"


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        module = ".".join(parts[:size])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
