"""The client for code without asyncio."""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import grpc

from . import _calls, errors
from ._backoff import Backoff
from ._calls import Deadline, as_frame
from ._connection import Connection
from ._ledger import Counts, Entry, Ledger
from ._options import Options, Policy
from .answers import Answer, Explanation
from .frames import Frame, Image
from .v1 import explain_pb2, explain_pb2_grpc, model_pb2, model_pb2_grpc

#: How long the end of the program waits for threads that read sources.
_MOST_EXIT_S = 2.0
#: Streams whose source is being read.
_reading: set[Stream] = set()


class _Link:
    """A channel that several calls share; it closes when its last user has let it go."""

    def __init__(self, connection: Connection):
        credentials, arguments = connection.credentials(), connection.arguments()
        if credentials is None:
            self.channel = grpc.insecure_channel(connection.target, options=arguments)
        else:
            self.channel = grpc.secure_channel(connection.target, credentials, options=arguments)
        self.explain = explain_pb2_grpc.ExplainServiceStub(self.channel)
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)
        self.users = 0
        self.is_current = True


class Client:
    """A connection to a camlens server. It may be used by several threads, and as a context manager.

    `server` is an address or a `Connection`; further settings of a `Connection` may be given by name. Nothing is
    connected before the first call. A connection that breaks is opened again, at the pace of `backoff`.

        with camlens.Client("https://camlens.example:443", ca="ca.crt", token=token) as client:
            print(client.explain("photo.jpg"))
    """

    def __init__(
        self, server: str | Connection | None = None, *, backoff: Backoff | None = None, **settings: Any
    ):
        if isinstance(server, Connection) and settings:
            raise ValueError("give a Connection or its settings, not both")
        self.connection = server if isinstance(server, Connection) else Connection(server, **settings)
        self.backoff = backoff or Backoff()
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._is_closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Streams that still run end with `Unavailable`."""
        with self._lock:
            self._is_closed = True
            link, self._link = self._link, None
        if link is not None:
            link.channel.close()

    def explain(
        self,
        image: Image | Frame,
        options: Options | None = None,
        *,
        model: str | None = None,
        version: int | None = None,
        color: str = "rgb",
        timeout: float | None = 60.0,
        **fields: Any,
    ) -> Explanation:
        """Explains one picture. What an image may be: see `Frame`.

        Options are given as `Options` or by their names: `explain(image, targets=["espresso"])`. Without any, the
        answer has Guided Grad-CAM, Grad-CAM and, unless the image is a model input, an overlay as PNG. `timeout` is in
        seconds; within it, a call whose connection broke is made again.

        Raises a `StatusError`, ValueError or TypeError.
        """
        request = _calls.explain_request(image, options, model, version, color, fields)
        return _calls.explanation(image, *self._call("explain", "Explain", request, timeout))

    def stream(
        self,
        frames: Iterable[Image | Frame],
        options: Options | None = None,
        *,
        policy: Policy | str = "block",
        model: str | None = None,
        version: int | None = None,
        name: str = "",
        color: str = "rgb",
        in_flight: int | None = None,
        resend: int = 0,
        timeout: float | None = None,
        **fields: Any,
    ) -> Stream:
        """Explains the frames of a source, as they come. Iterate over the result: one `Answer` for each frame.

        Frames are read in a thread of their own and sent within the credit that the server grants, at most `in_flight`
        at a time. `policy` is a `Policy` or its overflow: "block" loses nothing; with "latest", for cameras, the source
        is read on whatever happens, and newer frames replace older ones, here or in the server. Both kinds of drops are
        answers.

        After GoingAway, or when the connection breaks, the stream continues on a new connection: frames that no server
        accepted are sent again. Frames that a server may have accepted and did not answer are `Lost`, or, with
        `resend`, sent again up to that many times. `name` is the source's, for people and telemetry. `timeout` bounds
        the whole stream, in seconds.
        """
        plan = _calls.StreamPlan.make(options, policy, model, version, name, color, in_flight, resend, fields)
        return Stream(self, iter(frames), plan, timeout)

    def models(self, timeout: float | None = 60.0) -> list[model_pb2.ModelSummary]:
        """Every model in every version: `.name`, `.version`, `.digest`, `.summary`, `.class_count`."""
        return list(self._call("models", "ListModels", model_pb2.ListModelsRequest(), timeout)[0].models)

    def model(
        self, name: str | None = None, version: int | None = None, timeout: float | None = 60.0
    ) -> model_pb2.ModelMetadata:
        """One model with its input, labels and target layers; default: the only one, at its newest version."""
        request = model_pb2.GetModelRequest(model=_calls.selector(name, version))
        return self._call("models", "GetModel", request, timeout)[0].metadata

    def _call(self, service: str, method: str, request: Any, timeout: float | None) -> tuple[Any, float]:
        """A unary call, which is made again while the connection breaks; what it gives, and how long the last took."""
        deadline, tries, since = Deadline(timeout), 0, time.monotonic()
        while True:
            link = self._acquire()
            began = time.monotonic()
            try:
                call = getattr(getattr(link, service), method)
                answer = call(request, timeout=deadline.left(), metadata=self.connection.metadata())
                return answer, time.monotonic() - began
            except grpc.RpcError as error:
                tries += 1
                wait = self.backoff.wait_s(tries)
                is_over = time.monotonic() + wait - since > self.backoff.give_up_after_s
                if self._is_closed or not errors.is_lost_connection(error) or is_over or deadline.is_before(wait):
                    raise errors.from_rpc(error) from None
                self._renew(link)
            finally:
                self._release(link)
            time.sleep(wait)

    def _acquire(self) -> _Link:
        with self._lock:
            if self._is_closed:
                raise errors.Unavailable(grpc.StatusCode.UNAVAILABLE, "the client is closed")
            if self._link is None:
                self._link = _Link(self.connection)
            self._link.users += 1
            return self._link

    def _release(self, link: _Link) -> None:
        with self._lock:
            link.users -= 1
            is_over = link.users == 0 and not link.is_current
        if is_over:
            link.channel.close()

    def _renew(self, link: _Link) -> None:
        """The next call opens a connection of its own; calls on this one may go on."""
        with self._lock:
            link.is_current = False
            if self._link is link:
                self._link = None


class Stream(Iterator[Answer]):
    """The answers of a stream, in the order of its frames where the protocol keeps it. `Client.stream` makes it.

    Leave it early with `close()`, or use it as a context manager. `counts` says what became of the frames so far.
    """

    def __init__(self, client: Client, frames: Iterator[Image | Frame], plan: _calls.StreamPlan, timeout: float | None):
        self._client, self._frames, self._plan = client, frames, plan
        self._deadline = Deadline(timeout)
        self._ledger = Ledger(plan.resend, plan.in_flight)
        self._changed = threading.Condition()
        self._control: list[explain_pb2.ExplainStreamRequest] = []
        self._is_source_over = False
        self._source = threading.Thread(target=self._read_source, name="camlens-source", daemon=True)
        self._is_closed = False
        self._error: BaseException | None = None
        self._call: Any = None
        #: The settings in effect, from the server: of the newest connection. None: there was none yet.
        self.opened: explain_pb2.Opened | None = None
        self._answers = self._run()

    @property
    def counts(self) -> Counts:
        """What became of the frames so far."""
        return self._ledger.counts

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Answer:
        return next(self._answers)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream: frames without an answer are cancelled. The source is not read any more."""
        self._end()
        # Releases the connection. While another thread waits for an answer, that thread does.
        with contextlib.suppress(ValueError):
            self._answers.close()

    def _end(self) -> None:
        with self._changed:
            self._is_closed = True
            call = self._call
            self._changed.notify_all()
        if call is not None:
            call.cancel()

    def cancel(self, sequence: int) -> None:
        """Takes a frame back: it ends as `Dropped` ("cancelled"), unless its answer is faster."""
        with self._changed:
            self._control.append(explain_pb2.ExplainStreamRequest(cancel=explain_pb2.Cancel(sequence=sequence)))
            self._changed.notify_all()

    def update(self, options: Options | None = None, policy: Policy | None = None) -> None:
        """Changes options or policy for the frames that follow, also on later connections."""
        with self._changed:
            self._control.append(explain_pb2.ExplainStreamRequest(update=self._plan.update(options, policy)))
            self._changed.notify_all()

    def _run(self) -> Generator[Answer, None, None]:
        self._source.start()
        tries, since = 0, time.monotonic()
        try:
            while not self._is_done():
                opened, progressed, error = yield from self._converse()
                if self._is_closed:
                    break
                if error is not None and not errors.is_lost_connection(error):
                    yield from self._endings()
                    raise errors.from_rpc(error, self._unanswered())
                if self._is_done():
                    break
                # A server that opens streams is there; one that ends no frame is asked less and less often.
                since = time.monotonic() if opened else since
                tries = 1 if progressed else tries + 1
                wait = self._client.backoff.wait_s(tries)
                yield from self._endings()
                if error is not None and time.monotonic() + wait - since > self._client.backoff.give_up_after_s:
                    raise errors.from_rpc(error, self._unanswered())
                if self._deadline.is_before(wait):
                    raise errors.DeadlineExceeded(
                        grpc.StatusCode.DEADLINE_EXCEEDED, "the stream's timeout has passed", "", self._unanswered())
                self._pause(wait)
            yield from self._endings()
            if self._error is not None:
                raise self._error
        finally:
            self.close()

    def _converse(self) -> Generator[Answer, None, tuple[bool, bool, grpc.RpcError | None]]:
        """One call, from Open to its status. Returns whether it was opened, whether a frame ended, and its error."""
        link = self._client._acquire()
        over = threading.Event()
        call, opened, progressed, error, why = None, False, False, None, "the server ended the stream"
        is_left = True
        try:
            metadata = self._client.connection.metadata()
            call = link.explain.ExplainStream(self._requests(over), timeout=self._deadline.left(), metadata=metadata)
            with self._changed:
                self._call = call
                if self._is_closed:
                    call.cancel()
            for response in call:
                with self._changed:
                    progressed |= self._ledger.take(response, time.monotonic())
                    if response.HasField("opened"):
                        self.opened, opened = response.opened, True
                    self._changed.notify_all()
                yield from self._endings()
            is_left = not self._ledger.is_open
        except grpc.RpcError as failure:
            error, why = failure, f"{failure.code().name}: {failure.details()}"
        finally:
            over.set()
            if call is not None:
                call.cancel()
            with self._changed:
                self._ledger.disconnected(why)
                self._call = None
                self._changed.notify_all()
            if is_left:
                # The server goes away, the connection has reached its age, or it broke.
                self._client._renew(link)
            self._client._release(link)
        return opened, progressed, error

    def _requests(self, over: threading.Event) -> Iterator[explain_pb2.ExplainStreamRequest]:
        """The messages of one call. gRPC iterates over them in a thread of its own."""
        with self._changed:
            first = explain_pb2.ExplainStreamRequest(open=self._plan.open)
        yield first
        while True:
            with self._changed:
                while True:
                    if over.is_set() or self._is_closed:
                        return
                    if self._ledger.is_open and self._control:
                        request = self._control.pop(0)
                        break
                    if self._ledger.may_send():
                        request = explain_pb2.ExplainStreamRequest(frame=self._ledger.send(time.monotonic()))
                        self._changed.notify_all()
                        break
                    # The sending side ends when every frame has ended, so that each can be cancelled until then.
                    if self._ledger.is_open and self._is_source_over and self._ledger.is_idle:
                        return
                    self._changed.wait()
            yield request

    def _read_source(self) -> None:
        """Reads the frames into the ledger: at most one ahead, or, of a camera, always the newest."""
        plan, ledger, sequence = self._plan, self._ledger, 0
        _reading.add(self)
        try:
            for source in self._frames:
                sequence += 1
                message = as_frame(source).message(sequence, plan.color)
                with self._changed:
                    while not self._is_closed and plan.must_wait(ledger):
                        self._changed.wait()
                    if self._is_closed:
                        return
                    ledger.add(Entry(sequence, source, message))
                    if plan.is_live:
                        ledger.replace(plan.depth)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - it is raised where the stream is read
            self._error = error
        finally:
            with self._changed:
                self._is_source_over = True
                self._changed.notify_all()
            _reading.discard(self)

    def _is_done(self) -> bool:
        with self._changed:
            return self._is_closed or (self._is_source_over and not self._ledger.unanswered)

    def _unanswered(self) -> list[int]:
        with self._changed:
            return self._ledger.unanswered

    def _endings(self) -> Iterator[Answer]:
        while True:
            with self._changed:
                if not self._ledger.endings:
                    return
                ending = self._ledger.endings.popleft()
                self._changed.notify_all()
            yield ending

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._changed:
            while not self._is_closed and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)


