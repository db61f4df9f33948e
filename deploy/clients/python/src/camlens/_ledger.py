"""Where each frame of a stream is: a state machine without threads, clocks and sockets.

A frame waits, is sent, and ends once. The ledger says which frame may be sent next, within the server's credit, and
which frames have to be sent again when a connection ends.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import grpc

from .answers import Answer, Dropped, Explanation, Failed, Lost, drop_reason
from .v1 import explain_pb2, frame_pb2

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_DRAINING = explain_pb2.Dropped.REASON_DRAINING


@dataclasses.dataclass
class Counts:
    """What became of the frames of a stream. read = answered + dropped + failed + lost + those without an ending."""

    read: int = 0
    answered: int = 0
    failed: int = 0
    lost: int = 0
    #: Dropped frames by reason.
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    #: Messages with a frame; a frame that was sent again counts again.
    sent: int = 0
    #: Frames that were sent again because no server had accepted them.
    not_accepted: int = 0
    #: Accepted frames without an answer that were sent again, because `resend` allows it.
    resent: int = 0
    #: Connections on which the server opened the stream.
    connections: int = 0
    #: Most frames that were sent and had not ended at a time, and the largest credit that a server gave.
    most_in_flight: int = 0
    credit: int = 0

    @property
    def ended(self) -> int:
        return self.answered + self.failed + self.lost + sum(self.dropped.values())


@dataclasses.dataclass
class Entry:
    """A frame between its source and its ending."""

    sequence: int
    source: Any
    message: frame_pb2.Frame
    #: How often it was sent to a server that may have accepted it.
    tries: int = 0
    sent_at: float = 0.0


@dataclasses.dataclass
class _Run:
    first: int
    last: int
    count: int
    reason: int


class Ledger:
    """The frames of one stream, over all of its connections."""

    def __init__(self, resend: int = 0, in_flight: int | None = None):
        self.waiting: collections.deque[Entry] = collections.deque()
        self.endings: collections.deque[Answer] = collections.deque()
        self.counts = Counts()
        self._resend, self._own_limit = resend, in_flight
        # Sent on this connection and not ended, in the order of their sequences.
        self._open: dict[int, Entry] = {}
        # Runs of drops that name more open frames than they end: two reasons alternate.
        self._runs: list[_Run] = []
        self._again: list[Entry] = []
        self._limit = 0
        self._is_going_away = False
        self._last_accepted = -1

    # ------------------------------------------------------------------------------------------------------ sending
    def add(self, entry: Entry) -> None:
        """A new frame waits."""
        self.counts.read += 1
        self.waiting.append(entry)

    def replace(self, depth: int) -> None:
        """Drops the oldest waiting frames until `depth` are left: a camera's frames are not worth waiting for."""
        while len(self.waiting) > depth:
            entry = self.waiting.popleft()
            self._end(Dropped(entry.sequence, entry.source, "replaced", True))

    @property
    def is_open(self) -> bool:
        """Whether the server has granted credit and reads on."""
        return self._limit > 0 and not self._is_going_away

    @property
    def in_flight(self) -> int:
        """Frames that have been sent and not ended."""
        return len(self._open) - sum(run.count for run in self._runs)

    @property
    def is_idle(self) -> bool:
        """Whether no frame waits and none is in flight."""
        return not self.waiting and self.in_flight <= 0

    def may_send(self) -> bool:
        """Whether the credit allows another frame, and one waits."""
        return self.is_open and bool(self.waiting) and self.in_flight < self._limit

    def send(self, now: float) -> frame_pb2.Frame:
        """The next frame, which is on its way from now on."""
        entry = self.waiting.popleft()
        entry.sent_at = now
        entry.tries += 1
        self._open[entry.sequence] = entry
        self.counts.sent += 1
        self.counts.most_in_flight = max(self.counts.most_in_flight, self.in_flight)
        return entry.message

    @property
    def unanswered(self) -> list[int]:
        """The sequences of the frames that have no ending."""
        return sorted([*self._open, *(entry.sequence for entry in [*self.waiting, *self._again])])

    # ---------------------------------------------------------------------------------------------------- receiving
    def take(self, response: explain_pb2.ExplainStreamResponse, now: float) -> bool:
        """Notes a message of the server. Returns whether it ended a frame."""
        kind = response.WhichOneof("message")
        if kind == "opened":
            self.counts.connections += 1
            self.counts.credit = max(self.counts.credit, response.opened.max_in_flight)
            # At least one: a stream without credit would never send a frame.
            self._limit = max(1, min(response.opened.max_in_flight, self._own_limit or response.opened.max_in_flight))
        elif kind == "going_away":
            self._is_going_away = True
            away = response.going_away
            self._last_accepted = away.last_accepted_sequence if away.HasField("last_accepted_sequence") else -1
        elif kind == "explanation":
            entry = self._open.pop(response.explanation.sequence, None)
            if entry is not None:
                passed = now - entry.sent_at
                self._end(Explanation(entry.sequence, entry.source, response.explanation, passed))
        elif kind == "frame_error":
            error = response.frame_error
            entry = self._open.pop(error.sequence, None)
            if entry is not None:
                after = error.retry_after.ToMicroseconds() / 1e6 if error.HasField("retry_after") else None
                code = _CODES.get(error.code, str(error.code))
                self._end(Failed(entry.sequence, entry.source, code, error.message, error.field, after))
        elif kind == "dropped":
            run = response.dropped
            self._runs.append(_Run(run.first_sequence, run.last_sequence, run.count, run.reason))
        self._settle()
        return kind in ("explanation", "frame_error", "dropped")

    def _settle(self) -> None:
        """Ends the frames of each run that names as many open frames as it counts."""
        left = []
        for run in self._runs:
            named = [sequence for sequence in self._open if run.first <= sequence <= run.last]
            if len(named) > run.count:
                left.append(run)
                continue
            for sequence in named:
                self._drop(self._open.pop(sequence), run.reason)
        if len(left) < len(self._runs):
            self._runs = left
            self._settle()

    def _drop(self, entry: Entry, reason: int) -> None:
        if reason == _DRAINING and self._may_resend(entry):
            self._again.append(entry)
        else:
            self._end(Dropped(entry.sequence, entry.source, drop_reason(reason)))

    # ------------------------------------------------------------------------------------------------------ the end
    def disconnected(self, why: str) -> None:
        """The connection has ended. Frames that were not accepted wait again; the others are lost, or sent again.

        After GoingAway it is known which were accepted. Without it, every frame that was sent may have been.
        """
        # The run that ends first has the fewest candidates.
        for run in sorted(self._runs, key=lambda run: run.last):
            named = [sequence for sequence in self._open if run.first <= sequence <= run.last]
            for sequence in named[: run.count]:
                self._drop(self._open.pop(sequence), run.reason)
        self._runs = []
        again, self._again = self._again, []
        for entry in self._open.values():
            if self._is_going_away and entry.sequence > self._last_accepted:
                self.counts.not_accepted += 1
                entry.tries -= 1
                again.append(entry)
            elif self._may_resend(entry):
                again.append(entry)
            else:
                self._end(Lost(entry.sequence, entry.source, why))
        again.sort(key=lambda entry: entry.sequence)
        self.waiting.extendleft(reversed(again))
        self._open = {}
        self._limit, self._is_going_away, self._last_accepted = 0, False, -1

    def _may_resend(self, entry: Entry) -> bool:
        if entry.tries > self._resend:
            return False
        self.counts.resent += 1
        return True

    def _end(self, answer: Answer) -> None:
        if isinstance(answer, Explanation):
            self.counts.answered += 1
        elif isinstance(answer, Failed):
            self.counts.failed += 1
        elif isinstance(answer, Lost):
            self.counts.lost += 1
        elif isinstance(answer, Dropped):
            self.counts.dropped[answer.reason] = self.counts.dropped.get(answer.reason, 0) + 1
        self.endings.append(answer)
