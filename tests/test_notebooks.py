"""The notebooks run from top to bottom, at reduced length, and their pictures are kept
in the site."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_notebook_runs(path, tmp_path, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is missing")
    if "torch" in path.stem:
        pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOPAX_SHORT", "1")
    monkeypatch.setenv("LOPAX_PICTURES", str(tmp_path))
    try:
        runpy.run_path(str(path))
    finally:
        pyplot.close("all")
    assert capsys.readouterr().out.strip()
    kept = re.findall(r"\((\.\./pictures/notebooks/(\w+\.svg))\)", path.read_text())
    assert kept, "a notebook keeps a picture"
    for where, name in kept:
        assert (tmp_path / name).exists(), f"{path.name} does not draw {name}"
        assert (path.parent / where).exists(), f"docs lack {name}: see its first cell"
