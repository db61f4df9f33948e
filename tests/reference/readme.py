#!/usr/bin/env python3
"""Makes the picture of README.md, tests/fixtures/readme.jpg: a photograph, Grad-CAM over it, Guided Grad-CAM.

cargo build --release && $(deploy/python-env client) tests/reference/readme.py
"""

import pathlib
import subprocess
import tempfile

from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHOTOGRAPH = ROOT / "deploy/demo-assets/photographs/coffee.png"
HEIGHT, GAP = 300, 10


def at_height(image):
    return image.convert("RGB").resize((round(image.width * HEIGHT / image.height), HEIGHT), Image.Resampling.LANCZOS)


def main():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                ROOT / "target/release/camlens",
                "explain",
                PHOTOGRAPH,
                "--models",
                ROOT / "deploy/models",
                "--out",
                folder,
                "--picture",
                "overlay",
                "--picture",
                "guided-grad-cam",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        made = [pathlib.Path(folder) / f"{PHOTOGRAPH.stem}.{kind}.png" for kind in ("overlay", "guided_grad_cam")]
        panels = [at_height(Image.open(path)) for path in (PHOTOGRAPH, *made)]
    strip = Image.new("RGB", (sum(p.width for p in panels) + GAP * (len(panels) - 1), HEIGHT), "white")
    x = 0
    for panel in panels:
        strip.paste(panel, (x, 0))
        x += panel.width + GAP
    strip.save(ROOT / "tests/fixtures/readme.jpg", quality=88)


if __name__ == "__main__":
    main()
