"""The exceptions of the client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc

# The trailer that holds a google.rpc.Status, with a google.rpc.BadRequest in its details.
_DETAILS = "grpc-status-details-bin"
_BAD_REQUEST = b"type.googleapis.com/google.rpc.BadRequest"


class CamlensError(Exception):
    """Base of the client's exceptions."""


class StatusError(CamlensError):
    """The server ended a call with a status. `field` names the field at fault; empty: no field was."""

    def __init__(self, code: grpc.StatusCode, message: str, field: str = "", unanswered: Sequence[int] = ()):
        self.code, self.message, self.field = code, message, field
        #: Sequences of a stream's frames that were read from the source and had no answer when the stream failed.
        self.unanswered = tuple(unanswered)
        super().__init__(f"{code.name}: {message}" + (f" ({field})" if field and field not in message else ""))


class Unavailable(StatusError):
    """No server answered for as long as `Backoff.give_up_after_s` allows."""


class DeadlineExceeded(StatusError):
    """The call's timeout has passed."""


class Unauthenticated(StatusError):
    """The server wants a token that was not given, or does not know this one."""


class NotFound(StatusError):
    """There is no such model."""


class FrameDropped(CamlensError):
    """The frame will not be explained, through no fault of its own."""


class FrameFailed(CamlensError):
    """The frame cannot be explained."""


class FrameLost(CamlensError):
    """The connection broke before the frame had an answer."""


_KINDS = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.NOT_FOUND: NotFound,
}


def from_rpc(error: grpc.RpcError, unanswered: Sequence[int] = ()) -> StatusError:
    """The exception for a failed call."""
    code = error.code()
    details = next((value for key, value in tuple(error.trailing_metadata() or ()) if key == _DETAILS), b"")
    kind = _KINDS.get(code, StatusError)
    return kind(code, error.details() or "", _field(bytes(details)), unanswered)


def is_lost_connection(error: grpc.RpcError) -> bool:
    """Whether the connection ended the call, not camlens: another try may succeed.

    A proxy or the library reports a reset stream with a status of its own choice; its text tells.
    """
    code, text = error.code(), (error.details() or "").lower()
    if code is grpc.StatusCode.UNAVAILABLE:
        return True
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED):
        transport = ("rst_stream", "stream removed", "goaway", "connection reset", "socket closed", "http status code",
                     "without grpc-status", "http2 error")
        return any(word in text for word in transport)
    return False


def _field(status: bytes) -> str:
    """The first field of the BadRequest in a google.rpc.Status: details = 3, Any.value = 2, violations = 1, field = 1.

    Read by hand, since these types are in a package of their own that nothing else here needs.
    """
    try:
        for detail in _messages(status, 3):
            if _BAD_REQUEST in _messages(detail, 1):
                for request in _messages(detail, 2):
                    for violation in _messages(request, 1):
                        return next(iter(_messages(violation, 1)), b"").decode()
    except (IndexError, UnicodeDecodeError):
        pass
    return ""


def _messages(data: bytes, wanted: int) -> list[bytes]:
    return [value for number, value in _fields(data) if number == wanted]


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 2:
            length = varint()
            yield key >> 3, data[at : at + length]
            at += length
        elif kind == 0:
            varint()
        else:
            at += 8 if kind == 1 else 4
