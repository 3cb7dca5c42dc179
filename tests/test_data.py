"""Data sets: what is loaded, what is refused, how images are prepared."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from made_data import arrays, images
from sklearn import datasets as sklearn_datasets

from lopax import data
from lopax._core.errors import ConfigError, FileFormatError, UnknownName
from lopax.data import coarse, preparation, store


def shared_data() -> Path:
    """The folder with real data sets, if this machine has one."""
    root = os.environ.get("LOPAX_SHARED") or Path(__file__).parents[2] / "shared"
    return Path(root) / "data"


# Embedded sets.


def test_digits_are_scikit_learns_split_once_and_for_all():
    digits, again = data.load("digits"), data.load("digits")
    assert isinstance(digits, data.ImageDataset)
    assert isinstance(again, data.ImageDataset)
    assert digits.train_images.shape == (1438, 8, 8, 1)
    assert digits.test_images.shape == (359, 8, 8, 1)
    assert digits.train_images.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int32
    np.testing.assert_array_equal(digits.train_images, again.train_images)

    source: Any = sklearn_datasets.load_digits()
    pixels = np.round(source.images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    expected = sorted((*p, y) for p, y in zip(pixels, source.target, strict=True))
    both = np.concatenate([digits.train_images, digits.test_images]).reshape(-1, 64)
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    assert sorted((*p, y) for p, y in zip(both, labels, strict=True)) == expected
    assert both.max() == 255 and both.min() == 0
    # Shuffled: the source's order groups writers.
    assert np.any(digits.train_images[:100].reshape(-1, 64) != pixels[:100])


@pytest.mark.parametrize(
    ("name", "total", "features", "classes"),
    [("breast_cancer", 569, 30, 2), ("wine", 178, 13, 3)],
)
def test_vector_sets(name, total, features, classes):
    raw = data.load(name)
    assert isinstance(raw, data.VectorDataset)
    assert len(raw.train_inputs) + len(raw.test_inputs) == total
    assert raw.train_inputs.shape[1] == features and raw.num_classes == classes
    assert set(raw.train_labels) == set(range(classes)) == set(raw.test_labels)

    ready = data.prepare_vectors(name)
    assert ready.train.inputs.dtype == np.float32
    np.testing.assert_allclose(ready.train.inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(ready.train.inputs.std(axis=0), 1, atol=1e-4)
    # Standardised with the train split's numbers, hence not exactly 0 elsewhere.
    assert np.abs(ready.test.inputs.mean(axis=0)).max() > 1e-3


def test_descriptions_are_english_and_cut_without_overlap():
    text = data.load("sklearn_descr")
    assert isinstance(text, data.TextDataset)
    whole = b"".join(x.tobytes() for x in (text.train, text.valid, text.test))
    assert len(whole) > 20_000 and b" the " in text.train.tobytes()
    assert whole.decode("utf-8").count("breast cancer") >= 1
    assert len(text.train) == len(whole) * 18 // 20
    assert min(len(text.valid), len(text.test)) > 500


def test_unknown_name_lists_near_ones():
    with pytest.raises(UnknownName, match="fashion_mnist"):
        data.load("fashion-mnist")


def test_listing_and_availability(tmp_path):
    assert data.list_datasets("cifar*") == ["cifar10", "cifar100", "cifar100_coarse10"]
    assert data.available("digits", data_dir=tmp_path)
    assert not data.available("wikitext2_valid", data_dir=tmp_path)
    for split in ("valid", "test"):
        store.write_text(tmp_path / store.text_file("wikitext2", split), b"some text")
    assert data.available("wikitext2_valid", data_dir=tmp_path)
    assert not data.available("wikitext2", data_dir=tmp_path)
    with pytest.raises(UnknownName):
        data.available("mnits")


def test_data_does_not_import_jax():
    code = "import sys, lopax.data; assert not {'jax', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# CIFAR-100 in ten groups.


def test_groups_are_a_partition():
    fine = [name for group in coarse.COARSE10.values() for name in group]
    assert len(set(fine)) == len(fine) == 100
    assert [len(g) for g in coarse.COARSE10.values()] == [10] * 10
    assert coarse.FINE_NAMES[0] == "apple" and coarse.FINE_NAMES[-1] == "worm"


def test_regrouping_follows_the_files_class_names(tmp_path):
    names = np.random.default_rng(0).permutation(np.asarray(coarse.FINE_NAMES))
    made = arrays(n=200, classes=100) | {"class_names": names}
    store.write_npz(tmp_path / "cifar100_subset.npz", made)
    grouped = data.load("cifar100_coarse10", data_dir=tmp_path)
    assert isinstance(grouped, data.ImageDataset) and grouped.num_classes == 10
    for label, group in zip(made["train_labels"], grouped.train_labels, strict=True):
        assert names[label] in coarse.COARSE10[grouped.class_names[group]]

    store.write_npz(tmp_path / "cifar100.npz", arrays(n=7, classes=100))
    plain = data.load("cifar100_coarse10", data_dir=tmp_path)  # the full file wins
    assert isinstance(plain, data.ImageDataset) and len(plain.train_labels) == 7
    fine = store.read_images("cifar100", 100, tmp_path, ["cifar100.npz"])
    for label, group in zip(fine.train_labels, plain.train_labels, strict=True):
        assert coarse.FINE_NAMES[label] in coarse.COARSE10[plain.class_names[group]]

    bad = images(classes=100)
    bad = dataclasses.replace(bad, class_names=("dog",) * 100)
    with pytest.raises(FileFormatError, match="not CIFAR-100's"):
        coarse.regroup(bad)


# Preparation.


@pytest.mark.parametrize("size", [8, 5, 16, 28, 40])
@pytest.mark.parametrize("native", [28, 32])
def test_resize_is_bilinear_without_antialiasing(native, size):
    batch = arrays(n=3, size=native)["train_images"]
    found = preparation.resize(batch, size, grey=False)
    expected = jax.image.resize(
        batch.astype(np.float32), (3, size, size, 3), "linear", antialias=False
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.asarray(expected) / 255, atol=1e-5)


def test_resize_by_hand():
    row = np.array([0, 10, 20, 30, 40, 50, 60], np.uint8)
    batch = np.tile(row, (1, 7, 1))[..., None]
    # 7 -> 2: centres 0.5 and 1.5 times 3.5, less a half: 1.25 and 4.75.
    found = preparation.resize(batch, 2, grey=True)
    np.testing.assert_allclose(found[0, :, :, 0] * 255, [[12.5, 47.5]] * 2, rtol=1e-6)


def test_grey_is_the_mean_of_the_channels_and_white_is_one():
    batch = np.zeros((1, 4, 4, 3), np.uint8)
    batch[..., 0], batch[..., 1] = 30, 60
    np.testing.assert_allclose(
        preparation.resize(batch, None, True) * 255, 30, rtol=1e-6
    )
    assert preparation.resize(np.full((1, 4, 4, 3), 255, np.uint8), 2, True).max() == 1


def test_chunks_do_not_show(monkeypatch):
    batch = arrays(n=50)["train_images"]
    whole = preparation.resize(batch, 4, True)
    monkeypatch.setattr(preparation, "_CHUNK", 7)
    np.testing.assert_array_equal(preparation.resize(batch, 4, True), whole)


def test_splits_are_disjoint_and_in_order():
    source = images(n=200)
    ready = data.prepare(source, size=None, grey=False)
    sizes = [len(ready.split(s).labels) for s in data.SPLITS]
    assert sizes == [160, 20, 20, 10]
    parts = [ready.train, ready.valid, ready.extra_valid]
    joined = np.concatenate([p.inputs for p in parts])
    np.testing.assert_allclose(joined * 255, source.train_images, atol=1e-4)
    labels = np.concatenate([p.labels for p in parts])
    np.testing.assert_array_equal(labels, source.train_labels)
    np.testing.assert_array_equal(ready.test.labels, source.test_labels)
    with pytest.raises(ConfigError, match="extra_valid"):
        ready.split("validation")


def test_published_one_percent_touches_train_of_two_sets_only():
    for name, train in (("svhn", 3), ("cifar100", 3), ("mnist", 240)):
        whole = data.prepare(images(name, n=300), 4)
        ready = data.prepare(images(name, n=300), 4, published_one_percent=True)
        assert len(whole.train.labels) == 240
        assert len(ready.train.labels) == train
        np.testing.assert_array_equal(ready.train.inputs, whole.train.inputs[:train])
        np.testing.assert_array_equal(ready.valid.inputs, whole.valid.inputs)
        np.testing.assert_array_equal(ready.test.inputs, whole.test.inputs)


def test_named_sets_are_prepared_once_per_folder(tmp_path):
    for seed, folder in enumerate(("a", "b")):
        store.write_npz(tmp_path / folder / "mnist.npz", arrays(seed=seed))
    first = data.prepare("mnist", 4, data_dir=tmp_path / "a")
    assert data.prepare("mnist", 4, data_dir=tmp_path / "a") is first
    assert data.prepare("mnist", 5, data_dir=tmp_path / "a") is not first
    other = data.prepare("mnist", 4, data_dir=tmp_path / "b")
    assert np.any(other.train.inputs != first.train.inputs)


def test_what_cannot_be_prepared():
    with pytest.raises(ConfigError, match="size = 0"):
        data.prepare("digits", 0)
    with pytest.raises(ConfigError, match="image"):
        data.prepare("wine")
    with pytest.raises(ConfigError, match="vector"):
        data.prepare_vectors("digits")
    with pytest.raises(ConfigError, match="too few"):
        data.prepare(images(n=3))


# The real thing, where it is.


@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [
        ("mnist", 60_000, 10_000, (28, 28, 1)),
        ("cifar100_coarse10", 8_000, 1_000, (32, 32, 3)),
    ],
)
def test_real_images(name, train, test, shape):
    if not data.available(name, data_dir=shared_data()):
        pytest.skip(f"{name} is not on this machine")
    real = data.load(name, data_dir=shared_data())
    assert isinstance(real, data.ImageDataset)
    assert real.train_images.shape == (train, *shape)
    assert real.test_images.shape == (test, *shape)
    counts = np.bincount(real.train_labels, minlength=10)
    assert len(counts) == 10 and counts.min() > 0.08 * train
