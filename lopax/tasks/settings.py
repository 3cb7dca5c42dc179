"""Settings of the registered tasks: frozen dataclasses that build the task.

Images are prepared as in meta-training (resized without antialiasing, scaled to
[0, 1]); feature vectors are standardised; texts are windows of bytes.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError
from lopax._core.task import Task
from lopax.data import (
    ImageDataset,
    PreparedDataset,
    TextDataset,
    load,
    prepare,
    prepare_vectors,
)
from lopax.tasks.conv import NORMS, ConvNet
from lopax.tasks.heads import Classification, Head, Reconstruction
from lopax.tasks.networks import ACTIVATIONS, MLP, Network, check_sizes
from lopax.tasks.sources import bank_of, text_bank
from lopax.tasks.supervised import SupervisedTask
from lopax.tasks.text_networks import CELLS, RecurrentLM, TransformerLM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(abc.ABC):
    """What all tasks on data have."""

    dataset: str
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_range(self, "batch_size", low=1)

    @abc.abstractmethod
    def build(self) -> Task:
        """Loads the data and makes the task."""

    def build_over(self, datasets: Sequence[str | ImageDataset]) -> SupervisedTask:
        """One task over several data sets, of which its `dataset` selects one.

        Raises `ConfigError` if these settings cannot share a network among them.
        """
        names = tuple(d if isinstance(d, str) else d.name for d in datasets)
        if len(names) != 1:
            raise ConfigError(
                f"datasets = {names!r}: {type(self).__name__} takes one data set; give "
                "each a task group of its own"
            )
        built = dataclasses.replace(self, dataset=names[0]).build()
        assert isinstance(built, SupervisedTask)
        return built


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings(Settings):
    """What all tasks on images have."""

    size: int = 8
    grey: bool = True
    published_one_percent: bool = False
    """See `lopax.data.prepare`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "size", low=1)

    flatten: ClassVar[bool] = False
    """Whether each image is given as a vector."""
    task_class: ClassVar[type[SupervisedTask]] = SupervisedTask

    @abc.abstractmethod
    def network(self, data: PreparedDataset) -> Network:
        """The network for images and classes like these."""

    def head(self, data: PreparedDataset) -> Head:
        return Classification(num_classes=data.num_classes)

    def build(self) -> SupervisedTask:
        return self.build_over((self.dataset,))

    def build_over(self, datasets: Sequence[str | ImageDataset]) -> SupervisedTask:
        """Raises `ConfigError` if the data sets differ in classes or shape."""
        prepared = [
            prepare(
                dataset,
                self.size,
                self.grey,
                published_one_percent=self.published_one_percent,
            )
            for dataset in datasets
        ]
        classes = [(p.name, p.num_classes) for p in prepared]
        if len({count for _, count in classes}) != 1:
            raise ConfigError(
                f"data sets of one family must agree in classes: {classes}"
            )
        return self.task_class(
            source=bank_of(prepared, flatten=self.flatten, fixed_point=True),
            network=self.network(prepared[0]),
            head=self.head(prepared[0]),
            batch_size=self.batch_size,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMLPSettings(ImageSettings):
    """An image classifier of dense layers."""

    flatten: ClassVar[bool] = True
    hidden: tuple[int, ...] = (32,)
    activation: str = "relu"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "hidden")
        check_choice(self, "activation", ACTIVATIONS)

    def network(self, data: PreparedDataset) -> MLP:
        return MLP(
            hidden=self.hidden,
            outputs=data.num_classes,
            activation=self.activation,
            layer_norm=self.layer_norm,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvSettings(ImageSettings):
    """An image classifier of convolutions."""

    channels: tuple[int, ...] = (16, 32, 32)
    strides: tuple[int, ...] = (2, 1, 1)
    activation: str = "relu"
    norm: str = "none"
    always_training: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "channels")
        check_sizes(self, "strides")
        check_choice(self, "activation", ACTIVATIONS)
        check_choice(self, "norm", NORMS)

    def network(self, data: PreparedDataset) -> ConvNet:
        return ConvNet(
            channels=self.channels,
            strides=self.strides,
            outputs=data.num_classes,
            activation=self.activation,
            norm=self.norm,
            always_training=self.always_training,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(ImageSettings):
    """Dense layers that reproduce the image; sigmoid output, mean squared error."""

    flatten: ClassVar[bool] = True
    hidden: tuple[int, ...] = (128, 32, 128)
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "hidden")
        check_choice(self, "activation", ACTIVATIONS)

    def network(self, data: PreparedDataset) -> MLP:
        return MLP(
            hidden=self.hidden,
            outputs=math.prod(data.train.inputs.shape[1:]),
            activation=self.activation,
            output_activation="sigmoid",
        )

    def head(self, data: PreparedDataset) -> Head:
        del data
        return Reconstruction()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorMLPSettings(Settings):
    """A classifier of feature vectors."""

    hidden: tuple[int, ...] = (32,)
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "hidden")
        check_choice(self, "activation", ACTIVATIONS)

    def build(self) -> SupervisedTask:
        data = prepare_vectors(self.dataset)
        return SupervisedTask(
            source=bank_of([data], fixed_point=False),
            network=MLP(
                hidden=self.hidden,
                outputs=data.num_classes,
                activation=self.activation,
            ),
            head=Classification(num_classes=data.num_classes),
            batch_size=self.batch_size,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """What all character language models have."""

    batch_size: int = 32
    length: int = 32
    """Characters per window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "length", low=1)

    @abc.abstractmethod
    def network(self, vocabulary: int) -> Network:
        """The model for a vocabulary of this size."""

    def build(self) -> SupervisedTask:
        data = load(self.dataset)
        if not isinstance(data, TextDataset):
            raise ConfigError(f"dataset = {self.dataset!r}: must be a text data set")
        bank = text_bank(data, self.length)
        return SupervisedTask(
            source=bank,
            network=self.network(bank.vocabulary),
            head=Classification(num_classes=bank.vocabulary),
            batch_size=self.batch_size,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentSettings(TextSettings):
    """A recurrent character language model."""

    cell: str = "gru"
    embedding: int = 32
    hidden: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "cell", CELLS)

    def network(self, vocabulary: int) -> RecurrentLM:
        return RecurrentLM(
            vocabulary=vocabulary,
            cell=self.cell,
            embedding=self.embedding,
            hidden=self.hidden,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerSettings(TextSettings):
    """A transformer character language model."""

    width: int = 32
    heads: int = 4
    layers: int = 2

    def network(self, vocabulary: int) -> TransformerLM:
        return TransformerLM(
            vocabulary=vocabulary,
            width=self.width,
            heads=self.heads,
            layers=self.layers,
        )
