#!/usr/bin/env python3
"""Makes tests/fixtures/preprocessing/: picture files, and their pixels as Pillow and torchvision prepare them.

    pip install torch==2.11.0 torchvision==0.26.0 pillow==13.0.0 numpy==2.4.6 scikit-image==0.26.0
    python3 tests/reference/preprocessing.py

The photographs are scikit-image's chelsea.png (Stefan van der Walt, CC0), coffee.png (Rachel Michetti, CC0), rocket.jpg
(SpaceX, public domain) and astronaut.png (NASA, public domain), cropped.

cases.json lists the cases: the file, the preprocessing in the terms of model.toml, and the model's input size.
arrays.npz holds, under each case's name, the picture before ToTensor, uint8 [H, W, C]. Two more arrays check
`Normalize`: its input `normalize_pixels`, and `normalize`, float32 [C, H, W].
"""

import json
import pathlib

import numpy as np
import skimage
import torch
from PIL import Image, ImageOps
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode as Mode

torch.set_num_threads(1)
OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "preprocessing"
PHOTOGRAPHS = pathlib.Path(skimage.__file__).parent / "data"
MODES = {"nearest": Mode.NEAREST, "bilinear": Mode.BILINEAR, "bicubic": Mode.BICUBIC, "lanczos": Mode.LANCZOS}
cases, arrays = [], {}


def photograph(name, box):
    return Image.open(PHOTOGRAPHS / name).convert("RGB").crop(box)


def save(picture, name, **options):
    picture.save(OUT / name, **options)
    return name


def upright(name):
    """The file as camlens decodes it: EXIF orientation applied, 8 bits, RGB or grey."""
    picture = ImageOps.exif_transpose(Image.open(OUT / name))
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture if picture.mode == "L" else picture.convert("RGB")


def case(name, file, *, resize=None, crop=None, interpolation="bilinear", color="rgb", size=None, exact=True):
    picture = upright(file)
    steps = []
    if resize is not None:
        steps.append(T.Resize(resize, MODES[interpolation], antialias=True))
    elif size is not None:
        steps.append(T.Resize(size, MODES[interpolation], antialias=True))
    if crop is not None:
        steps.append(T.CenterCrop(crop))
    picture = T.Compose(steps)(picture)
    if color == "gray":
        picture = picture.convert("L")
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if color == "bgr":
        pixels = pixels[:, :, ::-1]
    arrays[name] = np.ascontiguousarray(pixels)
    cases.append({"name": name, "file": file, "resize": resize, "crop": crop, "interpolation": interpolation,
                  "color": color, "size": size, "exact": exact})


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    cat = save(photograph("chelsea.png", (100, 40, 331, 193)), "cat.png", optimize=True)
    cup = photograph("coffee.png", (180, 60, 420, 280))

    # Every filter, down and up, odd sizes, crops that need rounding and crops that need padding.
    for interpolation in MODES:
        case(f"down_{interpolation}", cat, resize=64, crop=[56, 56], interpolation=interpolation)
        case(f"up_{interpolation}", cat, resize=[180, 247], crop=[65, 64], interpolation=interpolation)
    case("resize_only", cat, resize=61)
    case("model_size", cat, size=[40, 90])
    case("crop_odd", cat, resize=60, crop=[55, 53])
    case("crop_pads", cat, resize=[30, 41], crop=[48, 44])
    case("crop_pads_one_side", cat, resize=32, crop=[40, 32])
    case("bgr", cat, resize=48, crop=[48, 48], color="bgr")
    case("gray_model", cat, resize=48, crop=[48, 48], color="gray")
    case("untouched", cat)

    # Kinds of files.
    kinds = cup.resize((120, 110), Image.Resampling.BICUBIC)
    gray = kinds.convert("L")
    alpha = kinds.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(kinds.size))
    sixteen = np.asarray(gray).astype(np.uint16) * 256 + np.arange(120, dtype=np.uint16)[None, :]
    files = {
        "gray_png": (save(gray, "gray.png", optimize=True), True),
        "rgba_png": (save(alpha, "rgba.png", optimize=True), True),
        "gray_alpha_png": (save(alpha.convert("LA"), "gray_alpha.png", optimize=True), True),
        "gray16_png": (save(Image.fromarray(sixteen), "gray16.png"), True),
        "palette_png": (save(kinds.quantize(64), "palette.png", optimize=True), True),
        "bilevel_png": (save(gray.convert("1"), "bilevel.png"), True),
        "webp_lossless": (save(kinds, "lossless.webp", lossless=True), True),
        "webp_lossy": (save(kinds, "lossy.webp", quality=90), False),
        "webp_alpha": (save(alpha, "alpha.webp", lossless=True, exact=True), True),
        "jpeg_420": (save(cup, "420.jpg", quality=90, subsampling="4:2:0"), False),
        "jpeg_422_progressive": (save(kinds, "422.jpg", quality=90, subsampling="4:2:2", progressive=True), False),
        "jpeg_444": (save(kinds, "444.jpg", quality=90, subsampling="4:4:4"), False),
        "jpeg_gray": (save(gray, "gray.jpg", quality=90), False),
        "jpeg_cmyk": (save(kinds.convert("CMYK"), "cmyk.jpg", quality=90), False),
        "jpeg_1x1": (save(kinds.resize((1, 1)), "1x1.jpg"), False),
        "rocket": (save(photograph("rocket.jpg", (250, 60, 450, 300)), "rocket.jpg", quality=85), False),
        "astronaut": (save(photograph("astronaut.png", (130, 20, 370, 200)), "astronaut.jpg", quality=85), False),
        "wide": (save(photograph("chelsea.png", (0, 150, 451, 153)), "wide.png"), True),
        "tall": (save(photograph("chelsea.png", (200, 0, 202, 300)), "tall.png"), True),
        "black": (save(Image.new("RGB", (50, 40)), "black.png"), True),
        "white": (save(Image.new("L", (50, 40), 255), "white.png"), True),
    }
    for name, (file, exact) in files.items():
        case(name, file, resize=32, crop=[32, 32], exact=exact)
    for name in ("gray_png", "rgba_png", "gray16_png", "palette_png", "jpeg_420", "jpeg_cmyk", "jpeg_422_progressive"):
        case(f"{name}_pixels", files[name][0], crop=[24, 24], exact=files[name][1])

    # Every EXIF orientation in each file format.
    small = kinds.crop((20, 20, 67, 51))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind, options in (("jpg", {"quality": 92}), ("png", {}), ("webp", {"lossless": True})):
            file = save(small, f"exif{orientation}.{kind}", exif=exif, **options)
            case(f"exif{orientation}_{kind}", file, exact=kind != "jpg")

    # ToTensor and Normalize, float for float.
    pixels = T.Compose([T.Resize(32, Mode.BILINEAR), T.CenterCrop(24)])(upright(cat))
    floats = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])(pixels)
    arrays["normalize"], arrays["normalize_pixels"] = floats.numpy(), np.asarray(pixels)
    np.savez(OUT / "arrays.npz", **dict(sorted(arrays.items())))
    (OUT / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
