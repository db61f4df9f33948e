"""What both clients, with asyncio and without, say in their calls."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from ._connection import Connection
from ._ledger import Ledger
from ._options import Options, Policy
from .answers import Explanation
from .frames import Frame, is_tensor
from .v1 import explain_pb2, model_pb2

class Deadline:
    """When a call must have ended. Without a timeout: never."""

    def __init__(self, timeout: float | None):
        self._at = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Seconds that are left."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def is_before(self, wait: float) -> bool:
        """Whether it passes within `wait` seconds."""
        return self._at is not None and time.monotonic() + wait >= self._at


def split(settings: dict[str, Any]) -> tuple[Connection, dict[str, Any]]:
    """The settings of the connection, and the others."""
    names = {field.name for field in dataclasses.fields(Connection)} - {"address"}
    of_connection = {name: settings.pop(name) for name in list(settings) if name in names}
    return Connection(settings.pop("server", None), **of_connection), settings


def as_frame(source: Any) -> Frame:
    return source if isinstance(source, Frame) else Frame(source)


def selector(name: str | None, version: int | None) -> model_pb2.ModelSelector | None:
    return None if name is None and version is None else model_pb2.ModelSelector(name=name or "", version=version)


def _merged(options: Options | None, fields: dict[str, Any], default: Options | None) -> Options | None:
    if options is not None and fields:
        return dataclasses.replace(options, **fields)
    if options is not None:
        return options
    return Options(**fields) if fields else default


def explain_request(
    image: Any, options: Options | None, model: str | None, version: int | None, color: str, fields: dict[str, Any]
) -> explain_pb2.ExplainRequest:
    # A model input has no picture to draw over.
    pictures = None if is_tensor(image) else ["overlay"]
    merged = _merged(options, fields, Options(maps=["guided_grad_cam", "grad_cam"], pictures=pictures))
    assert merged is not None
    return explain_pb2.ExplainRequest(
        model=selector(model, version), options=merged.message(), frame=as_frame(image).message(0, color)
    )


def explanation(image: Any, response: explain_pb2.ExplainResponse, seconds: float) -> Explanation:
    return Explanation(response.explanation.sequence, image, response.explanation, seconds)


@dataclasses.dataclass
class StreamPlan:
    """What a stream asks for."""

    open: explain_pb2.Open
    color: str
    in_flight: int | None
    resend: int
    #: Whether the source is read on when nothing can be sent.
    is_live: bool
    #: Frames that wait here at most, if it is.
    depth: int

    @classmethod
    def make(
        cls,
        options: Options | None,
        policy: Policy | str,
        model: str | None,
        version: int | None,
        name: str,
        color: str,
        in_flight: int | None,
        resend: int,
        fields: dict[str, Any],
    ) -> StreamPlan:
        policy = policy if isinstance(policy, Policy) else Policy(policy)
        if in_flight is not None and in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        if resend < 0:
            raise ValueError(f"resend must not be negative: {resend}")
        merged = _merged(options, fields, None)
        message = explain_pb2.Open(
            model=selector(model, version),
            options=None if merged is None else merged.message(),
            policy=policy.message(),
            source=name,
        )
        return cls(message, color, in_flight, resend, policy.overflow == "latest", policy.depth or 1)

    def must_wait(self, ledger: Ledger) -> bool:
        """Whether the source must not be read on: a frame waits already, or the reader takes no answers."""
        if self.is_live:
            return len(ledger.endings) >= 1000
        return len(ledger.waiting) >= 1

    def update(self, options: Options | None, policy: Policy | None) -> explain_pb2.Update:
        """The message that changes the stream; later connections are opened with what it sets."""
        update = explain_pb2.Update(
            options=None if options is None else options.message(), policy=None if policy is None else policy.message()
        )
        for field, _ in update.options.ListFields():
            self.open.options.ClearField(field.name)
        self.open.options.MergeFrom(update.options)
        if policy is not None:
            for field, _ in update.policy.ListFields():
                self.open.policy.ClearField(field.name)
            self.open.policy.MergeFrom(update.policy)
            self.is_live, self.depth = policy.overflow == "latest", policy.depth or 1
        return update
