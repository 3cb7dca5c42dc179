"""Text as word pieces: sentences, windows, and a vocabulary trained once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopax._core.errors import ConfigError
from lopax.data import TextDataset
from lopax.tasks import tokens

KEY = jax.random.key(0)
PROSE = (
    "It was a bright cold day in the north, and the clocks were striking. "
    "Nobody spoke! Was there anything to say? The old man sat down beside the stove. "
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def text(train: str = PROSE * 40, held_out: str = PROSE) -> TextDataset:
    def raw(s: str):
        return np.frombuffer(s.encode(), np.uint8)

    return TextDataset(
        name="made_up", train=raw(train), valid=raw(held_out), test=raw(held_out)
    )


def test_sentences_end_where_they_end():
    assert tokens.sentences('He  said:\n"Go." Then?  He went! 3.5 miles.') == [
        'He said: "Go.',
        "Then?",
        "He went!",
        "3.5 miles.",
    ]


def test_crop_or_pad():
    found = tokens.crop_or_pad([[5, 6], [7, 8, 9, 10]], 3)
    np.testing.assert_array_equal(found, [[5, 6, 0], [7, 8, 9]])


def test_examples_are_sentences_whose_ids_give_the_text_back():
    pytest.importorskip("tokenizers")
    settings = tokens.TokenSettings(length=40, pieces=300)
    source = tokens.token_source(text(), settings)
    tokenizer = tokens.tokenizer_of(text(), 300)
    assert isinstance(source, tokens.TokenBank) and source.input_shape == (40,)
    rows = np.asarray(source.splits["valid"])
    said = [tokenizer.decode(row[row > 0].tolist()).strip() for row in rows]
    assert said[1] == "Nobody spoke!" and len(rows) == 4
    inputs, targets = source.draw(KEY, "train", 6)
    assert inputs.dtype == targets.dtype == jnp.int32
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert int(inputs.max()) < 300


def test_windows_run_over_the_whole_text():
    pytest.importorskip("tokenizers")
    settings = tokens.TokenSettings(unit="window", length=8, pieces=300)
    source = tokens.token_source(text(), settings)
    inputs, targets = source.draw(KEY, "train", 50)
    assert inputs.shape == (50, 8) and int(inputs.min()) > tokens.UNKNOWN
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    assert len({tuple(row) for row in np.asarray(inputs).tolist()}) > 30


def test_a_tokenizer_is_trained_once_and_a_broken_file_replaced(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LOPAX_CACHE_DIR", raising=False)
    calls, train = [], tokens._train
    monkeypatch.setattr(
        tokens, "_train", lambda *a: (calls.append(1), train(*a))[1]
    )  # fmt: skip
    first = tokens.tokenizer_of(text(), 300)
    assert tokens.tokenizer_of(text(), 300).to_str() == first.to_str()
    assert len(calls) == 1
    (kept,) = (tmp_path / "lopax" / "tokenizers").glob("*.json")
    kept.write_text("{")
    assert tokens.tokenizer_of(text(), 300).to_str() == first.to_str()
    tokens.tokenizer_of(text(PROSE * 41), 300)
    assert len(calls) == 3  # another text has a vocabulary of its own


def test_bad_token_settings_and_texts_are_refused():
    with pytest.raises(ConfigError, match="'sentence', 'window'"):
        tokens.TokenSettings(unit="word")
    with pytest.raises(ConfigError, match="pieces = 100"):
        tokens.TokenSettings(pieces=100)
    pytest.importorskip("tokenizers")
    short = tokens.TokenSettings(unit="window", length=500, pieces=300)
    with pytest.raises(ConfigError, match="valid split is too short"):
        tokens.token_source(text(), short)
