"""Small pretrained networks, for tasks that fine-tune one.

A classifier is trained in a second or two on some classes of a data set. The data are
divided once, so that nothing a later task shows was seen before: images for
pretraining, for meta-training tasks, and for held-out tasks.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from lopax._core.config import check_choice, check_range, from_dict, to_dict
from lopax._core.errors import ConfigError
from lopax._core.task import Task
from lopax._core.tree import named_leaves
from lopax._core.types import Params, TaskState
from lopax.data import Examples, PreparedDataset, prepare
from lopax.tasks.family import NETWORKS
from lopax.tasks.heads import Classification
from lopax.tasks.networks import Network
from lopax.tasks.settings import ImageSettings
from lopax.tasks.sources import bank_of
from lopax.tasks.supervised import SupervisedTask

POOLS = ("pretraining", "meta_training", "held_out")

_NO_IMAGES = Examples(np.zeros((0,), np.float32), np.zeros((0,), np.int32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """What is trained on what, and for how long."""

    dataset: str = "digits"
    network: str = "mlp"
    """An image classifier of `lopax.tasks.NETWORKS`: "mlp" or "conv"."""
    network_settings: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"hidden": [48, 48]}
    )
    classes: tuple[int, ...] = (0, 1, 2, 3, 4)
    num_steps: int = 1_000
    learning_rate: float = 1e-3
    """Adam's at the start; it falls to zero by a cosine."""
    batch_size: int = 64
    shares: tuple[float, float, float] = (0.25, 0.375, 0.375)
    """Of all images of the data set, for each of `POOLS`."""

    def __post_init__(self) -> None:
        check_choice(self, "network", NETWORKS)
        check_range(self, "num_steps", low=1)
        check_range(self, "batch_size", low=1)
        check_range(self, "learning_rate", above=0.0)
        if min(self.shares) <= 0.0 or abs(sum(self.shares) - 1.0) > 1e-6:
            raise ConfigError(
                f"PretrainingSettings.shares = {self.shares}: must be three positive "
                "numbers of sum 1"
            )
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ConfigError(
                f"PretrainingSettings.classes = {self.classes}: must be two or more "
                "different classes"
            )

    def described(self) -> ImageSettings:
        """The settings of the network. Raises `ConfigError` if it is not one that
        classifies images."""
        where = f"network {self.network!r}"
        if not issubclass(NETWORKS[self.network], ImageSettings):
            raise ConfigError(f"{where} takes no images; choose 'mlp' or 'conv'")
        values = {**self.network_settings, "dataset": self.dataset}
        described = from_dict(NETWORKS[self.network], values, where=where)
        assert isinstance(described, ImageSettings)
        if not isinstance(described.head(_data_of(2)), Classification):
            raise ConfigError(f"{where} is no classifier; choose 'mlp' or 'conv'")
        return described

    def network_for(self, num_classes: int) -> Network:
        """The network with a head for so many classes."""
        return self.described().network(_data_of(num_classes))


class Pretrained(NamedTuple):
    """A trained network and the data it and its tasks are made from."""

    params: Params
    state: TaskState
    images: Array  # uint16, all of the data set as the network takes them
    labels: Int[np.ndarray, " n"]
    pools: dict[str, Int[np.ndarray, " k"]]  # name -> which images

    def by_class(self, pool: str) -> Int[np.ndarray, "classes m"]:
        """A pool's images by class, as many of each as the rarest class has."""
        chosen = self.pools[pool]
        groups = [chosen[self.labels[chosen] == c] for c in np.unique(self.labels)]
        count = min(len(g) for g in groups)
        return np.stack([g[:count] for g in groups])


def pretrained(settings: PretrainingSettings) -> Pretrained:
    """The network of these settings: the same in every process on one platform, and
    kept in memory for the next call.

    Raises `ConfigError` if the data set lacks a class, and what `lopax.data.load`
    raises.
    """
    return _pretrained(json.dumps(to_dict(settings), sort_keys=True))


def head_names(settings: PretrainingSettings, num_classes: int) -> tuple[str, ...]:
    """The tensors of the network whose shape depends on the number of classes."""
    shape = settings.described()
    data = prepare(settings.dataset, shape.size, shape.grey)
    input_shape = data.train.inputs.shape[1:]

    def shapes(count: int) -> dict[str, Any]:
        init = settings.network_for(count).init
        made = jax.eval_shape(lambda k: init(k, input_shape)[0], jax.random.key(0))
        return {name: leaf.shape for name, leaf in named_leaves(made).items()}

    here, other = shapes(num_classes), shapes(num_classes + 1)
    return tuple(name for name in here if here[name] != other[name])


@functools.lru_cache(maxsize=4)
def _pretrained(text: str) -> Pretrained:
    s = from_dict(PretrainingSettings, json.loads(text))
    described = s.described()
    data = prepare(s.dataset, described.size, described.grey)
    parts = [data.train, data.valid, data.extra_valid, data.test]
    inputs = np.concatenate([p.inputs for p in parts])
    labels = np.concatenate([p.labels for p in parts])
    known = {c: i for i, c in enumerate(s.classes)}
    if unknown := [c for c in known if not 0 <= c < data.num_classes]:
        raise ConfigError(
            f"PretrainingSettings.classes: {s.dataset!r} has no class {unknown[0]}, "
            f"only 0 to {data.num_classes - 1}"
        )
    # RandomState's stream is frozen by numpy's policy; Generator's is not.
    order = np.random.RandomState(0).permutation(len(labels))
    cuts = np.round(np.cumsum(s.shares[:2]) * len(labels)).astype(int)
    pools: dict[str, Any] = dict(zip(POOLS, np.split(order, cuts), strict=True))

    chosen = np.asarray([i for i in pools["pretraining"] if labels[i] in known])
    renamed = np.asarray([known[c] for c in labels[chosen]], np.int32)
    examples = _data_of(len(known), Examples(inputs[chosen], renamed))
    bank = bank_of([examples], flatten=described.flatten, fixed_point=True)
    task = SupervisedTask(
        source=bank,
        network=s.network_for(len(known)),
        head=Classification(num_classes=len(known)),
        batch_size=s.batch_size,
    )
    params, state = _train(task, s.num_steps, s.learning_rate)
    images = np.round(inputs * 65535.0).astype(np.uint16)
    images = images.reshape(len(images), *bank.input_shape)
    return Pretrained(params, state, jnp.asarray(images), labels, pools)


def _train(task: Task, num_steps: int, rate: float) -> tuple[Params, TaskState]:
    rule = optax.adam(optax.cosine_decay_schedule(rate, num_steps))
    init_key, key = jax.random.split(jax.random.key(0))

    def step(carry: Any, key: Any) -> tuple[Any, None]:
        params, state, opt_state = carry
        _, grads, state = task.value_and_grad(params, state, key)
        updates, opt_state = rule.update(grads, opt_state)
        return (optax.apply_updates(params, updates), state, opt_state), None

    @jax.jit
    def run() -> tuple[Params, TaskState]:
        params, state = task.init(init_key)
        carry = (params, state, rule.init(params))
        keys = jax.random.split(key, num_steps)
        (params, state, _), _ = jax.lax.scan(step, carry, keys)
        return params, state

    return run()


def _data_of(num_classes: int, examples: Examples = _NO_IMAGES) -> PreparedDataset:
    """A prepared data set with the same examples in every split."""
    return PreparedDataset(
        name="images",
        num_classes=num_classes,
        train=examples,
        valid=examples,
        extra_valid=examples,
        test=examples,
    )
