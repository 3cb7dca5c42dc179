"""Suites: which tasks are run for how long when optimizers are compared. Tables only.

`lite` uses the architectures of the published evaluation at sizes that suit a CPU; no
task of it is a meta-training task (those of `recipes/` are small MLPs, convolutions
and autoencoders at 8x8 grey pixels and a character GRU of 16 units).
`smoke`, `quickstart` and `embedded` need no downloaded data; their training losses have
a floor, because no batch is seen twice (or the network is too narrow to fit the data).
`medium` has networks of real size, `stress` is a set of pass/fail problems.
`velodrome` is the published evaluation itself; it wants a GPU.
"""

from __future__ import annotations

import dataclasses

from lopax._core.registry import Registry
from lopax.tasks.stress_suite import STRESS
from lopax.tasks.suite import Suite, SuiteTask, refreshed, registered
from lopax.tasks.velodrome import VELODROME

SUITES: Registry[Suite] = Registry("suite")


def suite(name: str) -> Suite:
    """The suite called `name`; raises `UnknownName` with near matches."""
    return SUITES[name]


def list_suites(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern."""
    return SUITES.names(pattern)


_SEEN = {"shift": 1, "noise": 0.2}
_WRONG = {"noise": 0.5, "labels": 0.1}

DIGITS_MLP = refreshed("digits_mlp_fresh", "digits_mlp_128x128", 600, _SEEN)
DIGITS_TANH = refreshed("digits_tanh_fresh", "digits_mlp_tanh", 600, _SEEN)
DIGITS_CODE = refreshed(
    "digits_autoencoder_narrow",
    "digits_autoencoder",
    600,
    {"shift": 1},
    hidden=(64, 4, 64),
)
CANCER = refreshed("breast_cancer_fresh", "breast_cancer_mlp_deep", 600, _WRONG)
WINE = refreshed("wine_fresh", "wine_mlp_deep", 600, _WRONG)


def _for(num_steps: int, *tasks: SuiteTask) -> tuple[SuiteTask, ...]:
    return tuple(dataclasses.replace(t, num_steps=num_steps) for t in tasks)


SUITES.add(
    "smoke",
    Suite(
        name="smoke",
        about="embedded data, seconds per optimizer: does it run at all?",
        tasks=_for(150, DIGITS_MLP, DIGITS_CODE, CANCER),
        eval_every=50,
        eval_batches=2,
    ),
)

SUITES.add(
    "quickstart",
    Suite(
        name="quickstart",
        about="what `lopax quickstart` compares on: embedded data, fresh batches",
        tasks=_for(400, DIGITS_TANH, DIGITS_CODE, CANCER, WINE),
        eval_every=20,
    ),
)

SUITES.add(
    "embedded",
    Suite(
        name="embedded",
        about="embedded data only, minutes: other networks, losses and data than the "
        "meta-training tasks, and batches that are never seen twice",
        tasks=(
            DIGITS_MLP,
            DIGITS_TANH,
            refreshed("digits_layernorm_fresh", "digits_mlp_layernorm", 600, _SEEN),
            refreshed("digits_conv_fresh", "digits_conv", 600, _SEEN, vmap_size=4),
            DIGITS_CODE,
            CANCER,
            registered("sklearn_descr_lstm_lm", 600, vmap_size=4, batch_size=16),
        ),
        eval_every=200,
    ),
)

SUITES.add(
    "validation",
    Suite(
        name="validation",
        about="what the bundled weights were chosen by; shares no task with the others",
        tasks=(
            registered("mnist_mlp_layernorm", 600),
            registered("cifar100_coarse10_mlp_tanh", 600),
            registered("fashion_mnist_mlp_deep", 600),
            registered("fashion_mnist_autoencoder", 600),
            registered("mnist_conv", 300, vmap_size=1),
            registered("wikitext2_valid_gru_lm", 300, vmap_size=4),
        ),
        eval_every=300,
    ),
)

SUITES.add(
    "lite",
    Suite(
        name="lite",
        about="the published families at CPU scale: MLPs, convolutions, autoencoders, "
        "recurrent and attention language models",
        tasks=(
            registered("fashion_mnist_mlp_128x128", 1_000),
            registered("cifar10_mlp_layernorm", 1_000),
            registered("cifar10_mlp_tanh", 1_000),
            registered("fashion_mnist_conv", 1_000, vmap_size=1, batch_size=16),
            registered("cifar10_conv_batchnorm", 1_000, vmap_size=1, batch_size=16),
            registered("cifar10_conv_layernorm", 1_000, vmap_size=1, batch_size=16),
            registered("mnist_autoencoder", 1_000),
            registered("cifar10_autoencoder", 1_000),
            registered("tinyshakespeare_lstm_lm", 1_000, vmap_size=1, batch_size=16),
            registered(
                "war_and_peace_transformer_lm", 1_000, vmap_size=1, batch_size=8
            ),
        ),
        eval_every=100,
    ),
)

SUITES.add(
    "medium",
    Suite(
        name="medium",
        about="six networks of 0.5 to 5 million parameters, 2,000 to 3,000 updates; "
        "minutes on a GPU, nights on a CPU",
        tasks=(
            registered("war_and_peace_gpt", 3_000, vmap_size=1),
            registered("cifar10_resnet", 3_000, vmap_size=1),
            registered("cifar10_vit", 3_000, vmap_size=1),
            registered("cifar10_mixer", 3_000, vmap_size=1),
            registered("tinyshakespeare_lstm_512", 3_000, vmap_size=1),
            registered("cifar10_conv_autoencoder", 2_000, vmap_size=1),
        ),
        eval_every=250,
    ),
)

SUITES.add(
    "velodrome",
    Suite(
        name="velodrome",
        about="the 17 published evaluation tasks (Moudgil et al., 2025), as published "
        "but for the texts; wants a GPU",
        tasks=tuple(
            registered(name, 2_000, vmap_size=entry.vmap_size)
            for name, entry in VELODROME.items()
        ),
        eval_every=10,
    ),
)

SUITES.add("stress", STRESS)
