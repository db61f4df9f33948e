"""Client for camlens: what does an image model look at?

One picture, one line; the server is `CAMLENS_SERVER`, else 127.0.0.1:8033:

    camlens.explain("photo.jpg").save_overlay("overlay.png")

A source of frames (files, arrays, PIL pictures, a camera), two lines:

    for answer in camlens.stream(frames):
        print(answer)

`Client` and `aio.Client` hold a connection with its settings: address, TLS, token, back-off. Each frame of a stream
gets exactly one answer: an `Explanation`, a `Dropped`, a `Failed` or a `Lost`.
"""

from . import aio
from ._backoff import Backoff
from ._client import Client, Stream, explain, stream
from ._connection import Connection
from ._ledger import Counts
from ._options import Options, Policy, Top
from ._picture import png, write_png
from .answers import (
    Answer,
    Dropped,
    Explanation,
    Failed,
    Lost,
    Notice,
    Prediction,
    Target,
)
from .errors import (
    CamlensError,
    DeadlineExceeded,
    FrameDropped,
    FrameFailed,
    FrameLost,
    NotFound,
    StatusError,
    Unauthenticated,
    Unavailable,
)
from .frames import Frame

__version__ = "0.2.0"

__all__ = [
    "Answer",
    "Backoff",
    "CamlensError",
    "Client",
    "Connection",
    "Counts",
    "DeadlineExceeded",
    "Dropped",
    "Explanation",
    "Failed",
    "Frame",
    "FrameDropped",
    "FrameFailed",
    "FrameLost",
    "Lost",
    "NotFound",
    "Notice",
    "Options",
    "Policy",
    "Prediction",
    "StatusError",
    "Stream",
    "Target",
    "Top",
    "Unauthenticated",
    "Unavailable",
    "aio",
    "explain",
    "png",
    "stream",
    "write_png",
]
