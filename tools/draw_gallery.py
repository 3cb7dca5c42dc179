"""Pictures of reports for docs/gallery.md, with headless Chromium.

    lopax bench smoke --optimizers adam adamw muon celo2 celo --out smoke
    lopax explain celo --num-steps 200 --out celo.html
    lopax train recipes/self_trained.toml --out selftrained && lopax report selftrained
    python tools/draw_gallery.py smoke/report.html celo.html selftrained/report.html

Writes docs/pictures/gallery/NAME.png for each page, 256 colours, named after the page
or its folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURES = Path(__file__).parents[1] / "docs" / "pictures" / "gallery"
WIDTH, HEIGHT = 1000, 2600


def draw(page: Path, target: Path) -> None:
    """The top of a page as a PNG; raises `FileNotFoundError` without Chromium."""
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("needs chromium on the path")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu",
                "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={shot}", page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        picture = Image.open(shot).convert("RGB")
        ground = Image.new("RGB", picture.size, picture.getpixel((0, HEIGHT - 1)))
        from PIL import ImageChops

        box = ImageChops.difference(picture, ground).getbbox()
        if box is not None:
            picture = picture.crop((0, 0, WIDTH, min(HEIGHT, box[3] + 20)))
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.quantize(256).save(target, optimize=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        stem = page.parent.name if page.stem == "report" else page.stem
        draw(page, PICTURES / f"{stem}.png")
        print(PICTURES / f"{stem}.png")
