"""A server that plays a script: what a real one does seldom, or never, happens on demand."""

import collections
import concurrent.futures
import threading

import grpc

from protocol import pb


def opened(max_in_flight):
    return pb.ExplainStreamResponse(opened=pb.Opened(stream_id="fake", max_in_flight=max_in_flight))


def answer(sequence):
    predictions = [pb.Prediction(class_index=7, label="espresso", probability=0.9)]
    overlay = pb.EncodedPicture(picture=pb.PICTURE_OVERLAY, format=pb.IMAGE_FORMAT_PNG, data=b"\x89PNG of a fake")
    targets = [pb.TargetExplanation(class_index=7, label="espresso", pictures=[overlay])]
    explanation = pb.Explanation(sequence=sequence, predictions=predictions, targets=targets)
    return pb.ExplainStreamResponse(explanation=explanation)


def dropped(first, last, count, reason):
    run = pb.Dropped(first_sequence=first, last_sequence=last, count=count, reason=getattr(pb.Dropped, reason))
    return pb.ExplainStreamResponse(dropped=run)


def frame_error(sequence, code, message, field=""):
    error = pb.FrameError(sequence=sequence, code=code.value[0], message=message, field=field)
    return pb.ExplainStreamResponse(frame_error=error)


def going_away(last_accepted=None):
    return pb.ExplainStreamResponse(going_away=pb.GoingAway(last_accepted_sequence=last_accepted, reason="a test"))


class Call:
    """One stream, as a script sees it."""

    def __init__(self, requests, context):
        self._requests, self.context = requests, context
        self.open, self.frames, self.others = None, [], []

    def read(self):
        """The next frame's sequence; None when the client has ended its side."""
        for request in self._requests:
            kind = request.WhichOneof("message")
            if kind == "frame":
                self.frames.append(request.frame.sequence)
                return request.frame.sequence
            if kind == "open":
                self.open = request.open
            else:
                self.others.append(request)
                return kind
        return None

    def read_open(self):
        self.open = next(self._requests).open


class FakeServer:
    """Serves `scripts`: the n-th stream plays the n-th one, and the last one plays for all that follow.

    A script is a function of a `Call` that yields responses.
    """

    def __init__(self, *scripts, address="127.0.0.1:0", credentials=None):
        self.scripts = collections.deque(scripts)
        self.calls, self._lock = [], threading.Lock()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=16))
        from camlens.v1 import explain_pb2_grpc

        explain_pb2_grpc.add_ExplainServiceServicer_to_server(self, self.server)
        if credentials is None:
            port = self.server.add_insecure_port(address)
        else:
            port = self.server.add_secure_port(address, credentials)
        self.address = address.removesuffix("0") + str(port) if address.endswith(":0") else address
        self.server.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stop(0).wait()

    def ExplainStream(self, requests, context):  # noqa: N802 - gRPC's name
        call = Call(requests, context)
        with self._lock:
            self.calls.append(call)
            script = self.scripts[0] if len(self.scripts) == 1 else self.scripts.popleft()
        call.read_open()
        yield from script(call)

    def Explain(self, request, context):  # noqa: N802
        with self._lock:
            script = self.scripts[0] if len(self.scripts) == 1 else self.scripts.popleft()
        return script(request, context)

    @property
    def frames(self):
        """The sequences that each stream has read."""
        return [call.frames for call in self.calls]


def echo(call, credit=4):
    """Answers every frame."""
    yield opened(credit)
    while (sequence := call.read()) is not None:
        if isinstance(sequence, int):
            yield answer(sequence)
