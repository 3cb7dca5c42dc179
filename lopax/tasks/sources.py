"""Where batches come from: arrays on the device, drawn from by index inside jit."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from lopax._core.errors import ConfigError
from lopax._core.types import Key
from lopax.data import SPLITS, PreparedDataset, TextDataset


class Source(abc.ABC):
    """Something batches are drawn from. Registered as a pytree."""

    @abc.abstractmethod
    def draw(
        self, key: Key, split: str, batch_size: int, dataset: Any = 0
    ) -> tuple[Array, Array]:
        """Inputs [batch_size, ...] and targets [batch_size, ...], with replacement."""

    @property
    @abc.abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SplitArrays:
    """One split of several data sets, one behind the other.

    `inputs` are float32, or uint16 fixed-point numbers in [0, 1].
    """

    inputs: Array
    labels: Int[Array, " n"]
    starts: Int[Array, " d"]
    sizes: UInt32[Array, " d"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ExampleBank(Source):
    """Labelled examples of D data sets of one input shape.

    The data sets lie one behind the other, so that none is padded to the longest and
    a batch costs one gather, whichever (possibly traced) data set it is drawn from.
    """

    splits: dict[str, SplitArrays]

    def draw(
        self, key: Key, split: str, batch_size: int, dataset: Any = 0
    ) -> tuple[Array, Array]:
        arrays = pick_split(self.splits, split)
        indices = arrays.starts[dataset] + random_below(
            key, batch_size, arrays.sizes[dataset]
        )
        return decode(take(arrays.inputs, indices)), take(arrays.labels, indices)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.splits["train"].inputs.shape[1:]

    @property
    def num_datasets(self) -> int:
        return self.splits["train"].sizes.shape[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TextBank(Source):
    """Running text as symbol numbers; a batch is random windows of it.

    Inputs [batch_size, length] int32 are the window, targets the same window one
    symbol later. Symbol 0 stands for whatever the training text does not contain.
    """

    splits: dict[str, Array]
    length: int = dataclasses.field(metadata={"static": True})
    vocabulary: int = dataclasses.field(metadata={"static": True})

    def draw(
        self, key: Key, split: str, batch_size: int, dataset: Any = 0
    ) -> tuple[Array, Array]:
        del dataset
        text = pick_split(self.splits, split)
        starts = random_below(key, batch_size, text.shape[0] - self.length)
        windows = take(text, starts[:, None] + jnp.arange(self.length + 1))
        windows = windows.astype(jnp.int32)
        return windows[:, :-1], windows[:, 1:]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.length,)


def random_below(key: Key, count: int, size: Any) -> Int[Array, " count"]:
    """`count` integers in [0, size), with one call of the generator.

    Their distribution differs from the uniform one by a factor of at most
    1 + size / 2^32. `jax.random.randint` draws twice and splits the key to do better.
    """
    bits = jax.random.bits(key, (count,), jnp.uint32)
    return (bits % jnp.asarray(size, jnp.uint32)).astype(jnp.int32)


def pick_split(splits: Mapping[str, Any], split: str) -> Any:
    """Raises `ConfigError` for a split there is none of."""
    if split not in splits:
        known = ", ".join(map(repr, splits))
        raise ConfigError(f"split = {split!r}: this task has {known}")
    return splits[split]


def take(array: Array, indices: Array) -> Array:
    """array[indices] along the first axis, for indices known to be inside.

    `jnp.take`, not indexing: inside `shard_map` an index expression would carry the
    outer mesh's sharding of `array` along, which JAX refuses.
    """
    return jnp.take(array, indices, axis=0, mode="clip")


def decode(inputs: Array) -> Array:
    """Stored inputs as float32."""
    if inputs.dtype == jnp.uint16:
        return inputs.astype(jnp.float32) * jnp.float32(1.0 / 65535.0)
    return inputs


def bank_of(
    prepared: Sequence[PreparedDataset], *, flatten: bool = False, fixed_point: bool
) -> ExampleBank:
    """A bank of prepared data sets on the device.

    **Arguments:**

    - `flatten`: store each input as a vector.
    - `fixed_point`: inputs lie in [0, 1] and are stored as uint16, rounded to the
      nearest 1/65535. Half the memory, and drawing a batch of 8x8 images on CPU takes
      0.4 of the time.

    Raises `ConfigError` if the data sets differ in their input shape.
    """
    shapes = [(p.name, p.train.inputs.shape[1:]) for p in prepared]
    if len({shape for _, shape in shapes}) != 1:
        raise ConfigError(f"data sets of one bank must have one input shape: {shapes}")

    def stack(split: str) -> SplitArrays:
        parts = [p.split(split) for p in prepared]
        inputs = np.concatenate([p.inputs for p in parts])
        if flatten:
            inputs = inputs.reshape(len(inputs), -1)
        if fixed_point:
            inputs = np.round(inputs * 65535.0).astype(np.uint16)
        sizes = np.asarray([len(p.labels) for p in parts])
        return SplitArrays(
            inputs=jnp.asarray(inputs),
            labels=jnp.asarray(np.concatenate([p.labels for p in parts])),
            starts=jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32),
            sizes=jnp.asarray(sizes, jnp.uint32),
        )

    return ExampleBank({split: stack(split) for split in SPLITS})


def text_bank(data: TextDataset, length: int) -> TextBank:
    """The bytes of a text, numbered by those that occur in its train split.

    Raises `ConfigError` if a split is not longer than `length`.
    """
    known = np.unique(data.train)
    number = np.zeros(256, np.uint8 if len(known) < 256 else np.uint16)
    number[known] = np.arange(1, len(known) + 1)
    splits = {"train": data.train, "valid": data.valid, "test": data.test}
    for name, text in splits.items():
        if not 1 <= length < len(text):
            raise ConfigError(
                f"length = {length!r}: must be at least 1 and below {len(text)}, the "
                f"size of {data.name!r}'s {name} split"
            )
    return TextBank(
        splits={name: jnp.asarray(number[text]) for name, text in splits.items()},
        length=length,
        vocabulary=len(known) + 1,
    )