@atexit.register
def _end_sources() -> None:
    """Waits until no source is read. When Python ends, a thread in C++, as in OpenCV, would abort the process."""
    streams, until = tuple(_reading), time.monotonic() + _MOST_EXIT_S
    for stream in streams:
        stream._end()
    for stream in streams:
        stream._source.join(max(0.0, until - time.monotonic()))


@functools.lru_cache(maxsize=16)
def _client(connection: Connection) -> Client:
    """The client of the functions below: one connection for all calls to a server."""
    return Client(connection)


def explain(image: Image | Frame, options: Options | None = None, **settings: Any) -> Explanation:
    """Explains one picture: `camlens.explain("photo.jpg").save_overlay("overlay.png")`.

    `server` and the other settings of `Connection`, and those of `Client.explain`, may be given by name. The connection
    is kept for the next call.
    """
    connection, others = _calls.split(settings)
    return _client(connection).explain(image, options, **others)


def stream(frames: Iterable[Image | Frame], options: Options | None = None, **settings: Any) -> Stream:
    """Explains frames as they come: `for answer in camlens.stream(frames): print(answer)`.

    `server` and the other settings of `Connection`, and those of `Client.stream`, may be given by name.
    """
    connection, others = _calls.split(settings)
    return _client(connection).stream(frames, options, **others)
