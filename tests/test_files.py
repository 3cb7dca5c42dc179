"""Files: what is written is read back exactly, damage is noticed, nothing is half
written."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from shared_files import shared

import lopax
from lopax._core.errors import (
    ConfigError,
    FileFormatError,
    StructureMismatch,
    UnknownName,
)
from lopax.pretrained import atomic_write, flax_msgpack, read_arrays, write_arrays


@pytest.fixture
def theta():
    return lopax.architecture("celo_adam", lstm=3).init_theta(jax.random.key(0))


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_theta_round_trip_with_settings(tmp_path, theta):
    rule = lopax.architecture("celo_adam", lstm=3)
    lopax.save_theta(tmp_path / "w.safetensors", theta, rule, licence="MIT")
    assert same(theta, lopax.load_theta(tmp_path / "w.safetensors"))
    header = read_arrays(tmp_path / "w.safetensors").header
    assert (header["architecture"], header["config"]["lstm"]) == ("celo_adam", 3)
    assert header["licence"] == "MIT"
    # The saved settings come with the weights: lstm=3 is not said again.
    opt = lopax.optimizer("celo_adam", weights=tmp_path / "w.safetensors", num_steps=10)
    params = {"w": jnp.ones((2, 2))}
    opt.update(params, opt.init(params), params, value=1.0)


def test_weights_of_another_architecture_are_refused(tmp_path, theta):
    path = tmp_path / "w.safetensors"
    lopax.save_theta(path, theta, lopax.architecture("celo_adam", lstm=3))
    with pytest.raises(ConfigError, match="for architecture 'celo_adam', not 'celo'"):
        lopax.optimizer("celo", weights=path, num_steps=10)


@pytest.mark.parametrize("keep", [0, 7, 100, -5])
def test_truncated_files_are_refused(tmp_path, theta, keep):
    path = tmp_path / "w.safetensors"
    lopax.save_theta(path, theta, lopax.architecture("celo_adam", lstm=3))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match=r"w\.safetensors"):
        lopax.load_theta(path)


def test_a_flipped_bit_is_noticed(tmp_path, theta):
    path = tmp_path / "w.safetensors"
    lopax.save_theta(path, theta, lopax.architecture("celo_adam", lstm=3))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="checksum"):
        lopax.load_theta(path)


def test_foreign_and_newer_files_are_refused(tmp_path):
    save_file({"x": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FileFormatError, match="not one of lopax"):
        lopax.load_theta(tmp_path / "other.safetensors")
    import json

    from safetensors.numpy import save

    text = json.dumps({"schema": 99})
    (tmp_path / "new.safetensors").write_bytes(save({}, {"lopax": text}))
    with pytest.raises(FileFormatError, match="pip install -U lopax"):
        lopax.load_theta(tmp_path / "new.safetensors")


def test_missing_files_names_and_folders(tmp_path):
    with pytest.raises(FileFormatError, match="no file at"):
        lopax.load_theta(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileFormatError, match="is a folder"):
        lopax.load_theta(tmp_path)
    with pytest.raises(UnknownName, match="unknown weights 'clo'"):
        lopax.load_theta("clo")


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "x.bin"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_states_keep_scalars_dtypes_keys_and_namedtuples(tmp_path):
    opt = lopax.optimizer(
        "celo_adam",
        theta=lopax.architecture("celo_adam").init_theta(jax.random.key(0)),
        num_steps=5,
    )
    params = {"w": jnp.ones((2, 3)), "s": jnp.zeros(())}
    state = (opt.init(params), jax.random.key(7), jnp.zeros((2,), jnp.bfloat16))
    lopax.save_state(tmp_path / "s.safetensors", state)
    back = lopax.load_state(tmp_path / "s.safetensors", state)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    a, b = jax.random.normal(state[1]), jax.random.normal(back[1])
    assert a == b
    assert same(state[0], back[0])
    assert back[2].dtype == jnp.bfloat16
    with pytest.raises(StructureMismatch, match="expected"):
        lopax.load_state(tmp_path / "s.safetensors", (state[0],))


def test_zero_dimensional_and_empty_arrays(tmp_path):
    arrays = {"a": np.float32(3.0), "b": np.zeros((0, 4), np.int32)}
    write_arrays(tmp_path / "a.safetensors", arrays, {"note": 1})
    file = read_arrays(tmp_path / "a.safetensors")
    assert file.arrays["a"].shape == ()
    assert file.arrays["b"].shape == (0, 4)


def test_published_weights_load_by_structure():
    for name in ("celo", "celo_adam"):
        path = shared("weights", name, "theta.state")
        theta = lopax.load_theta(path)
        named = lopax.load_theta(path, name)
        assert same(theta, named)
        assert jax.tree.structure(theta) == jax.tree.structure(
            lopax.architecture(name).init_theta(jax.random.key(0))
        )


def msgpack_array(x: np.ndarray) -> bytes:
    """One array as Flax writes it, by hand."""

    def text(s: str) -> bytes:
        return bytes([0xA0 | len(s)]) + s.encode()

    shape = bytes([0x90 | x.ndim]) + bytes(x.shape)
    raw = x.tobytes()
    payload = b"\x93" + shape + text(x.dtype.name) + b"\xc5"
    payload += len(raw).to_bytes(2, "big") + raw
    return b"\xc8" + len(payload).to_bytes(2, "big") + b"\x01" + payload


def test_flax_msgpack_reader(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = b"\x81\xa1a\x82\xa3b/c" + msgpack_array(x) + b"\xa1d" + msgpack_array(x[0])
    path = tmp_path / "theta.state"
    path.write_bytes(data)
    found = flax_msgpack.read(path)
    np.testing.assert_array_equal(found["a/b/c"], x)
    np.testing.assert_array_equal(found["a/d"], x[0])
    for cut in (0, 1, 5, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(FileFormatError):
            flax_msgpack.read(path)
