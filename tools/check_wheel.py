"""Builds wheel and sdist, and tries the wheel where nothing else is.

    python tools/check_wheel.py        # needs the package `build`

Both archives must contain every file of the package and every recipe. The wheel is
installed into an empty environment whose site-packages are read-only; there, without a
compiler on the path and without a home directory, `lopax doctor` must succeed and the
recipes must be found.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = """
from pathlib import Path
import lopax
from lopax import meta
from lopax.meta.loop import initial_theta
from lopax.meta.recipes import list_recipes
assert "site-packages" in lopax.__file__, lopax.__file__
recipes = list_recipes()
assert len(recipes) > 20, recipes
runs = {name: meta.load_recipe(name) for name in recipes}
for name in ("recipes/celo.toml", "recipes/celo2.toml"):
    initial_theta(runs[name])  # reads the states beside the recipes
print(len(recipes), "recipes")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        work.chmod(0o755)
        wheel, sdist = build(work / "dist")
        check_contents(wheel, sdist)
        try_wheel(wheel, work)
    print("wheel and sdist are complete; the wheel works alone")


def build(folder: Path) -> tuple[Path, Path]:
    """The two archives."""
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def check_contents(wheel: Path, sdist: Path) -> None:
    """Every tracked file of the package and every recipe is in both."""
    tracked = tracked_files("lopax", "recipes")
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {f if f.startswith("lopax/") else f"lopax/{f}" for f in tracked}
    missing = sorted(expected - inside)
    assert not missing, f"{wheel.name} lacks {missing}"
    with tarfile.open(sdist) as file:
        names = {n.split("/", 1)[-1] for n in file.getnames()}
    others = tracked_files("docs", "examples", "tests", "tools", "pyproject.toml")
    missing = sorted({*tracked, *others} - names)
    assert not missing, f"{sdist.name} lacks {missing}"


def tracked_files(*paths: str) -> list[str]:
    """What git knows below these paths."""
    done = subprocess.run(
        ["git", "ls-files", *paths],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def try_wheel(wheel: Path, work: Path) -> None:
    """Installs it alone and runs it as a stranger would."""
    home = work / "environment"
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", f"{wheel}[train]"]
    subprocess.run(install, check=True)
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(home)], check=True)
    place = work / "here"
    place.mkdir()
    place.chmod(0o777)
    # No HOME, no compiler: only the environment itself is on the path.
    bare = {"PATH": str(home / "bin"), "TMPDIR": str(place), "JAX_PLATFORMS": "cpu"}
    for command in (
        [str(home / "bin" / "lopax"), "doctor"],
        [str(home / "bin" / "lopax"), "list", "weights"],
        [str(python), "-c", RECIPES],
    ):
        subprocess.run(stranger(command), check=True, env=bare, cwd=place)


def stranger(command: list[str]) -> list[str]:
    """Root may write anywhere, whatever the permissions: become nobody."""
    if os.geteuid() != 0:
        return command
    return [
        "/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command
    ]  # fmt: skip


if __name__ == "__main__":
    main()
