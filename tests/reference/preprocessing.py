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

import io
import json
import pathlib
import struct
import zlib

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


def write(data, name):
    (OUT / name).write_bytes(data)
    return name


def jpeg(picture, **options):
    """The segments of a JPEG before its scan header, as (marker, whole segment), and the rest."""
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    data, at, segments = file.getvalue(), 2, []
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], data[at:end]))
        at = end
    return segments, data[at:]


def joined(segments, rest):
    return b"\xff\xd8" + b"".join(segment for _, segment in segments) + rest


def webcam(picture):
    """A frame of a webcam: no Huffman tables, AVI's segment in place of JFIF's, and stray bytes before markers."""
    segments, rest = jpeg(picture, quality=80, subsampling="4:2:2", restart_marker_blocks=5)
    avi = b"\xff\xe0\x00\x10AVI1" + bytes(10)
    for number, stray in ((0xD2, b"\x7f"), (0xD0, b"\x12\x34\x56"), (0xD9, b"\x00\x01")):
        rest = rest.replace(bytes((0xFF, number)), stray + bytes((0xFF, number)), 1)
    kept = [(marker, segment) for marker, segment in segments if marker not in (0xC4, 0xE0)]
    return joined([(0xE0, avi)] + kept, rest)


def separate(picture, wide, high):
    """A JPEG with a scan for each component: luma is `wide` and `high` times as large as chroma."""
    planes = picture.convert("YCbCr").split()
    width, height = picture.size
    small = (-(-width // wide), -(-height // high))
    scans, components = b"", b""
    for index, plane in enumerate(planes):
        plane = plane if index == 0 else plane.resize(small, Image.Resampling.BOX)
        segments, rest = jpeg(plane, quality=80)
        components += bytes((index + 1, wide << 4 | high if index == 0 else 0x11, 0))
        scans += rest[:5] + bytes((index + 1,)) + rest[6:-2]
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + b"\x03" + components
    kept = [(marker, segment) for marker, segment in segments if marker not in (0xC0,)]
    return joined(kept + [(0xC0, frame)], scans + b"\xff\xd9")


def with_orientation(picture, number):
    """A JPEG whose EXIF orientation is a LONG, big-endian, in a directory at offset 64."""
    segments, rest = jpeg(picture, quality=92)
    entry = struct.pack(">HHII", 0x0112, 4, 1, number)
    block = b"Exif\0\0MM\0\x2a" + struct.pack(">I", 64) + bytes(56) + struct.pack(">H", 1) + entry + bytes(4)
    return joined([(0xE1, b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block)] + segments, rest)


def unscaled_png(samples, bits):
    """A 16-bit grey PNG whose samples use the lower bits alone, as its sBIT chunk says."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = samples.shape
    rows = b"".join(b"\0" + row.tobytes() for row in samples.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"sBIT", bytes((bits,))), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def case(
    name, file, *, resize=None, crop=None, interpolation="bilinear", color="rgb", size=None, exact=True, shows=None
):
    """`shows` is the picture that the file holds, where Pillow does not read it."""
    picture = upright(file) if shows is None else shows
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

    # JPEGs of cameras. Decoders agree bit for bit on the scans of a file.
    camera = cup.resize((75, 53), Image.Resampling.BICUBIC)
    intervals = {"quality": 80, "subsampling": "4:2:0", "restart_marker_blocks": 3}
    for name, data in {
        "webcam": webcam(camera),
        "intervals": joined(*jpeg(camera, **intervals)),
        "intervals_progressive": joined(*jpeg(camera, progressive=True, **intervals)),
        "intervals_gray": joined(*jpeg(camera.convert("L"), quality=80, restart_marker_rows=1)),
        "separate_411": separate(camera, 4, 1),
        "separate_440": separate(camera, 1, 2),
        "rgb": joined(*jpeg(camera, quality=80, keep_rgb=True)),
        "long_orientation": with_orientation(camera, 6),
    }.items():
        case(f"camera_{name}", write(data, f"camera_{name}.jpg"), exact=True)
    whole = joined(*jpeg(camera, quality=80))
    for name, data in {"no_end": whole[:-2], "no_end_padded": whole[:-2] + bytes(300)}.items():
        shows = Image.open(io.BytesIO(whole))
        case(f"camera_{name}", write(data, f"camera_{name}.jpg"), exact=True, shows=shows)
    twelve = np.asarray(camera.convert("L")).astype(np.uint16) * 16 + np.arange(75, dtype=np.uint16)[None, :] % 16
    shows = Image.fromarray((twelve.astype(np.uint32) * 65535 // 4095 >> 8).astype(np.uint8))
    case("camera_12_bits", write(unscaled_png(twelve, 12), "camera_12_bits.png"), shows=shows)

    # ToTensor and Normalize, float for float.
    pixels = T.Compose([T.Resize(32, Mode.BILINEAR), T.CenterCrop(24)])(upright(cat))
    floats = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])(pixels)
    arrays["normalize"], arrays["normalize_pixels"] = floats.numpy(), np.asarray(pixels)
    np.savez_compressed(OUT / "arrays.npz", **dict(sorted(arrays.items())))
    (OUT / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
