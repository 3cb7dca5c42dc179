"""Writing an AlgoPerf submission (self-tuning ruleset) of a weights file.

The benchmark (MLCommons, Dahl et al., 2023, arXiv 2306.07179) imports a submission
from a folder and calls five functions with fixed signatures. The module is the same
for all weights: it reads the architecture from the file beside it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lopax._core.atomic import atomic_write, make_folder
from lopax._core.errors import ConfigError
from lopax.pretrained import WeightsFile
from lopax.theta import load_optimizer, save_theta

FRAMEWORKS = ("jax", "pytorch")
_TEMPLATES = Path(__file__).parent / "submissions"


def write_submission(
    file: WeightsFile,
    folder: str | os.PathLike[str],
    *,
    framework: str = "jax",
    name: str | None = None,
    licence: str = "",
) -> list[Path]:
    """Writes `submission.py` and `weights.safetensors` into `folder`.

    **Arguments:**

    - `file`: the weights, of any format `lopax.pretrained.read_weights` reads.
    - `framework`: "jax" or "pytorch", what the workloads are run with.
    - `name`: the architecture, if the file does not tell.
    - `licence`: of the weights, for their header.

    Raises `ConfigError` for an unknown framework, a folder that is a file, or (for
    PyTorch) an architecture that lopax.torch does not have.
    """
    if framework not in FRAMEWORKS:
        raise ConfigError(
            f"framework = {framework!r}: must be one of {', '.join(FRAMEWORKS)}"
        )
    folder = Path(folder)
    if os.path.exists(folder) and not folder.is_dir():
        raise ConfigError(f"{folder}: a submission is a folder, and this is a file")
    optimizer, theta = load_optimizer(file, name, {})
    if framework == "pytorch":
        import lopax.torch

        lopax.torch.RULES[optimizer.name]  # raises UnknownName
    make_folder(folder)
    header = {k: file.header[k] for k in ("licence", "recipe") if k in file.header}
    if licence:
        header["licence"] = licence
    weights, module = folder / "weights.safetensors", folder / "submission.py"
    save_theta(weights, theta, optimizer, **header)
    with atomic_write(module) as temporary:
        shutil.copyfile(_TEMPLATES / f"algoperf_{framework}.py", temporary)
    return [module, weights]
