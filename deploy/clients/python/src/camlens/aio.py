"""The client for asyncio.

    explanation = await camlens.aio.explain("photo.jpg")

    async for answer in camlens.aio.stream(frames):
        print(answer)

Everything is as in the client without asyncio, which does the work in threads, a few for each stream: one
implementation of credit, drain and reconnection, and gRPC's status is the server's. (With grpc.aio, a write that fails
while the server ends a stream replaces the status by INTERNAL.) The source of a stream may be an iterable or an
asynchronous one; an iterable is read in a thread, so that a camera that blocks does not hold the event loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

from . import _calls, _client
from ._backoff import Backoff
from ._connection import Connection
from ._ledger import Counts
from ._options import Options, Policy
from .answers import Answer, Explanation
from .frames import Frame, Image
from .v1 import explain_pb2, model_pb2

_T = TypeVar("_T")
_OVER: Any = object()
# Unary calls of a client that run at a time; others wait.
_MOST_CALLS = 64


class Client:
    """A connection to a camlens server. See `camlens.Client`.

        async with camlens.aio.Client("unix:/run/camlens.sock") as client:
            print(await client.explain("photo.jpg"))
    """

    def __init__(self, server: str | Connection | None = None, *, backoff: Backoff | None = None, **settings: Any):
        self._client = _client.Client(server, backoff=backoff, **settings)
        self._threads = concurrent.futures.ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="camlens-call")

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. Streams that still run end with `Unavailable`."""
        await self._run(self._client.close)
        self._threads.shutdown(wait=False)

    async def explain(self, image: Image | Frame, options: Options | None = None, **settings: Any) -> Explanation:
        """Explains one picture. The arguments are those of `camlens.Client.explain`."""
        return await self._run(lambda: self._client.explain(image, options, **settings))

    def stream(
        self,
        frames: Iterable[Image | Frame] | AsyncIterable[Image | Frame],
        options: Options | None = None,
        **settings: Any,
    ) -> Stream:
        """Explains the frames of a source, as they come. The arguments are those of `camlens.Client.stream`."""
        return Stream(self._client, frames, options, settings)

    async def models(self, timeout: float | None = 60.0) -> list[model_pb2.ModelSummary]:
        """Every model in every version."""
        return await self._run(lambda: self._client.models(timeout))

    async def model(
        self, name: str | None = None, version: int | None = None, timeout: float | None = 60.0
    ) -> model_pb2.ModelMetadata:
        """One model; default: the only one, at its newest version."""
        return await self._run(lambda: self._client.model(name, version, timeout))

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


class Stream(AsyncIterator[Answer]):
    """The answers of a stream. See `camlens.Stream`. Leave it early with `await close()`, or use `async with`."""

    def __init__(self, client: _client.Client, frames: Any, options: Options | None, settings: dict[str, Any]):
        self._source = _Source(frames) if isinstance(frames, AsyncIterable) else None
        self._stream = client.stream(self._source or frames, options, **settings)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="camlens-stream")
        self._next: asyncio.Future[Answer] | None = None
        self._is_over = False

    @property
    def counts(self) -> Counts:
        """What became of the frames so far."""
        return self._stream.counts

    @property
    def opened(self) -> explain_pb2.Opened | None:
        """The settings in effect, from the server: of the newest connection. None: there was none yet."""
        return self._stream.opened

    def cancel(self, sequence: int) -> None:
        """Takes a frame back: it ends as `Dropped` ("cancelled"), unless its answer is faster."""
        self._stream.cancel(sequence)

    def update(self, options: Options | None = None, policy: Policy | None = None) -> None:
        """Changes options or policy for the frames that follow, also on later connections."""
        self._stream.update(options, policy)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Answer:
        if self._is_over:
            raise StopAsyncIteration
        loop = asyncio.get_running_loop()
        if self._source is not None:
            self._source.loop = loop
        if self._next is None:
            self._next = loop.run_in_executor(self._thread, next, self._stream, _OVER)
        # Shielded: an answer that comes after this wait was cancelled is that of the next one.
        future = self._next
        try:
            answer = await asyncio.shield(future)
        finally:
            if future.done():
                self._next = None
        if answer is _OVER:
            await self.close()
            raise StopAsyncIteration
        return answer

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the stream: frames without an answer are cancelled. The source is not read any more."""
        self._is_over = True
        self._stream.close()
        if self._source is not None:
            await self._source.close()
        if self._next is not None:
            with contextlib.suppress(Exception):
                await self._next
        self._thread.shutdown(wait=False)


class _Source(Iterator[Any]):
    """An asynchronous source, for the thread that reads it."""

    def __init__(self, frames: AsyncIterable[Any]):
        self._frames = frames.__aiter__()
        self._reading: concurrent.futures.Future[Any] | None = None
        self._is_closed = False
        #: The event loop that the source belongs to; set before it is read.
        self.loop: asyncio.AbstractEventLoop | None = None

    def __next__(self) -> Any:
        if self._is_closed or self.loop is None:
            raise StopIteration
        self._reading = asyncio.run_coroutine_threadsafe(self._frame(), self.loop)
        try:
            frame = self._reading.result()
        except concurrent.futures.CancelledError:
            raise StopIteration from None
        if frame is _OVER:
            raise StopIteration
        return frame

    async def _frame(self) -> Any:
        try:
            return await self._frames.__anext__()
        except StopAsyncIteration:
            return _OVER

    async def close(self) -> None:
        self._is_closed = True
        if self._reading is not None:
            self._reading.cancel()
        # The cancelled read ends in the loop's next round; only then can a generator be closed.
        await asyncio.sleep(0)
        if hasattr(self._frames, "aclose"):
            with contextlib.suppress(RuntimeError):
                await self._frames.aclose()


async def explain(image: Image | Frame, options: Options | None = None, **settings: Any) -> Explanation:
    """Explains one picture, over a connection of its own: `await camlens.aio.explain("photo.jpg")`.

    `server` and the other settings of `Connection`, and those of `Client.explain`, may be given by name.
    """
    connection, others = _calls.split(settings)
    async with Client(connection) as client:
        return await client.explain(image, options, **others)


async def stream(
    frames: Iterable[Image | Frame] | AsyncIterable[Image | Frame], options: Options | None = None, **settings: Any
) -> AsyncIterator[Answer]:
    """Explains frames as they come: `async for answer in camlens.aio.stream(frames): print(answer)`.

    `server` and the other settings of `Connection`, and those of `Client.stream`, may be given by name.
    """
    connection, others = _calls.split(settings)
    async with Client(connection) as client, client.stream(frames, options, **others) as answers:
        async for answer in answers:
            yield answer
