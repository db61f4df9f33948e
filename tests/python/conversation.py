"""A stream that a test drives one message at a time."""

import queue

from protocol import pb

PATIENCE_S = 120


class Conversation:
    """A stream that is open, by default with the policy BLOCK, which drops nothing."""

    def __init__(self, stub, **fields):
        self.requests = queue.Queue()
        self.answers = stub.ExplainStream(iter(self.requests.get, None), timeout=PATIENCE_S)
        fields.setdefault("policy", pb.StreamPolicy(overflow=pb.StreamPolicy.OVERFLOW_BLOCK))
        self.say(open=pb.Open(**fields))

    def say(self, **message) -> None:
        self.requests.put(pb.ExplainStreamRequest(**message))

    def hear(self):
        """The kind of the next message, and the message."""
        answer = next(self.answers)
        kind = answer.WhichOneof("message")
        return kind, getattr(answer, kind)

    def end(self) -> list:
        """Ends the sending side; returns the remaining messages."""
        self.requests.put(None)
        return list(self.answers)
