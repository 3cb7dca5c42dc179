"""The 17 published evaluation tasks, under their published names, as a table.

Definitions follow google/learned_optimization (Metz et al., 2022, arXiv 2211.09760);
the selection of 17 is that of Moudgil et al. (2025, arXiv 2501.12670). Networks,
tensor shapes, initial values, losses, batch sizes and bounds are as published.

What differs, because the originals cannot be passed on: the text of the five language
tasks and its vocabulary (see `lopax.tasks.tokens`). LM1B is replaced by the sentences
of a novel, Wikipedia by windows of WikiText-2. The published CIFAR-100 loader keeps
only the first per cent of the images by accident; `published_one_percent=True` does
the same, the default uses 80 per cent, which is what it says it does.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from lopax._core.config import check_choice, check_range
from lopax._core.errors import ConfigError
from lopax._core.types import Key, Params, TaskState
from lopax.data import PreparedDataset, TextDataset, load
from lopax.tasks.conv import ConvNet
from lopax.tasks.language_models import LSTMLM, DecoderLM
from lopax.tasks.language_task import LanguageTask
from lopax.tasks.rare_settings import UnrolledSettings, ViTSettings
from lopax.tasks.settings import (
    AutoencoderSettings,
    ConvSettings,
    ImageMLPSettings,
    Settings,
)
from lopax.tasks.sources import Source
from lopax.tasks.tokens import UNITS, VOCABULARY, TokenSettings, token_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedConvNet(ConvNet):
    """A `ConvNet` whose batch norm has scale and offset of shape [1, 1, 1, channels],
    as Haiku's does. Rules that treat vectors and matrices differently see that."""

    def init(self, key: Key, input_shape: tuple[int, ...]) -> tuple[Params, TaskState]:
        params, state = super().init(key, input_shape)
        if self.norm == "batch":
            for name in state:
                for part in ("scale", "offset"):
                    params[name][part] = params[name][part].reshape(1, 1, 1, -1)
        return params, state


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedConvSettings(ConvSettings):
    """A classifier of convolutions 32-64-64; norms never leave training mode."""

    size: int = 32
    grey: bool = False
    batch_size: int = 128
    channels: tuple[int, ...] = (32, 64, 64)
    always_training: bool = True

    def network(self, data: PreparedDataset) -> PublishedConvNet:
        plain = super().network(data)
        values = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        return PublishedConvNet(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PieceSettings(Settings):
    """What the language tasks on word pieces have."""

    batch_size: int = 8
    length: int = 32
    unit: str = "sentence"
    """An example is the beginning of a "sentence", or a "window" from anywhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "length", low=1)
        check_choice(self, "unit", UNITS)

    def source(self) -> Source:
        data = load(self.dataset)
        if not isinstance(data, TextDataset):
            raise ConfigError(f"dataset = {self.dataset!r}: must be a text data set")
        return token_source(data, TokenSettings(unit=self.unit, length=self.length))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSettings(PieceSettings):
    """A small transformer over word pieces."""

    heads: int = 4
    width: int = 32
    layers: int = 2
    dropout: float = 0.0

    def build(self) -> LanguageTask:
        model = DecoderLM(
            vocabulary=VOCABULARY,
            width=self.width,
            heads=self.heads,
            layers=self.layers,
            dropout=self.dropout,
        )
        return LanguageTask(
            source=self.source(), model=model, batch_size=self.batch_size
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMSettings(PieceSettings):
    """An LSTM over word pieces."""

    batch_size: int = 128
    embedding: int = 128
    hidden: int = 256

    def build(self) -> LanguageTask:
        model = LSTMLM(
            vocabulary=VOCABULARY, embedding=self.embedding, hidden=self.hidden
        )
        return LanguageTask(
            source=self.source(), model=model, batch_size=self.batch_size
        )


class VelodromeTask(NamedTuple):
    """One of the 17."""

    settings: Settings
    about: str
    vmap_size: int | None
    """Training runs side by side; one where a single run fills the machine."""


def _image(dataset: str, size: int, **values: Any) -> dict[str, Any]:
    grey = size == 28  # these sets have one channel
    return {"dataset": dataset, "size": size, "grey": grey, **values}


_CIFAR10 = _image("cifar10", 32, batch_size=128)
_FASHION = _image("fashion_mnist", 28, batch_size=128)
_NOVEL: dict[str, Any] = {"dataset": "war_and_peace", "unit": "sentence"}
_ARTICLES: dict[str, Any] = {"dataset": "wikitext2_valid", "unit": "window"}

VELODROME: dict[str, VelodromeTask] = {
    "ImageMLP_FashionMnist_Relu128x128": VelodromeTask(
        ImageMLPSettings(hidden=(128, 128), **_FASHION), "MLP 128-128, ReLU", None
    ),
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": VelodromeTask(
        ImageMLPSettings(hidden=(128,) * 3, layer_norm=True, **_CIFAR10),
        "MLP 128-128-128, layer norm, ReLU",
        None,
    ),
    "ImageMLP_Cifar10_128x128x128_Tanh_bs128": VelodromeTask(
        ImageMLPSettings(hidden=(128,) * 3, activation="tanh", **_CIFAR10),
        "MLP 128-128-128, tanh",
        None,
    ),
    "Conv_Cifar10_32x64x64": VelodromeTask(
        PublishedConvSettings(dataset="cifar10"), "convolutions 32-64-64", 1
    ),
    "Conv_Cifar10_32x64x64_batchnorm": VelodromeTask(
        PublishedConvSettings(dataset="cifar10", norm="batch"),
        "convolutions 32-64-64, batch norm",
        1,
    ),
    "Conv_Cifar10_32x64x64_layernorm": VelodromeTask(
        PublishedConvSettings(dataset="cifar10", norm="layer"),
        "convolutions 32-64-64, layer norm",
        1,
    ),
    "Conv_Cifar100_32x64x64": VelodromeTask(
        PublishedConvSettings(dataset="cifar100"), "convolutions, 100 classes", 1
    ),
    "VIT_Cifar100_wideshallow": VelodromeTask(
        ViTSettings(dataset="cifar100"), "vision transformer, 6 layers of 384", 1
    ),
    "VIT_Cifar100_skinnydeep": VelodromeTask(
        ViTSettings(dataset="cifar100", width=128, inner=512, heads=4, layers=10),
        "vision transformer, 10 layers of 128",
        1,
    ),
    "TransformerLM_LM1B_MultiRuntime_0": VelodromeTask(
        DecoderSettings(
            heads=5, width=20, layers=1, batch_size=4, length=8, dropout=0.1, **_NOVEL
        ),
        "transformer of one layer, 8 tokens, dropout",
        4,
    ),
    "TransformerLM_LM1B_MultiRuntime_2": VelodromeTask(
        DecoderSettings(heads=4, width=32, layers=2, batch_size=8, length=8, **_NOVEL),
        "transformer of two layers, 8 tokens",
        4,
    ),
    "TransformerLM_LM1B_MultiRuntime_5": VelodromeTask(
        DecoderSettings(heads=4, width=32, layers=1, batch_size=8, length=32, **_NOVEL),
        "transformer of one layer, 32 tokens",
        4,
    ),
    "ImageMLPAE_Cifar10_128x32x128_bs256": VelodromeTask(
        AutoencoderSettings(**{**_CIFAR10, "batch_size": 256}),
        "autoencoder 128-32-128",
        None,
    ),
    "ImageMLPAE_Mnist_128x32x128_bs128": VelodromeTask(
        AutoencoderSettings(**_image("mnist", 28, batch_size=128)),
        "autoencoder 128-32-128",
        None,
    ),
    "RNNLM_lm1b32k_Patch32_LSTM256_Embed128": VelodromeTask(
        LSTMSettings(**_NOVEL), "LSTM of 256 units, 32 tokens", 1
    ),
    "RNNLM_wikipediaen32k_Patch32_LSTM256_Embed128": VelodromeTask(
        LSTMSettings(**_ARTICLES), "LSTM of 256 units, 32 tokens", 1
    ),
    "LOpt_AdafacMLPLOpt_FashionMnist_50": VelodromeTask(
        UnrolledSettings(**_image("fashion_mnist", 8, batch_size=128, grey=True)),
        "training a learned optimizer through 50 steps",
        None,
    ),
}
