"""Old names of arguments are still taken."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lopax import evaluate
from lopax._core.errors import ConfigError
from lopax._core.renamed import renamed
from lopax.tasks.suites import suite


@renamed(old="new")
def function(*, new: int = 1, other: int = 2) -> tuple[int, int]:
    """What it does."""
    return new, other


@renamed(old="new")
@dataclasses.dataclass(frozen=True)
class Record:
    new: int = 1


def call(target: Any, **given: Any) -> Any:
    return target(**given)


def test_both_names_are_taken_and_mean_the_same():
    assert call(function, old=5) == call(function, new=5) == (5, 2)
    assert function.__doc__ == "What it does."
    assert call(Record, old=3) == Record(3) == dataclasses.replace(Record(), new=3)
    assert isinstance(Record(), Record)


def test_one_of_both_is_enough():
    with pytest.raises(TypeError, match="old is the old name of new"):
        call(function, old=1, new=2)
    with pytest.raises(TypeError, match="unexpected keyword"):
        call(function, older=1)


def test_lanes_is_vmap_size(tmp_path):
    made = dataclasses.replace(suite("smoke").tasks[0])
    fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    fields["lanes"] = fields.pop("vmap_size") or 3
    assert call(type(made), **fields).vmap_size == fields["lanes"]
    spec, (problem, *_) = evaluate.baseline("sgd"), evaluate.suite_problems("smoke")
    with pytest.raises(ConfigError, match="vmap_size = 0"):
        call(evaluate.run, spec=spec, task=None, config=None, seeds=[0], lanes=0)
    with pytest.raises(ConfigError, match="vmap_size = 0"):
        evaluate.run_grid(evaluate.Store(tmp_path), [spec], [problem], [0], lanes=0)  # type: ignore[call-arg]


def test_what_was_renamed_in_evaluate_is_still_there():
    assert evaluate.Cell is evaluate.RunGroup
    assert evaluate.Hole is evaluate.MissingRun
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = evaluate.Nope
