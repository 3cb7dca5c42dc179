"""TOML recipes of meta-training runs."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from lopax._core.config import from_dict, to_dict
from lopax._core.errors import ConfigError, FileFormatError
from lopax.meta.config import RunConfig
from lopax.meta.variety import VarietyConfig, draw_groups

_PACKAGE = Path(__file__).parents[1]
# In a wheel the recipes lie inside the package, in a clone beside it.
_HOMES = (_PACKAGE, _PACKAGE.parent)


def find(path: str | Path) -> Path:
    """A file of a recipe: the path itself; if there is none and it begins with
    `recipes/`, the one of that name that comes with lopax; else the path as given."""
    path = Path(path)
    if not os.path.exists(path) and path.parts[:1] == ("recipes",):
        for home in _HOMES:
            if (home / path).is_file():
                return home / path
    return path


def list_recipes() -> list[str]:
    """The recipes that come with lopax, as `lopax train` takes them."""
    for home in _HOMES:
        found = sorted((home / "recipes").glob("*.toml"))
        if found:
            return [f"recipes/{file.name}" for file in found]
    return []


def load_recipe(path: str | Path) -> RunConfig:
    """Reads a recipe; a `[variety]` table becomes the groups of tasks it draws.

    `recipes/NAME.toml` is found from everywhere, see `find`.

    Raises `FileFormatError`, `UnknownName`, `ConfigError`.
    """
    path = find(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(list_recipes()) or "none"
        raise FileFormatError(
            f"no recipe at {path}; those that come with lopax: {known}"
        ) from None
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8
        raise FileFormatError(f"{path} is not a TOML recipe: {error}") from None
    for name in ("tasks", "phases"):
        if isinstance(values.get(name), dict):
            raise ConfigError(
                f"{path.name}: [{name}] is one table; write [[{name}]], once for each"
            )
    if "variety" in values:
        where = f"{path.name} [variety]"
        variety = from_dict(VarietyConfig, values.pop("variety"), where=where)
        drawn = [to_dict(group) for group in draw_groups(variety)]
        values["tasks"] = [*values.get("tasks", []), *drawn]
    return from_dict(RunConfig, values, where=path.name)
