"""Tasks of real size: 0.5 to 10 million parameters, on the data sets there are.

For a GPU (minutes) or for nights on a few CPU cores. As a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lopax._core.config import check_range
from lopax.data import ImageDataset, PreparedDataset
from lopax.tasks.fresh import fresh
from lopax.tasks.heads import Head, Reconstruction
from lopax.tasks.mixer import Mixer
from lopax.tasks.rare_settings import ViTSettings
from lopax.tasks.resnet import ConvAutoencoder, ResNet
from lopax.tasks.settings import (
    ImageSettings,
    RecurrentSettings,
    Settings,
    TransformerSettings,
)
from lopax.tasks.supervised import SupervisedTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreshImageSettings(ImageSettings):
    """Images of 32x32, moved and mirrored afresh in every training batch."""

    size: int = 32
    grey: bool = False
    batch_size: int = 64
    shift: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "shift", low=0)

    def build_over(self, datasets: Sequence[str | ImageDataset]) -> SupervisedTask:
        task = super().build_over(datasets)
        return fresh(task, shift=self.shift, flip=self.flip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetSettings(FreshImageSettings):
    """A residual network."""

    channels: tuple[int, ...] = (32, 64, 128)
    blocks: int = 2

    def network(self, data: PreparedDataset) -> ResNet:
        return ResNet(
            outputs=data.num_classes, channels=self.channels, blocks=self.blocks
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreshViTSettings(ViTSettings, FreshImageSettings):
    """A vision transformer on patches of 4x4."""

    batch_size: int = 64
    patch: int = 4
    width: int = 192
    inner: int = 768
    heads: int = 6
    layers: int = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerSettings(FreshImageSettings):
    """An MLP-mixer on patches of 4x4."""

    patch: int = 4
    width: int = 256
    token_inner: int = 128
    channel_inner: int = 1024
    layers: int = 6

    def network(self, data: PreparedDataset) -> Mixer:
        return Mixer(
            outputs=data.num_classes,
            patch=self.patch,
            width=self.width,
            token_inner=self.token_inner,
            channel_inner=self.channel_inner,
            layers=self.layers,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvAutoencoderSettings(FreshImageSettings):
    """A convolutional autoencoder with a code of 4x4 places."""

    channels: tuple[int, ...] = (64, 128, 256)
    code: int = 8

    def network(self, data: PreparedDataset) -> ConvAutoencoder:
        del data
        return ConvAutoencoder(channels=self.channels, code=self.code)

    def head(self, data: PreparedDataset) -> Head:
        del data
        return Reconstruction()


MEDIUM: dict[str, tuple[Settings, str]] = {
    "war_and_peace_gpt": (
        TransformerSettings(
            dataset="war_and_peace",
            width=256,
            heads=8,
            layers=6,
            length=128,
            batch_size=16,
        ),
        "characters, six-layer transformer of 256",
    ),
    "cifar10_resnet": (
        ResNetSettings(dataset="cifar10"),
        "residual network 32-64-128, 13 convolutions, fresh shifts and mirrors",
    ),
    "cifar10_vit": (
        FreshViTSettings(dataset="cifar10"),
        "vision transformer, 6 layers of 192, fresh shifts and mirrors",
    ),
    "cifar10_mixer": (
        MixerSettings(dataset="cifar10"),
        "MLP-mixer, 6 layers of 256, fresh shifts and mirrors",
    ),
    "tinyshakespeare_lstm_512": (
        RecurrentSettings(
            dataset="tinyshakespeare",
            cell="lstm",
            embedding=128,
            hidden=512,
            length=64,
        ),
        "characters, LSTM of 512 units",
    ),
    "cifar10_conv_autoencoder": (
        ConvAutoencoderSettings(dataset="cifar10"),
        "convolutional autoencoder 64-128-256, a code of 4x4x8",
    ),
}
"""Name -> settings and what it is; training takes 2,000 to 5,000 steps (`suites`)."""
