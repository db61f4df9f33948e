"""Pictures of any kind become frames of the protocol."""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from ._options import Options
from .v1 import frame_pb2, image_pb2, tensor_pb2

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

    #: A path or the bytes of a picture file, a numpy array, or a PIL picture.
    Image = Union[str, os.PathLike[str], bytes, bytearray, memoryview, np.ndarray, PilImage]
else:
    Image = Any


@dataclasses.dataclass
class Frame:
    """One picture with what belongs to it.

    `image`: a path, the bytes of a picture file, a PIL picture, or a numpy array:

    - uint8 `[H, W, 3]` (RGB, or BGR with `color="bgr"`, OpenCV's order), `[H, W, 4]` (alpha is left out), `[H, W]` or
      `[H, W, 1]` (grey); rows may have gaps, as in a slice of a larger picture;
    - float32 `[C, H, W]` or `[1, C, H, W]`: a model input that is ready, used without preprocessing.

    `tag` (at most 4096 bytes) and `capture_time` (seconds since 1970, or a datetime) come back with the answer.
    `options` replace the stream's, field by field. After `time_to_live_s` the frame is not worth explaining any more.
    """

    image: Image
    tag: bytes | str = b""
    capture_time: float | datetime.datetime | None = None
    color: str | None = None
    options: Options | None = None
    time_to_live_s: float | None = None
    #: W3C Trace Context of the operation that caused the frame.
    traceparent: str = ""

    def message(self, sequence: int, color: str) -> frame_pb2.Frame:
        """The frame of the protocol.

        Raises TypeError or ValueError when the picture cannot be sent, OSError when a file cannot be read.
        """
        tag = self.tag.encode() if isinstance(self.tag, str) else self.tag
        frame = frame_pb2.Frame(sequence=sequence, tag=tag, traceparent=self.traceparent)
        if self.capture_time is not None:
            moment = self.capture_time
            seconds = moment.timestamp() if isinstance(moment, datetime.datetime) else float(moment)
            # Microseconds: what a float holds of the present time.
            frame.capture_time.FromMicroseconds(round(seconds * 1e6))
        if self.time_to_live_s is not None:
            frame.time_to_live.FromMicroseconds(round(self.time_to_live_s * 1e6))
        if self.options is not None:
            frame.options.CopyFrom(self.options.message())
        put(frame, self.image, self.color or color)
        return frame


def is_tensor(image: Image) -> bool:
    """Whether `image` is a model input that is ready."""
    image = image.image if isinstance(image, Frame) else image
    return isinstance(image, np.ndarray) and image.dtype.kind == "f"


def put(frame: frame_pb2.Frame, image: Image, color: str) -> None:
    """Makes `image` the payload of `frame`."""
    if color not in ("rgb", "bgr"):
        raise ValueError(f'color is "rgb" or "bgr", not {color!r}')
    if isinstance(image, (bytes, bytearray, memoryview)):
        frame.encoded.data = bytes(image)
    elif isinstance(image, (str, os.PathLike)):
        frame.encoded.data = pathlib.Path(image).read_bytes()
    elif isinstance(image, np.ndarray):
        _put_array(frame, image, color)
    elif hasattr(image, "tobytes") and hasattr(image, "mode") and hasattr(image, "convert"):
        _put_array(frame, _pil_array(image), "rgb")
    else:
        raise TypeError(f"a frame is a path, bytes of a file, a numpy array or a PIL picture, not {_name(image)}")


def _put_array(frame: frame_pb2.Frame, array: np.ndarray, color: str) -> None:
    if array.size == 0:
        raise ValueError(f"an empty array is no picture: its shape is {list(array.shape)}")
    if array.dtype.kind == "f":
        if array.ndim != 3 and not (array.ndim == 4 and array.shape[0] == 1):
            raise ValueError(f"a float array is a model input [C, H, W] or [1, C, H, W], not {list(array.shape)}")
        data = np.ascontiguousarray(array, dtype="<f4")
        frame.tensor.CopyFrom(tensor_pb2.Tensor(
            element_type=tensor_pb2.ELEMENT_TYPE_FLOAT32, shape=data.shape, data=data.tobytes()
        ))
        return
    if array.dtype != np.uint8:
        raise TypeError(f"pixels are uint8, and model inputs float32; this array is {array.dtype}. "
                        "Scale 16-bit pixels down, or send the PNG file")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3 and array.shape[2] == 4:
        array = np.ascontiguousarray(array[:, :, :3])
    if array.ndim == 2:
        pixel, depth = image_pb2.PIXEL_FORMAT_GRAY8, 1
    elif array.ndim == 3 and array.shape[2] == 3:
        pixel, depth = (image_pb2.PIXEL_FORMAT_RGB8 if color == "rgb" else image_pb2.PIXEL_FORMAT_BGR8), 3
    else:
        raise ValueError(f"pixels are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not {list(array.shape)}")
    # tobytes() copies once, in the order of rows, whatever the strides are.
    height, width = array.shape[:2]
    frame.raw.CopyFrom(image_pb2.RawImage(
        data=array.tobytes(), width=width, height=height, pixel_format=pixel, stride_bytes=width * depth
    ))


def _pil_array(image: Any) -> np.ndarray:
    """The pixels of a PIL picture, upright, as grey or RGB."""
    if image.getexif().get(0x0112, 1) != 1:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        raise TypeError(f"a PIL picture of mode {image.mode!r} has more than 8 bits: convert it, or send the file")
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB"))


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
