"""Damaged, forged and foreign files: one specific error, never another theta."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hostile_cases import header_of, loaded, mutants, with_header
from shared_files import golden, part, shared

import lopax
from lopax._core.errors import (
    ConfigError,
    FileFormatError,
    LopaxError,
    NonFiniteTheta,
    StructureMismatch,
)
from lopax.data import load
from lopax.pretrained import flax_msgpack, list_weights, read_arrays, write_arrays
from lopax.pretrained.files import SCHEMA, checksum
from lopax.theta import load_optimizer

ROOT = Path(lopax.__file__).parents[1]
WEIGHTS = ROOT / "lopax" / "pretrained" / "weights"
FILES = [*WEIGHTS.glob("*.safetensors"), *(ROOT / "recipes").rglob("*.safetensors")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_our_own_files_have_the_wide_checksum(path):
    file = read_arrays(path)
    assert file.header["schema"] == SCHEMA
    load_optimizer(file, None, {})


@pytest.mark.parametrize("name", list_weights())
def test_no_damaged_byte_is_overlooked(tmp_path, name):
    data = (WEIGHTS / f"{name}.safetensors").read_bytes()
    path, original = tmp_path / "w.safetensors", lopax.load_theta(name)
    found = collections.Counter()
    for what, damaged in mutants(data, 150, seed=1):
        path.write_bytes(damaged)
        outcome = loaded(path, original)
        found[outcome] += 1
        assert outcome == "refused", (what, outcome)
    assert found["refused"] == 150


def test_no_bit_of_the_saved_settings_is_overlooked(tmp_path):
    data = (WEIGHTS / "celo2.safetensors").read_bytes()
    path = tmp_path / "w.safetensors"
    start, end = data.index(b'\\"config\\"'), data.index(b'\\"inner_steps\\"')
    assert end - start > 300
    for at in range(start, end, 3):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError):
            lopax.load_theta(path)


HEADERS = ["{", "[]", "null", "1", '"text"', "[" * 100_000 + "]" * 100_000, ""]
HEADERS += ['{"a":' + "9" * 5_000 + "}", '{"schema": 1e999}', '{"schema": true}']
CHANGES = [
    {"schema": "1"},
    {"schema": 0},
    {"schema": -1},
    {"schema": None},
    {"schema": 1},
    {"config": [1]},
    {"config": None},
    {"config": {"step_mult": 10**400}},
    {"architecture": 1},
    {"extra": 1},
]


def test_headers_of_any_content_are_one_error(tmp_path):
    data = (WEIGHTS / "celo.safetensors").read_bytes()
    path = tmp_path / "w.safetensors"
    texts = HEADERS + [json.dumps({**header_of(data), **c}) for c in CHANGES]
    for text in texts:
        path.write_bytes(with_header(data, text))
        with pytest.raises(FileFormatError, match=r"w\.safetensors"):
            lopax.load_theta(path)


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"step_mult": 10**400}},
        {"config": {"step_mult": "1"}},
        {"config": {"step_mlut": 1.0}},
        {"config": {"name": "celo"}},
        {"config": [1]},
        {"config": None},
        {"architecture": "nothing"},
        {"architecture": 1},
        {"architecture": None},
    ],
)
def test_forged_headers_with_a_right_checksum_are_checked(tmp_path, change):
    file = read_arrays(WEIGHTS / "celo.safetensors")
    path = tmp_path / "w.safetensors"
    write_arrays(path, file.arrays, {**file.header, **change})
    with pytest.raises(LopaxError):
        lopax.load_theta(path)
    for missing in ("architecture", "config"):
        header = {k: v for k, v in file.header.items() if k != missing}
        write_arrays(path, file.arrays, header)
        with pytest.raises(FileFormatError, match="no weights"):
            lopax.load_theta(path)


def test_files_of_the_first_schema_still_load(tmp_path, monkeypatch):
    file = read_arrays(WEIGHTS / "celo.safetensors")
    text = json.dumps(
        {**file.header, "schema": 1, "checksum": checksum(file.arrays)}, sort_keys=True
    )
    path = tmp_path / "old.safetensors"
    path.write_bytes(with_header((WEIGHTS / "celo.safetensors").read_bytes(), text))
    optimizer, _ = load_optimizer(read_arrays(path), None, {})
    assert optimizer.config.step_mult == file.header["config"]["step_mult"]  # type: ignore[attr-defined]
    assert loaded(path, lopax.load_theta("celo")) == "same"


def test_a_checkpoint_is_no_weights_file(tmp_path):
    lopax.save_state(tmp_path / "s.safetensors", {"x": np.ones(2)})
    with pytest.raises(FileFormatError, match="it is a state"):
        lopax.load_theta(tmp_path / "s.safetensors")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_theta_that_is_not_finite_is_refused_both_ways(tmp_path, bad):
    rule = lopax.architecture("celo_adam", lstm=3)
    theta = rule.init_theta(jax.random.key(0))
    theta = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(bad), theta)
    path = tmp_path / "w.safetensors"
    with pytest.raises(NonFiniteTheta, match="scheduler/"):
        lopax.save_theta(path, theta, rule)
    assert not path.exists()
    lopax.save_theta(path, theta, rule, allow_nonfinite=True)
    with pytest.raises(NonFiniteTheta, match="scheduler/"):
        lopax.load_theta(path)
    with pytest.raises(NonFiniteTheta, match="scheduler/"):
        lopax.optimizer("celo_adam", weights=path, num_steps=10)
    assert loaded(path, theta) == "refused"
    lopax.load_theta(path, allow_nonfinite=True)


def test_a_header_that_is_not_json_is_refused_at_saving(tmp_path):
    rule = lopax.architecture("celo_adam", lstm=3)
    theta = rule.init_theta(jax.random.key(0))
    for value in (float("nan"), object(), {1: {2}}):
        with pytest.raises(ConfigError, match="not JSON"):
            lopax.save_theta(tmp_path / "w.safetensors", theta, rule, result=value)
    assert not list(tmp_path.iterdir())


NESTED = b"\x81\xa1a" * 50_000 + b"\xc0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",
        NESTED,
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff" + b"\x00" * 100,
        b"\xdf\xff\xff\xff\xff" + b"\xa1a\x00" * 100,
        b"\x81\xa1a\xcf" + b"\xff" * 8,
        b"\x81\x91\x00\x00",
        b"\x81\xc0\xc0",
        b"\x81\xa1a\xc7\x00\x02",
        b"\x81\xa1a\xc7\x0a\x01\x93\x91\xff\xa4int8\xc4",
        b"\x82" + b"\xa1a\xc7\x0a\x01\x93\x91\x01\xa4int8\xa1x" * 2,
    ],
)
def test_foreign_msgpack_is_one_error(tmp_path, data):
    path = tmp_path / "theta.state"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"theta\.state"):
        flax_msgpack.read(path)


@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("celo", "celo_random", {}),
        ("celo_adam", "celo_adam_random", {}),
        ("celo2", "celo2", {}),
        ("velo", "velo_s", {"lstm": 64, "bank": 32, "bank_mult": 1.0}),
        ("adafac_mlp", "adafac_mlp", {}),
        ("star", "star", {}),
        ("rnn_mlp", "rnn_mlp", {}),
        ("nn_adam", "nn_adam", {}),
    ],
)
def test_every_published_array_is_accounted_for(name, file, settings):
    arrays = part(golden(file), "theta")
    rule = lopax.architecture(name, **settings)
    rule.theta_from_arrays(arrays)
    for path in arrays:
        renamed = {(k + "x" if k == path else k): v for k, v in arrays.items()}
        with pytest.raises(StructureMismatch):
            rule.theta_from_arrays(renamed)
    with pytest.raises(StructureMismatch, match="another"):
        rule.theta_from_arrays({**arrays, "one_more": np.zeros(3, np.float32)})


def test_a_damaged_published_file_is_no_other_architectures(tmp_path):
    source = shared("weights", "celo", "theta.state")
    data, original = source.read_bytes(), lopax.load_theta(source)
    path, found = tmp_path / "theta.state", collections.Counter()
    names = [i for i in range(len(data)) if data[i : i + 3] in (b"ff_", b"rnn", b"w0_")]
    for at in names[:24]:
        damaged = bytearray(data)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert loaded(path, original) == "refused"
    for what, damaged in mutants(data, 60, seed=2):
        path.write_bytes(damaged)
        outcome = loaded(path, original)
        found[outcome] += 1
        # Published files have no checksum: other numbers cannot be told.
        assert outcome in ("refused", "values", "same"), (what, outcome)
    assert found["refused"] > 20


def test_reading_a_file_runs_nothing(tmp_path):
    """A pickle under our file ending is refused and not loaded."""
    import pickle

    class Attack:
        def __reduce__(self):
            return (print, ("executed",))

    for name in ("w.safetensors", "theta.state"):
        (tmp_path / name).write_bytes(pickle.dumps(Attack()))
        code = f"import lopax; lopax.load_theta({str(tmp_path / name)!r})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert "executed" not in done.stdout
        assert "FileFormatError" in done.stderr


@pytest.mark.parametrize("shape", [(5, 0, 8, 1), (5, 8, 0, 1), (5, 8, 8, 0), (0,), ()])
def test_images_without_a_side_are_refused(tmp_path, shape):
    images, labels = np.zeros(shape, np.uint8), np.zeros(shape[:1], np.int64)
    arrays: dict = {f"{s}_images": images for s in ("train", "test")}
    arrays |= {f"{s}_labels": labels for s in ("train", "test")}
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(FileFormatError, match="no side of them 0"):
        load("mnist", data_dir=tmp_path)
