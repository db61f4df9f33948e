"""How a frame ended."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np

from . import _picture
from .errors import CamlensError, FrameDropped, FrameFailed, FrameLost
from .v1 import explain_pb2, explanation_pb2, image_pb2, options_pb2, tensor_pb2

_TYPES = {tensor_pb2.ELEMENT_TYPE_FLOAT32: "<f4", tensor_pb2.ELEMENT_TYPE_FLOAT16: "<f2",
          tensor_pb2.ELEMENT_TYPE_UINT8: "u1"}  # fmt: skip
_SUFFIXES = {image_pb2.IMAGE_FORMAT_PNG: (".png",), image_pb2.IMAGE_FORMAT_JPEG: (".jpg", ".jpeg")}


@dataclasses.dataclass(frozen=True)
class Answer:
    """How one frame ended: an `Explanation`, a `Dropped`, a `Failed` or a `Lost`."""

    #: The frame's number within its stream, from 1; 0: it was explained alone.
    sequence: int
    #: What the source gave: the picture or the `Frame`.
    source: Any = dataclasses.field(repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether this is an `Explanation`."""
        return isinstance(self, Explanation)

    def explanation(self) -> Explanation:
        """The explanation; raises `FrameDropped`, `FrameFailed` or `FrameLost` when there is none."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Dropped(Answer):
    """The frame will not be explained, through no fault of its own.

    `reason`: "replaced", "expired", "cancelled", "slow_reader", "rate_limited", "draining" or "stream_ended", as
    Dropped.Reason of the protocol. `by_client`: a newer frame replaced it before it was sent.
    """

    reason: str = ""
    by_client: bool = False

    def explanation(self) -> Explanation:
        raise FrameDropped(str(self))

    def __str__(self) -> str:
        return f"frame {self.sequence}: dropped ({self.reason}{', before it was sent' if self.by_client else ''})"


@dataclasses.dataclass(frozen=True)
class Failed(Answer):
    """The frame cannot be explained; the stream lives on. `code` is the name of a gRPC status: "INVALID_ARGUMENT".

    `field` names the field at fault. With `retry_after_s` the same frame may succeed later.
    """

    code: str = ""
    message: str = ""
    field: str = ""
    retry_after_s: float | None = None

    def explanation(self) -> Explanation:
        raise FrameFailed(str(self))

    def __str__(self) -> str:
        return f"frame {self.sequence}: {self.code}: {self.message}"


@dataclasses.dataclass(frozen=True)
class Lost(Answer):
    """The connection broke when the frame had been sent and had no answer: the server may have explained it."""

    message: str = ""

    def explanation(self) -> Explanation:
        raise FrameLost(str(self))

    def __str__(self) -> str:
        return f"frame {self.sequence}: lost: {self.message}"


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A class as the model sees it."""

    class_index: int
    label: str
    logit: float
    probability: float


@dataclasses.dataclass(frozen=True)
class Notice:
    """What a reader of the result should know: "no_positive_evidence", "reduced_precision", …"""

    code: str
    message: str


