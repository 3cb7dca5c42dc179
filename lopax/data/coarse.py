"""CIFAR-100's hundred classes regrouped into ten, each of ten fine classes.

CIFAR-100 comes with twenty superclasses of five fine classes. Merging them in pairs
gives a ten-class problem of real 32x32 photographs that keeps every image; the pairs
are a fixed choice of ours, not a published benchmark.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lopax._core.errors import FileFormatError
from lopax.data.types import ImageDataset

COARSE10: dict[str, tuple[str, ...]] = {
    # aquatic mammals + fish
    "aquatic animals": (
        *("beaver", "dolphin", "otter", "seal", "whale"),
        *("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    ),
    # flowers + trees
    "plants": (
        *("orchid", "poppy", "rose", "sunflower", "tulip"),
        *("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    ),
    # food containers + fruit and vegetables
    "kitchen": (
        *("bottle", "bowl", "can", "cup", "plate"),
        *("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    ),
    # household electrical devices + household furniture
    "household": (
        *("clock", "keyboard", "lamp", "telephone", "television"),
        *("bed", "chair", "couch", "table", "wardrobe"),
    ),
    # insects + non-insect invertebrates
    "invertebrates": (
        *("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
        *("crab", "lobster", "snail", "spider", "worm"),
    ),
    # large carnivores + large omnivores and herbivores
    "large mammals": (
        *("bear", "leopard", "lion", "tiger", "wolf"),
        *("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    ),
    # large man-made outdoor things + large natural outdoor scenes
    "outdoors": (
        *("bridge", "castle", "house", "road", "skyscraper"),
        *("cloud", "forest", "mountain", "plain", "sea"),
    ),
    # medium-sized mammals + small mammals
    "small mammals": (
        *("fox", "porcupine", "possum", "raccoon", "skunk"),
        *("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    ),
    # people + reptiles
    "people and reptiles": (
        *("baby", "boy", "girl", "man", "woman"),
        *("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    ),
    # vehicles 1 + vehicles 2
    "vehicles": (
        *("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
        *("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
    ),
}

FINE_NAMES: tuple[str, ...] = tuple(sorted(n for g in COARSE10.values() for n in g))
"""The fine classes in label order, which is alphabetical."""


def regroup(fine: ImageDataset, name: str = "cifar100_coarse10") -> ImageDataset:
    """CIFAR-100 with each fine label replaced by its group's number, 0 to 9.

    Raises `FileFormatError` if the file states class names other than CIFAR-100's.
    """
    names = fine.class_names or FINE_NAMES
    if sorted(names) != sorted(FINE_NAMES):
        odd = sorted(set(names) ^ set(FINE_NAMES))
        raise FileFormatError(
            f"class names of {fine.name!r} are not CIFAR-100's: {', '.join(odd[:5])}"
        )
    group_of = {f: i for i, group in enumerate(COARSE10.values()) for f in group}
    table = np.asarray([group_of[n] for n in names], np.int32)
    return dataclasses.replace(
        fine,
        name=name,
        train_labels=table[fine.train_labels],
        test_labels=table[fine.test_labels],
        num_classes=len(COARSE10),
        class_names=tuple(COARSE10),
    )
