"""What belongs to the repository: recipes found from everywhere, the site's sources."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import draw_house
import draw_scores
import notebooks
import public
import pytest

import lopax
from lopax import meta
from lopax._core.errors import FileFormatError
from lopax.meta import recipes
from lopax.meta.loop import initial_theta

ROOT = Path(__file__).parents[1]


def test_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(recipes.list_recipes()) > 20
    run = meta.load_recipe("recipes/celo.toml")
    assert run.start_from == "recipes/states/celo_falling.safetensors"
    initial_theta(run)
    with pytest.raises(FileFormatError, match=r"no recipe at .*recipes/celo2\.toml"):
        meta.load_recipe("recipes/cello.toml")


def test_every_recipe_finds_what_it_starts_from():
    runs = [meta.load_recipe(path) for path in sorted(ROOT.glob("recipes/*.toml"))]
    starting = [run for run in runs if run.start_from is not None]
    assert len(starting) > 5
    for run in starting:
        initial_theta(run)


def test_nothing_that_a_run_writes_is_kept():
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository: nothing says which files are kept")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    written = (".run.json", ".npz", ".lock", "report.html", "metrics.jsonl")
    meant = ("tests/", "lopax/evaluate/shipped/")
    kept = [n for n in listed.stdout.splitlines() if not n.startswith(meant)]
    assert kept and [n for n in kept if n.endswith(written)] == []


def test_a_file_where_one_stands_comes_before_the_installed_recipe(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "celo.toml").write_text('name = "mine"')
    assert meta.load_recipe("recipes/celo.toml").name == "mine"


def test_the_picture_of_the_house_is_that_of_the_code():
    drawn = draw_house.draw(draw_house.imports())
    assert draw_house.PICTURE.read_text() == drawn, "run python tools/draw_house.py"


def test_the_picture_of_the_scores_is_that_of_the_table():
    rows = draw_scores.scores((ROOT / "README.md").read_text())
    assert len(rows) >= 5
    drawn = draw_scores.draw(rows)
    assert draw_scores.PICTURE.read_text() == drawn, "run python tools/draw_scores.py"
    with pytest.raises(ValueError, match="no table of scores"):
        draw_scores.scores("# lopax\n\n## Results\n\nNone yet.\n")


def test_the_house_has_no_circle_and_arrows_that_follow_are_left_out():
    graph = {"a": set(), "b": {"a"}, "c": {"a", "b"}}
    assert draw_house.reduced(graph) == {"a": set(), "b": {"a"}, "c": {"b"}}
    assert draw_house.floors(graph) == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(RecursionError):
        draw_house.floors({"a": {"b"}, "b": {"a"}})


@pytest.mark.parametrize("package", public.PACKAGES)
def test_public_names_have_a_home_and_a_docstring(package):
    names = public.names_of(package)
    assert names
    for name in names:
        found = public.tree_of(name.module)
        assert re.search(rf"\b{name.name}\b", ast_names(found)), name
        assert public.summary(name.module, name.name), f"{name}: say what it is"


def ast_names(tree: ast.Module) -> str:
    """Everything a module defines or assigns, in one text."""
    targets = [
        t.id
        for n in ast.walk(tree)
        if isinstance(n, (ast.Assign, ast.AnnAssign))
        for t in (n.targets if isinstance(n, ast.Assign) else [n.target])
        if isinstance(t, ast.Name)
    ]
    return " ".join([*targets, *(getattr(n, "name", "") or "" for n in ast.walk(tree))])


def test_names_of_a_lazy_package_are_those_of_the_package():
    expected = {n for n in lopax.__all__ if not n.startswith("__")}
    expected = {n for n in expected if public.source_of(f"lopax.{n}") is None}
    # lopax.optax and lopax.torch are packages; the rest are names.
    assert {n.name for n in public.names_of("lopax")} == expected


def test_a_function_called_like_its_module_is_public():
    names = {n.public: n.canonical for n in public.names_of("lopax.evaluate")}
    assert names["lopax.evaluate.compare"] == "lopax.evaluate.compare.compare"
    assert "lopax.evaluate.run" in names


def test_percent_files_become_markdown():
    source = '"""About."""\n# %% [markdown]\n# # Title\n#\n# Text.\n# %%\nx = 1\n# %%\n'
    assert notebooks.markdown(source) == "# Title\n\nText.\n\n```python\nx = 1\n```"


def test_versions_agree():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited is not None
    assert cited[1] == lopax.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) >= {"docs", "hub", "test", "dev"}


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed"
)
def test_names_in_text_become_links_and_those_in_code_do_not():
    import site_pages

    site_pages._known.update({"lopax.optimizer"})
    block = "\n```\n`lopax.optimizer`\n```\n"
    linked = site_pages.link_names(f"`lopax.optimizer` `lopax.nope`{block}")
    assert linked == f"[`lopax.optimizer`][lopax.optimizer] `lopax.nope`{block}"
