"""What to compute, and what happens when frames come too fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Union

from .v1 import explain_pb2, image_pb2, options_pb2, tensor_pb2


@dataclasses.dataclass(frozen=True)
class Top:
    """The k classes with the highest logits."""

    k: int = 1


#: A class to explain: its index, its label, or `Top(k)`.
TargetClass = Union[int, str, Top]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compute for a frame. None: as the server, or the stream, has it.

    `targets`: the classes to explain, by index or label, or `Top(k)`; default: the top class.
    `maps`: "guided_grad_cam", "grad_cam", "guided_backprop", "input", which come as numpy arrays.
    `pictures`: "overlay", "heat_map", "guided_grad_cam", "guided_backprop", "light", drawn by the server as files of
    `picture_format` ("png" or "jpeg").
    `element_type`: "float32", "float16" or "uint8"; arrays are float32 in any case, smaller types only travel faster.
    `resolution`: "model", "frame", or "layer" (for "grad_cam" alone).
    `opacity`: 0 to 1, of overlays and of "light". `color_map`: "turbo", "viridis" or "jet".
    `quality`: of JPEGs, 1 to 100.
    `precision`: "float32", "exact" or "bfloat16". `convention`: "captum" or "pytorch_grad_cam".

    Names that do not exist raise ValueError when the message is made; the server checks everything else.
    """

    targets: Sequence[TargetClass] | TargetClass | None = None
    maps: Sequence[str] | None = None
    pictures: Sequence[str] | None = None
    target_layers: Sequence[str] | None = None
    element_type: str = "float32"
    resolution: str = "model"
    picture_format: str = "png"
    color_map: str | None = None
    opacity: float | None = None
    quality: int | None = None
    fixed_range: tuple[float, float] | None = None
    top_predictions: int | None = None
    precision: str | None = None
    convention: str | None = None
    predictions_only: bool | None = None
    allow_damaged_frames: bool | None = None

    def message(self) -> options_pb2.ExplainOptions:
        """The options of the protocol."""
        targets = () if self.targets is None else self.targets
        if isinstance(targets, (int, str, Top)):
            targets = (targets,)
        return options_pb2.ExplainOptions(
            targets=[_target(target) for target in targets],
            target_layers=_names(self.target_layers, "target_layers"),
            tensors=[self._tensor(name) for name in _names(self.maps, "maps")],
            pictures=[self._picture(name) for name in _names(self.pictures, "pictures")],
            top_predictions=self.top_predictions,
            precision=_value(options_pb2.Precision, "precision", self.precision),
            convention=_value(options_pb2.Convention, "convention", self.convention),
            predictions_only=self.predictions_only,
            allow_damaged_frames=self.allow_damaged_frames,
        )

    def _tensor(self, name: str) -> options_pb2.TensorOutput:
        return options_pb2.TensorOutput(
            map=_value(options_pb2.Map, "map", name),
            element_type=_value(tensor_pb2.ElementType, "element_type", self.element_type),
            resolution=_value(options_pb2.Resolution, "resolution", self.resolution),
        )

    def _picture(self, name: str) -> options_pb2.PictureOutput:
        low, high = self.fixed_range or (0, 0)
        return options_pb2.PictureOutput(
            picture=_value(options_pb2.Picture, "picture", name),
            format=_value(image_pb2.ImageFormat, "image_format", self.picture_format),
            color_map=_value(options_pb2.ColorMap, "color_map", self.color_map),
            opacity=self.opacity,
            quality=self.quality,
            fixed_range=options_pb2.ValueRange(min=low, max=high) if self.fixed_range else None,
        )


@dataclasses.dataclass(frozen=True)
class Policy:
    """What happens when frames come faster than they are explained.

    `overflow`: "block" (recordings: nothing is dropped), "latest" (cameras: a newer frame replaces the waiting one) or
    "reject" (a frame too many is `Failed`). Everything else as in StreamPolicy of the protocol; None: its default.
    """

    overflow: str = "block"
    depth: int | None = None
    time_to_live_s: float | None = None
    max_rate_hz: float | None = None
    unordered: bool = False
    priority: int = 0
    max_response_bytes: int = 0

    def message(self) -> explain_pb2.StreamPolicy:
        """The policy of the protocol."""
        policy = explain_pb2.StreamPolicy(
            overflow=_value(explain_pb2.StreamPolicy.Overflow, "overflow", self.overflow),
            depth=self.depth or 0,
            max_rate_hz=self.max_rate_hz,
            unordered=self.unordered,
            priority=self.priority,
            max_response_bytes=self.max_response_bytes,
        )
        if self.time_to_live_s is not None:
            policy.time_to_live.FromMicroseconds(round(self.time_to_live_s * 1e6))
        return policy


def _target(target: TargetClass) -> options_pb2.Target:
    if isinstance(target, Top):
        return options_pb2.Target(top=target.k)
    if isinstance(target, str):
        return options_pb2.Target(label=target)
    return options_pb2.Target(class_index=int(target))


def _names(names: Sequence[str] | None, what: str) -> Sequence[str]:
    if isinstance(names, str):
        raise ValueError(f'{what} is a list of names: [{names!r}], not {names!r}')
    return names or ()


def _value(enum: Any, kind: str, name: str | None) -> Any:
    """The value of an enum of the protocol: `kind` "map" and name "grad_cam" give MAP_GRAD_CAM."""
    if name is None:
        return 0
    prefix = f"{kind.upper()}_"
    key = f"{prefix}{name.upper().replace('-', '_')}"
    if key not in enum.keys() or key.endswith("UNSPECIFIED"):
        known = [k.removeprefix(prefix).lower() for k in enum.keys() if not k.endswith("UNSPECIFIED")]
        raise ValueError(f"there is no {kind} {name!r}: {', '.join(known)}")
    return enum.Value(key)
