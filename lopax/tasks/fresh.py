"""Batches that are never seen twice: shifted, mirrored, noisy, wrongly labelled.

What a small data set lacks: with fresh noise in every batch no network can learn the
training data by heart, so the training loss has a floor and better optimizers differ
by tens of per cent, not by powers of ten. Held-out splits stay as they are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lopax._core.config import check_range
from lopax._core.errors import ConfigError
from lopax._core.types import Key
from lopax.tasks.sources import Source, random_below
from lopax.tasks.supervised import SupervisedTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freshness:
    """How training batches are changed; all zero: not at all."""

    shift: int = 0
    """Images are moved by up to so many pixels, zeros coming in."""
    flip: bool = False
    """Every other image is mirrored."""
    noise: float = 0.0
    """Standard deviation of what is added to each input."""
    labels: float = 0.0
    """Share of the labels that are drawn anew, evenly."""

    def __post_init__(self) -> None:
        check_range(self, "shift", low=0)
        check_range(self, "noise", low=0.0)
        check_range(self, "labels", low=0.0, high=1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class FreshSource(Source):
    """`base`, with training batches changed at random."""

    base: Source
    freshness: Freshness = dataclasses.field(metadata={"static": True})
    image_shape: tuple[int, int, int] | None = dataclasses.field(
        metadata={"static": True}
    )
    """[height, width, channels] of an input; None if inputs are no images."""
    num_classes: int = dataclasses.field(metadata={"static": True})

    def draw(
        self, key: Key, split: str, batch_size: int, dataset: Any = 0
    ) -> tuple[Array, Array]:
        draw_key, fresh_key = jax.random.split(key)
        inputs, labels = self.base.draw(draw_key, split, batch_size, dataset)
        if split != "train":
            return inputs, labels
        f, keys = self.freshness, jax.random.split(fresh_key, 5)
        shape = inputs.shape
        if f.shift or f.flip:
            assert self.image_shape is not None
            images = inputs.reshape(batch_size, *self.image_shape)
            if f.flip:
                mirrored = jax.random.bernoulli(keys[0], 0.5, (batch_size, 1, 1, 1))
                images = jnp.where(mirrored, images[:, :, ::-1], images)
            if f.shift:
                images = _shifted(keys[1], images, f.shift)
            inputs = images.reshape(shape)
        if f.noise:
            inputs = inputs + f.noise * jax.random.normal(keys[2], shape, inputs.dtype)
        if f.labels:
            other = random_below(keys[3], batch_size, self.num_classes)
            wrong = jax.random.bernoulli(keys[4], f.labels, (batch_size,))
            labels = jnp.where(wrong, other.astype(labels.dtype), labels)
        return inputs, labels

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.base.input_shape


def fresh(task: SupervisedTask, **settings: Any) -> SupervisedTask:
    """`task` with training batches that are changed as a `Freshness` says.

    Raises `ConfigError` for shifts and mirrors of what is no image (flat images must
    be square), and for a value out of range.
    """
    freshness = Freshness(**settings)
    shape = task.source.input_shape
    image = _image_shape(shape)
    if image is None and (freshness.shift or freshness.flip):
        raise ConfigError(
            f"inputs of shape {shape} are no square images: shift and flip must be off"
        )
    classes = getattr(task.head, "num_classes", 1)
    source = FreshSource(task.source, freshness, image, classes)
    return dataclasses.replace(task, source=source)


def _shifted(key: Key, images: Array, most: int) -> Array:
    """[n, h, w, c], each moved by up to `most` pixels along both axes."""
    n, height, width, channels = images.shape
    wide = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    starts = random_below(key, 2 * n, 2 * most + 1).reshape(n, 2)

    def cut(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(
            image, (start[0], start[1], 0), (height, width, channels)
        )

    return jax.vmap(cut)(wide, starts)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    for channels in (1, 3) if len(shape) == 1 else ():
        side = math.isqrt(shape[0] // channels)
        if side * side * channels == shape[0]:
            return side, side, channels
    return None
