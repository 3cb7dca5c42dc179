"""Whatever writes a file says clearly where it cannot, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopax
from lopax._core import atomic, jsonl
from lopax._core.errors import ConfigError, LopaxError, NotWritable
from lopax._core.single_writer import single_writer
from lopax.cli.failures import explain as told
from lopax.cli.submission import write_submission
from lopax.data import store as data_store
from lopax.evaluate import Store
from lopax.evaluate.report import pages
from lopax.meta import run_folder
from lopax.pretrained import hub, read_weights, write_arrays


def save_theta(path: Path) -> None:
    rule = lopax.architecture("learned_sgd")
    lopax.save_theta(path, {k: jnp.zeros(()) for k in _names(rule)}, rule)


def _names(rule: Any) -> list[str]:
    return list(jax.eval_shape(rule.init_theta, jax.random.key(0)))


FILES: dict[str, Callable[[Path], Any]] = {
    "save_state": lambda p: lopax.save_state(p, {"x": jnp.ones(2)}),
    "save_theta": save_theta,
    "write_arrays": lambda p: write_arrays(p, {"x": np.ones(2)}, {}),
    "page": lambda p: pages.write_page(p, "text"),
    "archive of data": lambda p: data_store.write_npz(p, {"x": np.ones(2)}),
    "text of data": lambda p: data_store.write_text(p, b"text"),
    "log": lambda p: jsonl.append_line(p, {"a": 1}),
}
FOLDERS: dict[str, Callable[[Path], Any]] = {
    "store": lambda p: Store(p).put("key", {}, {"x": np.ones(2)}),
    "failure in a store": lambda p: Store(p).put_failure("key", {}, "text"),
    "single writer": lambda p: single_writer(p).__enter__(),
    "card": lambda p: hub.write_card(p, read_weights("celo").header, None),
    "submission": lambda p: write_submission(read_weights("celo"), p),
    "comparison of torch": lambda p: _compare_in_torch(p),
}


def _compare_in_torch(folder: Path) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'lopax[torch]'")
    from lopax.torch.comparison import compare

    def never(*_: Any) -> Any:
        raise AssertionError("a run was begun")

    compare(never, [0], never, ["adam"], num_steps=5, folder=folder)


def refused(write: Callable[[Path], Any], path: Path, root: Path) -> NotWritable:
    before = set(root.rglob("*"))
    with pytest.raises(NotWritable, match="cannot be written") as caught:
        write(path)
    assert set(root.rglob("*")) == before
    error = caught.value
    assert isinstance(error, LopaxError) and isinstance(error, OSError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert told(error) == (str(error), 2)
    return error


@pytest.mark.parametrize("what", FILES)
def test_a_file_where_none_can_be(what: str, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder.safetensors", tmp_path / "file"
    folder.mkdir()
    file.write_text("mine")
    error = refused(FILES[what], folder, tmp_path)
    assert "there is a folder of that name" in str(error) and str(folder) in str(error)
    refused(FILES[what], tmp_path / f"{'x' * 300}.safetensors", tmp_path)
    below = file / "a.safetensors"
    assert "a file is where a folder" in str(refused(FILES[what], below, tmp_path))
    assert file.read_text() == "mine"


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_where_none_can_be(what: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below", tmp_path / ("x" * 300)):
        try:
            refused(FOLDERS[what], path, tmp_path)
        except ConfigError as error:  # checked before anything is written
            assert str(path) in str(error)
    assert file.read_text() == "mine"


def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(named: bool) -> None:
        with atomic.atomic_write(path) as temporary:
            temporary.write_text("new")
            of = [os.fspath(temporary)] if named else []
            raise OSError(errno.ENOSPC, "No space left", *of)

    for named in (False, True):
        with pytest.raises(NotWritable, match=r"a\.txt cannot .*[Ss]pace") as caught:
            write(named)
        assert told(caught.value)[1] == 1
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_errors_about_other_files_stay_what_they_are(tmp_path: Path) -> None:

    def copy() -> None:
        with atomic.atomic_write(tmp_path / "a") as temporary:
            temporary.write_text((tmp_path / "nowhere").read_text())

    with pytest.raises(FileNotFoundError, match="nowhere"):
        copy()
    with pytest.raises(BrokenPipeError), atomic.atomic_write(tmp_path / "a"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert not list(tmp_path.iterdir())


READERS: dict[str, Callable[[Path], Any]] = {
    "load_state": lambda p: lopax.load_state(p, {"x": jnp.ones(2)}),
    "load_theta": lambda p: lopax.load_theta(p),
    "log": lambda p: jsonl.read_lines(p),
    "run": lambda p: run_folder.read_config(p),
    "store": lambda p: Store(p).get("key"),
}


@pytest.mark.parametrize("what", READERS)
def test_what_cannot_be_read_is_named(what: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    (folder / "config.json").mkdir()
    for path in (folder, file / "below.safetensors", tmp_path / ("x" * 300)):
        with pytest.raises(LopaxError, match=r"folder|below|xxx"):
            READERS[what](path)
