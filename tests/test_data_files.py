"""Data sets in files: what is refused, what is written, what is fetched."""

from __future__ import annotations

import gzip
import sys
from typing import Any

import numpy as np
import pytest
from made_data import arrays

from lopax import data
from lopax._core.errors import (
    ConfigError,
    DatasetNotFound,
    FileFormatError,
    MissingExtra,
)
from lopax.data import hub, store


def test_missing_file_says_where_and_how(tmp_path, monkeypatch):
    monkeypatch.setenv("LOPAX_DATA_DIR", str(tmp_path))
    with pytest.raises(DatasetNotFound) as caught:
        data.load("svhn")
    message = str(caught.value)
    assert str(tmp_path / "svhn.npz") in message
    assert "export LOPAX_DATA_DIR=" in message and "lopax data fetch svhn" in message
    with pytest.raises(FileNotFoundError) as both:
        data.load("cifar100")
    assert "cifar100.npz" in str(both.value)
    assert "cifar100_subset.npz" in str(both.value)
    with pytest.raises(DatasetNotFound) as own_copy:
        data.load("war_and_peace")
    assert "fetch" not in str(own_copy.value)


def test_folder_argument_then_environment_then_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOPAX_DATA_DIR", str(tmp_path / "environment"))
    assert data.data_dir(tmp_path / "argument") == tmp_path / "argument"
    assert data.data_dir() == tmp_path / "environment"
    monkeypatch.delenv("LOPAX_DATA_DIR")
    monkeypatch.setenv("LOPAX_CACHE_DIR", str(tmp_path / "all"))
    assert data.data_dir() == tmp_path / "all" / "data"
    monkeypatch.delenv("LOPAX_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.data_dir() == tmp_path / "cache" / "lopax" / "data"


def test_written_archives_load_again(tmp_path):
    made = arrays()
    store.write_npz(tmp_path / "mnist.npz", made)
    loaded = data.load("mnist", data_dir=tmp_path)
    assert isinstance(loaded, data.ImageDataset)
    np.testing.assert_array_equal(loaded.train_images, made["train_images"])
    np.testing.assert_array_equal(loaded.test_labels, made["test_labels"])
    assert loaded.train_labels.dtype == np.int32 and loaded.name == "mnist"
    assert [p.name for p in tmp_path.iterdir()] == ["mnist.npz"]


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "mnist.npz"
    store.write_npz(path, arrays())
    before = path.read_bytes()

    class Interrupting:
        def __array__(self, *_args, **_kwargs):
            raise KeyboardInterrupt

    broken: Any = {"train_images": arrays()["train_images"], "z": Interrupting()}
    with pytest.raises(KeyboardInterrupt):
        store.write_npz(path, broken)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mnist.npz"]


def _garbage(path):
    path.write_bytes(b"this is no archive" * 50)


def _truncated(path):
    store.write_npz(path, arrays())
    path.write_bytes(path.read_bytes()[:-200])


def _flipped(path):
    store.write_npz(path, arrays())
    content = bytearray(path.read_bytes())
    content[200:300] = bytes(100)
    path.write_bytes(bytes(content))


def _empty(path):
    path.write_bytes(b"")


def _pickled(path):
    made: dict[str, Any] = arrays()
    made["train_labels"] = np.array([{}, None], object)
    np.savez(path, **made)


def _changed(**changes):
    made: dict[str, Any] = arrays() | changes
    return lambda path: np.savez(path, **made)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_garbage, "cannot be read"),
        (_truncated, "cannot be read"),
        (_flipped, "cannot be read"),
        (_empty, "cannot be read"),
        (_pickled, "cannot be read"),
        (lambda p: np.savez(p, train_images=arrays()["train_images"]), "lacks train_l"),
        (_changed(train_images=np.zeros((20, 6, 6, 3))), "float64"),
        (_changed(test_images=np.zeros((10, 6, 6), np.uint8)), r"\[10, 6, 6\]"),
        (_changed(train_labels=np.zeros(19, np.uint8)), "20 images"),
        (_changed(test_labels=np.zeros(10)), "must be integers"),
        (_changed(test_labels=np.full(10, 10)), r"from 10 to 10.*\[0, 10\)"),
        (_changed(test_labels=np.full(10, -1)), r"\[0, 10\)"),
    ],
)
def test_bad_archives_are_refused(tmp_path, make, says):
    make(tmp_path / "mnist.npz")
    with pytest.raises(FileFormatError, match=says) as caught:
        data.load("mnist", data_dir=tmp_path)
    assert "mnist.npz" in str(caught.value)