class Target:
    """What speaks for one class at one target layer."""

    def __init__(self, message: explanation_pb2.TargetExplanation):
        self.message = message
        self.class_index = message.class_index
        self.label = message.label
        self.score = message.score
        self.target_layer = message.target_layer

    @functools.cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """The maps by name, float32: "guided_grad_cam" `[C, H, W]`, "grad_cam" `[H, W]`, …"""
        return {_name(options_pb2.Map, "MAP_", one.map): array(one.tensor) for one in self.message.tensors}

    @property
    def pictures(self) -> dict[str, bytes]:
        """The files of the pictures by name: "overlay", "heat_map", …"""
        return {_name(options_pb2.Picture, "PICTURE_", one.picture): one.data for one in self.message.pictures}

    def picture_file(self, name: str) -> explanation_pb2.EncodedPicture:
        for one in self.message.pictures:
            if _name(options_pb2.Picture, "PICTURE_", one.picture) == name:
                return one
        raise ValueError(f'there is no picture "{name}": ask for it with Options(pictures=["{name}"])')

    def __repr__(self) -> str:
        return f"Target({self.class_index}, {self.label!r}, score={self.score:.3f}, layer={self.target_layer!r})"


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation(Answer):
    """A frame explained. Shapes and meanings are those of the protocol; `message` is its message."""

    message: explanation_pb2.Explanation = dataclasses.field(default_factory=explanation_pb2.Explanation, repr=False)
    #: From sending the frame to reading its answer, in seconds.
    round_trip_s: float = 0.0

    def explanation(self) -> Explanation:
        return self

    @functools.cached_property
    def predictions(self) -> list[Prediction]:
        """The classes with the highest logits, the highest first."""
        return [Prediction(p.class_index, p.label, p.logit, p.probability) for p in self.message.predictions]

    @functools.cached_property
    def targets(self) -> list[Target]:
        """One for each class and target layer that was asked for."""
        return [Target(target) for target in self.message.targets]

    @property
    def label(self) -> str:
        """The label of the top class, or its index where the model has no labels."""
        if not self.predictions:
            return ""
        return self.predictions[0].label or str(self.predictions[0].class_index)

    @property
    def probability(self) -> float:
        """The probability of the top class."""
        return self.predictions[0].probability if self.predictions else 0.0

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """The maps of the first target, by name."""
        return self.targets[0].maps if self.targets else {}

    @property
    def guided_grad_cam(self) -> np.ndarray:
        """Guided Grad-CAM of the first target, float32 `[C, H, W]`, signed."""
        return self._map("guided_grad_cam")

    @property
    def grad_cam(self) -> np.ndarray:
        """Grad-CAM of the first target, float32 `[H, W]`, never negative."""
        return self._map("grad_cam")

    @property
    def overlay(self) -> bytes:
        """The file of the first target's overlay."""
        return self._first().picture_file("overlay").data

    @property
    def tag(self) -> bytes:
        return self.message.tag

    @property
    def trace_id(self) -> str:
        return self.message.trace_id

    @property
    def capture_time(self) -> float | None:
        """When the frame was taken, in seconds since 1970; None: it did not say."""
        if not self.message.HasField("capture_time"):
            return None
        return self.message.capture_time.ToMicroseconds() / 1e6

    @property
    def notices(self) -> list[Notice]:
        codes = explanation_pb2.Notice.Code
        return [Notice(_name(codes, "CODE_", one.code), one.message) for one in self.message.notices]

    @property
    def timings_ms(self) -> dict[str, float]:
        """The milliseconds of each stage in the server: "queue", "forward", "backward", …"""
        stages = explanation_pb2.Stage
        return {_name(stages, "STAGE_", one.stage): one.duration_ns / 1e6 for one in self.message.timings}

    @property
    def model_to_frame(self) -> np.ndarray:
        """The 2 × 3 matrix from pixel centres of the model's input to pixels of the frame as it was sent."""
        m = self.message.model_to_frame
        return np.array([[m.xx, m.xy, m.x0], [m.yx, m.yy, m.y0]])

    def save_overlay(self, path: str | os.PathLike[str], target: int = 0) -> None:
        """Writes the overlay of a target, as the server drew it. The file's suffix must fit its format."""
        self.save_picture(path, "overlay", target)

    def save_picture(self, path: str | os.PathLike[str], name: str, target: int = 0) -> None:
        """Writes the picture `name` of a target: "overlay", "heat_map", "guided_grad_cam", "light", …"""
        found = (self._first() if target == 0 else self.targets[target]).picture_file(name)
        suffixes = _SUFFIXES.get(found.format, ())
        if suffixes and pathlib.Path(path).suffix.lower() not in suffixes:
            raise ValueError(f"the picture is {suffixes[0][1:]} and {os.fspath(path)} is not named so: "
                             'choose another name, or Options(picture_format="png" or "jpeg")')
        pathlib.Path(path).write_bytes(found.data)

    def draw(
        self, frame: np.ndarray, opacity: float = 0.6, color: str = "rgb", most: float | None = None
    ) -> np.ndarray:
        """Grad-CAM of the first target over `frame`, uint8 `[H, W, 3]`; transparent where there is no evidence.

        For live pictures: nothing is encoded or decoded. `frame` is the frame as it was sent, upright, uint8
        `[H, W, 3]` or `[H, W]`; `color` "bgr" for OpenCV. The map "grad_cam" must be there, at the model's or the
        frame's resolution. `most` is the value that is drawn red; default: the map's own maximum, so that red means
        "most in this frame", not "much".
        """
        heat = self.grad_cam
        is_of_frame = next(one.resolution == options_pb2.RESOLUTION_FRAME for one in self.message.targets[0].tensors
                           if one.map == options_pb2.MAP_GRAD_CAM)
        if any(one.resolution == options_pb2.RESOLUTION_LAYER for one in self.message.targets[0].tensors):
            raise ValueError('draw() needs "grad_cam" at the model\'s or the frame\'s resolution, not the layer\'s')
        if not is_of_frame:
            heat = _picture.sampled(heat, frame.shape[:2], self.model_to_frame)
        elif heat.shape != frame.shape[:2]:
            raise ValueError(f"the map is of a frame {list(heat.shape)}, and this one is {list(frame.shape[:2])}")
        most = float(self.grad_cam.max()) if most is None else most
        return _picture.blended(frame, heat / most if most > 0 else heat, opacity, color)

    def __str__(self) -> str:
        return f"frame {self.sequence}: {self.label} {self.probability:.3f}"

    def _first(self) -> Target:
        if not self.targets:
            raise ValueError("there is no target: the options ask for predictions only")
        return self.targets[0]

    def _map(self, name: str) -> np.ndarray:
        maps = self._first().maps
        if name not in maps:
            raise ValueError(f'there is no map "{name}": ask for it with Options(maps=["{name}"])')
        return maps[name]


def array(tensor: tensor_pb2.Tensor) -> np.ndarray:
    """The numbers of a tensor as float32. Of float32, a read-only view of the message's bytes: nothing is copied."""
    if tensor.element_type not in _TYPES and tensor.element_type != tensor_pb2.ELEMENT_TYPE_UNSPECIFIED:
        raise CamlensError(f"this client does not know the element type {tensor.element_type}: update it")
    values = np.frombuffer(tensor.data, _TYPES.get(tensor.element_type, "<f4")).reshape(tensor.shape)
    if tensor.element_type == tensor_pb2.ELEMENT_TYPE_UINT8:
        return (values.astype(np.float32) - tensor.zero_point) * np.float32(tensor.scale)
    return values.astype(np.float32, copy=False)


def drop_reason(reason: int) -> str:
    return _name(explain_pb2.Dropped.Reason, "REASON_", reason)


def _name(enum, prefix: str, value: int) -> str:
    """The name of an enum's value without its prefix; of one that this client does not know, the number."""
    return enum.Name(value).removeprefix(prefix).lower() if value in enum.values() else str(value)
