"""Draws overlays and writes PNG files with numpy alone."""

from __future__ import annotations

import os
import pathlib
import struct
import zlib

import numpy as np

# Turbo at nine even steps (Mikhailov 2019); between them colours are interpolated.
_TURBO = np.array([[48, 18, 59], [70, 107, 227], [40, 188, 235], [50, 242, 152], [164, 252, 60], [238, 207, 58],
                   [251, 126, 33], [208, 47, 5], [122, 4, 3]], dtype=np.float32)  # fmt: skip


def turbo(values: np.ndarray) -> np.ndarray:
    """Colours of values from 0 to 1: float32 `[…, 3]`, RGB, 0 to 255."""
    place = np.clip(values, 0, 1) * (len(_TURBO) - 1)
    low = np.minimum(place.astype(np.int64), len(_TURBO) - 2)
    part = (place - low)[..., None].astype(np.float32)
    return _TURBO[low] * (1 - part) + _TURBO[low + 1] * part


def sampled(heat: np.ndarray, size: tuple[int, int], to_frame: np.ndarray) -> np.ndarray:
    """`heat` `[h, w]` at each pixel of a frame `[H, W]`, bilinear; 0 outside of what the model saw.

    `to_frame` is the 2 × 3 matrix from pixel centres of the map to pixels of the frame.
    """
    linear, offset = to_frame[:, :2], to_frame[:, 2]
    inverse = np.linalg.inv(linear)
    ys, xs = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    x = (inverse[0, 0] * (xs - offset[0]) + inverse[0, 1] * (ys - offset[1])).astype(np.float32)
    y = (inverse[1, 0] * (xs - offset[0]) + inverse[1, 1] * (ys - offset[1])).astype(np.float32)
    height, width = heat.shape
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    dx, dy = x - left, y - top
    above = heat[top, left] * (1 - dx) + heat[top, right] * dx
    below = heat[bottom, left] * (1 - dx) + heat[bottom, right] * dx
    return np.where(inside, above * (1 - dy) + below * dy, 0)


def blended(frame: np.ndarray, heat: np.ndarray, opacity: float, color: str) -> np.ndarray:
    """`frame` with `heat` (0 to 1, of its size) over it, as transparent as there is no evidence."""
    pixels = np.repeat(frame[:, :, None], 3, axis=2) if frame.ndim == 2 else frame[:, :, :3]
    colors = turbo(heat)
    if color == "bgr":
        colors = colors[:, :, ::-1]
    # Fully opaque, as far as `opacity` goes, from half of the strongest evidence on.
    alpha = (opacity * np.clip(heat / 0.5, 0, 1))[:, :, None]
    return np.rint(pixels * (1 - alpha) + colors * alpha).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    """The PNG file of uint8 pixels, `[H, W]` grey or `[H, W, 3]` RGB."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"a PNG is made of uint8 [H, W] or [H, W, 3], not of {array.dtype} {list(array.shape)}")
    height, width = array.shape[:2]
    rows = np.ascontiguousarray(array).reshape(height, -1).astype(np.int16)
    # Filter 1 (each byte less the one of the pixel to its left) makes photographs a third smaller.
    depth = 1 if array.ndim == 2 else 3
    rows[:, depth:] -= rows[:, :-depth].copy()
    lines = np.empty((height, rows.shape[1] + 1), dtype=np.uint8)
    lines[:, 0] = 1
    lines[:, 1:] = rows & 0xFF

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0 if array.ndim == 2 else 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 6)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_png(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes `png(array)` to a file."""
    pathlib.Path(path).write_bytes(png(array))
