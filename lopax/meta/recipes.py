"""TOML recipes of meta-training runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

from lopax._core.config import from_dict, to_dict
from lopax._core.errors import ConfigError, FileFormatError
from lopax.meta.config import RunConfig
from lopax.meta.variety import VarietyConfig, draw_groups


def load_recipe(path: str | Path) -> RunConfig:
    """Reads a recipe; a `[variety]` table becomes the groups of tasks it draws.

    Raises `FileFormatError`, `UnknownName`, `ConfigError`.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"no recipe at {path}") from None
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
