"""Settings of rarer tasks: transformers and variational autoencoders on images, MLPs
that vary from run to run, the training of learned optimizers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax

from lopax._core.config import check_choice, check_range
from lopax._core.types import Scalar
from lopax.architectures import architecture
from lopax.data import ImageDataset, PreparedDataset
from lopax.tasks.heads import Classification, Head
from lopax.tasks.networks import ACTIVATIONS, check_sizes
from lopax.tasks.settings import ImageMLPSettings, ImageSettings
from lopax.tasks.supervised import SupervisedTask
from lopax.tasks.unrolled import UnrolledTask
from lopax.tasks.vae import VAE, PixelBernoulli, VAETask
from lopax.tasks.varied_mlp import VariedMLP
from lopax.tasks.vision_transformer import VisionTransformer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ViTTask(SupervisedTask):
    """A classifier whose meta-loss runs from 0 to 10, reached at ln(2 classes)."""

    def normalize(self, loss: Scalar) -> Scalar:
        return super().normalize(loss) * (10.0 / self.loss_bound)

    @property
    def loss_bound(self) -> float:
        assert isinstance(self.head, Classification)
        return math.log(2 * self.head.num_classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTSettings(ImageSettings):
    """A vision transformer; the defaults are those of the larger published one."""

    task_class: ClassVar[type[SupervisedTask]] = ViTTask
    size: int = 32
    grey: bool = False
    batch_size: int = 128
    patch: int = 16
    width: int = 384
    inner: int = 1536
    heads: int = 6
    layers: int = 6

    def network(self, data: PreparedDataset) -> VisionTransformer:
        return VisionTransformer(
            outputs=data.num_classes,
            patch=self.patch,
            width=self.width,
            inner=self.inner,
            heads=self.heads,
            layers=self.layers,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnrolledSettings(ImageMLPSettings):
    """Training a learned optimizer on runs of an image classifier."""

    hidden: tuple[int, ...] = (32,)
    batch_size: int = 128
    num_steps: int = 50
    """Updates of the inner run."""
    rule: str = "adafac_mlp"
    """The architecture that is trained."""
    rule_settings: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"unrolled": False}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "num_steps", low=1)

    def build(self) -> UnrolledTask:  # type: ignore[override]
        return self.build_over((self.dataset,))

    def build_over(self, datasets: Sequence[str | ImageDataset]) -> UnrolledTask:  # type: ignore[override]
        """Raises as its base does, and what `lopax.architecture` raises."""
        return UnrolledTask(
            inner=super().build_over(datasets),
            rule=architecture(self.rule, **self.rule_settings),
            num_steps=self.num_steps,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAESettings(ImageSettings):
    """A variational autoencoder of dense layers."""

    flatten: ClassVar[bool] = True
    task_class: ClassVar[type[SupervisedTask]] = VAETask
    hidden: tuple[int, ...] = (32,)
    code: int = 8
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "hidden")
        check_choice(self, "activation", ACTIVATIONS)

    def network(self, data: PreparedDataset) -> VAE:
        return VAE(
            pixels=math.prod(data.train.inputs.shape[1:]),
            hidden=self.hidden,
            code=self.code,
            activation=self.activation,
        )

    def head(self, data: PreparedDataset) -> Head:
        del data
        return PixelBernoulli()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariedMLPSettings(ImageSettings):
    """An image classifier whose width and activation are drawn for every run."""

    flatten: ClassVar[bool] = True
    hidden: tuple[int, ...] = (32,)
    least: int = 4
    spread: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "hidden")

    def network(self, data: PreparedDataset) -> VariedMLP:
        return VariedMLP(
            hidden=self.hidden,
            outputs=data.num_classes,
            least=self.least,
            spread=self.spread,
        )
