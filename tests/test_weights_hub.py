"""Weights on the Hugging Face Hub: addresses, folders to upload, the cache offline."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lopax
from lopax._core.errors import ConfigError, FileFormatError, MissingExtra
from lopax.cli.main import main
from lopax.pretrained import hub, read_weights
from lopax.rules.celo2 import Celo2Config

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://me/celo", ("me/celo", None, "model.safetensors")),
        ("hf://me/celo@v1.0", ("me/celo", "v1.0", "model.safetensors")),
        ("hf://a-b/c_d.e/celo/theta.state", ("a-b/c_d.e", None, "celo/theta.state")),
        ("hf://me/x@main/w.safetensors", ("me/x", "main", "w.safetensors")),
    ],
)
def test_addresses(text, address):
    assert hub.parse(text) == address


@pytest.mark.parametrize("text", ["hf://", "hf://me", "hf://me/", "hf://me/a@", "hf:a"])
def test_bad_addresses_are_told_what_a_good_one_is(text):
    with pytest.raises(ConfigError, match="write hf://owner/name"):
        hub.parse(text)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lopax\[hub\]'"):
        lopax.load_theta("hf://me/celo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Bundled weights as a folder to upload, made by the command line."""
    target = tmp_path_factory.mktemp("hub") / "celo2"
    assert main(["convert", "celo2", str(target), "--to", "hub-folder"]) == 0
    return target


def test_a_folder_holds_the_weights_and_their_card(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "model.safetensors",
    ]
    bundled = read_weights("celo2")
    written = read_weights(folder)  # a folder stands for the weights in it
    assert written.header["architecture"] == "celo2"
    config, before = written.header["config"], bundled.header["config"]
    assert config.items() >= before.items()
    defaults = Celo2Config()  # of settings younger than the weights
    assert all(config[k] == getattr(defaults, k) for k in config.keys() - before.keys())
    assert written.header.get("recipe") == bundled.header.get("recipe")
    for name, array in bundled.arrays.items():
        np.testing.assert_array_equal(written.arrays[name], array)
    card = (folder / "README.md").read_text()
    head = re.match(r"---\n(.*?)\n---\n", card, re.S)
    assert head is not None
    assert "library_name: lopax" in head[1]
    assert '- "celo2"' in head[1]
    assert lopax.pretrained.weights_card("celo2").rstrip() in card
    assert 'lopax.optimizer("celo2", weights="hf://OWNER/NAME"' in card


def test_a_file_without_a_card_gets_one_from_its_header(tmp_path, folder):
    source, target = tmp_path / "mine.safetensors", tmp_path / "out"
    source.write_bytes((folder / "model.safetensors").read_bytes())
    argv = ["convert", str(source), str(target), "--to", "hub-folder"]
    assert main([*argv, "--licence", "MIT"]) == 0
    card = (target / "README.md").read_text()
    assert 'license: "mit"' in card
    assert json.dumps("cosine") in card  # the saved settings
    source.with_suffix(".md").write_text("# Mine\n\nMade yesterday.\n")
    assert main(argv) == 0
    assert "Made yesterday." in (target / "README.md").read_text()


def cached(home: Path, folder: Path) -> None:
    """A folder as huggingface_hub keeps it after a download."""
    repo = home / "hub" / "models--someone--celo2-test"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (repo / "refs").mkdir()
    for name in ("main", "v1"):
        (repo / "refs" / name).write_text(COMMIT)


def test_the_cache_is_used_without_a_network(tmp_path, folder):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    cached(tmp_path, folder)
    code = """
from lopax.pretrained import read_weights
from lopax._core.errors import FileFormatError
for name in ("hf://someone/celo2-test", "hf://someone/celo2-test@v1"):
    print(read_weights(name).header["checksum"])
for name in ("hf://someone/else", "hf://someone/celo2-test/none.safetensors"):
    try:
        read_weights(name)
    except FileFormatError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second, nothing, no_file = done.stdout.strip().split("\n")
    assert first == second == read_weights(folder).header["checksum"]
    assert "cannot get 'hf://someone/else'" in nothing
    assert "cannot get 'hf://someone/celo2-test/none.safetensors'" in no_file


def test_an_optimizer_from_a_downloaded_folder(folder):
    opt = lopax.optimizer("celo2", weights=folder, num_steps=10)
    assert opt.init({"w": np.zeros((3, 3), np.float32)}) is not None
    empty = folder.parent / "empty"
    empty.mkdir(exist_ok=True)
    with pytest.raises(FileFormatError, match="is a folder"):
        read_weights(empty)
