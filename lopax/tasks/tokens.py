"""Word pieces of local text: a byte-pair tokenizer trained once and kept.

The published language tasks read LM1B and English Wikipedia through a vocabulary of
32,000 pieces and 100 spare ids. Neither the texts nor that vocabulary may be passed
on, so the vocabulary is trained on the train split of whatever text is used (Sennrich
et al., 2016, arXiv 1508.07909), and kept in the user's cache under a hash of that
text. In the published sets an example is the beginning of a sentence (LM1B) or of an
article (Wikipedia), cropped or padded to the same length. Sentences are kept; a small
text has too few articles, so its examples are windows from anywhere instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from lopax._core.atomic import atomic_write
from lopax._core.cache import cache_dir
from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError, MissingExtra
from lopax._core.types import Key
from lopax.data import TextDataset
from lopax.tasks.sources import Source, TextBank, pick_split, random_below, take

PAD, END, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "</s>", "<unk>")
PIECES = 32_000
VOCABULARY = PIECES + 100
"""Rows of the published embeddings; the last hundred ids never occur."""

_FORMAT = "1"  # of the cached file; changes with the tokenizer's settings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TokenBank(Source):
    """Examples of `length` + 1 token ids, padded with zeros at the end.

    Inputs [batch_size, length] int32 are all but the last, targets all but the first.
    """

    splits: dict[str, Integer[Array, "n tokens"]]  # length + 1 of them

    def draw(
        self, key: Key, split: str, batch_size: int, dataset: Any = 0
    ) -> tuple[Array, Array]:
        del dataset
        rows = pick_split(self.splits, split)
        chosen = take(rows, random_below(key, batch_size, rows.shape[0]))
        chosen = chosen.astype(jnp.int32)
        return chosen[:, :-1], chosen[:, 1:]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.splits["train"].shape[1] - 1,)


def sentences(text: str) -> list[str]:
    """Pieces that end in a full stop, a question mark or an exclamation mark."""
    flowing = re.sub(r"\s+", " ", text)
    parts = re.split(r"(?<=[.!?])[\"'”’)\]]*\s+", flowing)
    return [p.strip() for p in parts if p.strip()]


UNITS = ("sentence", "window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """How text becomes examples.

    Raises `ConfigError` for an unknown unit or a size out of range.
    """

    unit: str = "sentence"
    length: int = 32
    pieces: int = PIECES

    def __post_init__(self) -> None:
        check_choice(self, "unit", UNITS)
        check_range(self, "length", low=1)
        # All 256 bytes must have a piece, or texts could not be written down.
        check_range(self, "pieces", low=256 + len(SPECIAL), high=2**16)


def token_source(data: TextDataset, settings: TokenSettings) -> Source:
    """The examples of a text, on the device: a `TokenBank` of sentences, or windows of
    running text.

    Raises `MissingExtra` without the package tokenizers, `ConfigError` if a split is
    too short.
    """
    tokenizer = tokenizer_of(data, settings.pieces)
    make = _sentence_rows if settings.unit == "sentence" else _running
    splits = {}
    for name in ("train", "valid", "test"):
        array = make(tokenizer, _decode(getattr(data, name)), settings.length)
        if not len(array):
            raise ConfigError(
                f"{data.name!r}: its {name} split is too short for a {settings.unit} "
                f"of {settings.length} tokens"
            )
        splits[name] = jnp.asarray(array)
    if settings.unit == "sentence":
        return TokenBank(splits)
    return TextBank(splits=splits, length=settings.length, vocabulary=VOCABULARY)


def _sentence_rows(tokenizer: Any, text: str, length: int) -> np.ndarray:
    """[n, length + 1]: the sentences of at least two tokens."""
    found = tokenizer.encode_batch(sentences(text), add_special_tokens=False)
    rows = [encoded.ids for encoded in found]
    return crop_or_pad([row for row in rows if len(row) > 1], length + 1)


def _running(tokenizer: Any, text: str, length: int) -> np.ndarray:
    """[n]: all tokens, or none if they are too few for a single window."""
    found = tokenizer.encode_batch(text.splitlines(), add_special_tokens=False)
    ids = np.asarray([i for encoded in found for i in encoded.ids], np.uint16)
    return ids if len(ids) > length + 1 else ids[:0]


def crop_or_pad(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """[n, length] uint16: the beginning of each row, zeros behind short ones."""
    out = np.full((len(rows), length), PAD, np.uint16)
    for i, row in enumerate(rows):
        kept = row[:length]
        out[i, : len(kept)] = kept
    return out


def tokenizer_of(data: TextDataset, pieces: int = PIECES) -> Any:
    """The byte-pair tokenizer of a text's train split: from the cache, or trained and
    put there. A folder that cannot be written to only means training again.

    A text too small for that many pieces gives fewer.

    Raises `MissingExtra` without the package tokenizers.
    """
    try:
        import tokenizers
    except ImportError:
        raise MissingExtra("tokenizers", "data", "a word-piece vocabulary") from None
    raw = data.train.tobytes()
    name = hashlib.sha256(f"{_FORMAT}:{pieces}:".encode() + raw).hexdigest()[:20]
    path = cache_dir() / "tokenizers" / f"{name}.json"
    if path.is_file():
        # The package raises a plain Exception for a file it cannot read.
        with contextlib.suppress(Exception):
            return tokenizers.Tokenizer.from_file(str(path))
    tokenizer = _train(tokenizers, _decode(data.train), pieces)
    with contextlib.suppress(OSError), atomic_write(path) as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
    return tokenizer


def _train(tokenizers: Any, text: str, pieces: int) -> Any:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return tokenizer


def _decode(raw: np.ndarray) -> str:
    return raw.tobytes().decode("utf-8", errors="replace")