def test_texts(tmp_path):
    for split in ("train", "valid", "test"):
        text = f"the {split} text".encode()
        store.write_text(tmp_path / "text" / f"wikitext2.{split}.txt.gz", text)
    whole = data.load("wikitext2", data_dir=tmp_path)
    assert isinstance(whole, data.TextDataset)
    assert whole.train.tobytes() == b"the train text"
    assert whole.test.tobytes() == b"the test text"
    small = data.load("wikitext2_valid", data_dir=tmp_path)
    assert isinstance(small, data.TextDataset)
    assert small.train.tobytes() + small.valid.tobytes() == b"the valid text"
    assert len(small.valid) == 2 and small.test.tobytes() == b"the test text"


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"a text" * 99)[:-9], gzip.compress(b"")],
    ids=["empty", "not_gzip", "cut_off", "no_text"],
)
def test_bad_texts_are_refused(tmp_path, content):
    for split in ("train", "valid", "test"):
        store.write_text(tmp_path / store.text_file("wikitext2", split), b"good")
    (tmp_path / "text" / "wikitext2.valid.txt.gz").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"wikitext2\.valid"):
        data.load("wikitext2", data_dir=tmp_path)


# Fetching.

MNIST = hub.IMAGE_SOURCES["mnist"]


def rows_of(made, image="image", label="label"):
    return {
        split: [
            {image: x, label: int(y)}
            for x, y in zip(
                made[f"{split}_images"], made[f"{split}_labels"], strict=True
            )
        ]
        for split in ("train", "test")
    }


class Hub:
    """Stands for `datasets.load_dataset` and remembers what it was asked."""

    def __init__(self, rows):
        self.rows, self.calls = rows, []

    def __call__(self, repository, configuration, revision=None):
        self.calls.append((repository, configuration, revision))
        return self.rows


def test_fetched_images_load(tmp_path):
    made = arrays(classes=100)
    hub = Hub(rows_of(made, image="img", label="fine_label"))
    paths = data.fetch("cifar100_coarse10", data_dir=tmp_path, load_dataset=hub)
    assert paths == [tmp_path / "cifar100.npz"]
    assert hub.calls == [("uoft-cs/cifar100", None, None)]
    loaded = data.load("cifar100", data_dir=tmp_path)
    assert isinstance(loaded, data.ImageDataset)
    np.testing.assert_array_equal(loaded.train_images, made["train_images"])
    np.testing.assert_array_equal(loaded.test_labels, made["test_labels"])

    data.fetch("cifar100", data_dir=tmp_path, load_dataset=hub)
    assert len(hub.calls) == 1  # it is there already
    data.fetch("cifar100", data_dir=tmp_path, load_dataset=hub, overwrite=True)
    assert len(hub.calls) == 2


def test_fetched_texts_load(tmp_path):
    hub = Hub({s: [{"text": f"{s} é\n"}] * 3 for s in ("train", "validation", "test")})
    assert len(data.fetch("wikitext2_valid", data_dir=tmp_path, load_dataset=hub)) == 3
    loaded = data.load("wikitext2", data_dir=tmp_path)
    assert isinstance(loaded, data.TextDataset)
    assert loaded.valid.tobytes().decode() == "validation é\n" * 3


def test_conversion_of_the_hubs_own_row_type():
    datasets = pytest.importorskip("datasets", reason="extra `data` is not installed")
    from PIL import Image

    made = arrays(channels=1)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list("abcdefghij")),
        }
    )
    rows = {
        split: datasets.Dataset.from_dict(
            {
                "image": [Image.fromarray(x[..., 0]) for x in made[f"{split}_images"]],
                "label": made[f"{split}_labels"].tolist(),
            },
            features=features,
        )
        for split in ("train", "test")
    }
    found = hub.convert_images(rows, MNIST)
    assert found.pop("class_names").tolist() == list("abcdefghij")
    for key, expected in made.items():
        np.testing.assert_array_equal(found[key], expected)
        assert found[key].dtype == expected.dtype


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({"train": []}, "'train' is empty"),
        ({"train": rows_of(arrays())["train"]}, "no split 'test'"),
        ({"train": [{"img": np.zeros((2, 2), np.uint8)}]}, "no column 'image'"),
        ({"train": [{"image": np.zeros((2, 2), np.uint8)}]}, "no column 'label'"),
        ({"train": [{"image": np.zeros((2, 2)), "label": 0}]}, "float64"),
        (
            {
                "train": [
                    {"image": np.zeros((2, 2), np.uint8), "label": 0},
                    {"image": np.zeros((2, 3), np.uint8), "label": 0},
                ]
            },
            "row 1.*first one",
        ),
    ],
)
def test_unexpected_rows_are_refused_and_nothing_is_written(tmp_path, rows, says):
    with pytest.raises(FileFormatError, match=says):
        data.fetch("mnist", data_dir=tmp_path, load_dataset=Hub(rows))
    assert not list(tmp_path.iterdir())


def test_labels_out_of_range_are_not_written(tmp_path):
    rows = rows_of(arrays(classes=100))
    with pytest.raises(FileFormatError, match="must lie in"):
        data.fetch("mnist", data_dir=tmp_path, load_dataset=Hub(rows))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_fetched(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="nothing to fetch"):
        data.fetch("digits")
    with pytest.raises(ConfigError, match=r"war_and_peace\.train\.txt\.gz"):
        data.fetch("war_and_peace", data_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"lopax\[data\]"):
        data.fetch("mnist", data_dir=tmp_path)
    with pytest.raises(FileFormatError, match="no text"):
        hub.convert_text([], hub.TEXT_SOURCES["wikitext2"])
