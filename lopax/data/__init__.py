"""Data sets as numpy arrays: loading, fetching, preparing. Imports no JAX."""

from __future__ import annotations

from lopax.data.hub import fetch
from lopax.data.preparation import (
    SPLITS,
    Examples,
    PreparedDataset,
    prepare,
    prepare_vectors,
)
from lopax.data.registry import (
    DATASETS,
    DatasetEntry,
    available,
    list_datasets,
    load,
)
from lopax.data.store import data_dir
from lopax.data.types import Dataset, ImageDataset, TextDataset, VectorDataset

__all__ = [
    "DATASETS",
    "SPLITS",
    "Dataset",
    "DatasetEntry",
    "Examples",
    "ImageDataset",
    "PreparedDataset",
    "TextDataset",
    "VectorDataset",
    "available",
    "data_dir",
    "fetch",
    "list_datasets",
    "load",
    "prepare",
    "prepare_vectors",
]
