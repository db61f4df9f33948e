"""Streams of the Python client against a server that plays scripts: credit, drops, drain, reconnection, deadlines."""

import os
import random
import subprocess
import sys
import threading

import grpc
import pytest

import camlens
from camlens._ledger import Entry, Ledger
from clients import run
from fake_server import FakeServer, answer, dropped, echo, frame_error, going_away, opened
from protocol import pb

PICTURE = b"a picture file, for all that this server knows"
BOTH = pytest.mark.parametrize("kind", ["sync", "aio"])


def pictures(count):
    return [camlens.Frame(PICTURE, tag=str(number)) for number in range(1, count + 1)]


@BOTH
def test_no_more_frames_are_in_flight_than_the_server_gives_credit_for(kind):
    seen = []

    def script(call):
        yield opened(3)
        unanswered = []
        while (sequence := call.read()) is not None:
            unanswered.append(sequence)
            seen.append(len(unanswered))
            # The client has sent all that it may when the credit is used up, or all that it has.
            if len(unanswered) == 3 or sequence == 20:
                for one in unanswered:
                    yield answer(one)
                unanswered = []

    with FakeServer(script) as server:
        outcome = run(kind, server.address, pictures(20))
    outcome.account(20)
    assert max(seen) == 3 == outcome.counts.most_in_flight == outcome.counts.credit


@BOTH
def test_of_its_own_accord_the_client_may_use_less_than_the_credit(kind):
    with FakeServer(echo) as server:
        outcome = run(kind, server.address, pictures(9), in_flight=1)
    outcome.account(9)
    assert outcome.counts.most_in_flight == 1


@BOTH
@pytest.mark.parametrize("accepted", [0, 1, 3])
def test_after_going_away_exactly_the_frames_that_were_not_accepted_are_sent_again(kind, accepted):
    def leaves(call):
        yield opened(5)
        # The client fills its credit; only `accepted` frames count as read.
        frames = [call.read() for _ in range(5)][:accepted]
        yield going_away(frames[-1] if frames else None)
        for sequence in frames:
            yield answer(sequence)

    with FakeServer(leaves, echo) as server:
        outcome = run(kind, server.address, pictures(12))
    outcome.account(12)
    assert server.frames[1] == list(range(accepted + 1, 13))
    assert [one.sequence for one in outcome.answers] == list(range(1, 13))
    assert outcome.counts.not_accepted == 5 - accepted
    assert (outcome.counts.lost, outcome.counts.resent, outcome.counts.connections) == (0, 0, 2)


@BOTH
def test_frames_without_an_answer_are_lost_when_the_connection_breaks(kind):
    def breaks(call):
        yield opened(4)
        first = call.read()
        for _ in range(3):
            call.read()
        yield answer(first)
        call.context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    with FakeServer(breaks, echo) as server:
        outcome = run(kind, server.address, pictures(10))
    outcome.account(10)
    lost = outcome.by_kind()["Lost"]
    # Frame 5 may have been on its way already: the answer to frame 1 gave its credit back.
    assert lost in ([2, 3, 4], [2, 3, 4, 5]) and server.frames[1] == list(range(lost[-1] + 1, 11))
    message = next(one for one in outcome.answers if isinstance(one, camlens.Lost))
    assert "Socket closed" in str(message)
    with pytest.raises(camlens.FrameLost, match="frame 2"):
        message.explanation()


@BOTH
def test_lost_frames_are_sent_again_if_the_caller_wants_it_and_no_frame_for_ever(kind):
    def breaks_at_six(call):
        yield opened(1)
        while (sequence := call.read()) is not None:
            if sequence == 6:
                call.context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            yield answer(sequence)

    with FakeServer(breaks_at_six) as server:
        outcome = run(kind, server.address, pictures(8), resend=2)
    outcome.account(8)
    assert outcome.by_kind() == {"Explanation": [1, 2, 3, 4, 5, 7, 8], "Lost": [6]}
    assert server.frames == [[1, 2, 3, 4, 5, 6], [6], [6], [7, 8]]
    assert outcome.counts.resent == 2


@BOTH
def test_frames_that_a_draining_server_gives_up_are_drops_or_are_sent_again(kind):
    def drains(call):
        yield opened(3)
        for _ in range(3):
            call.read()
        yield answer(1)
        yield going_away(3)
        yield dropped(2, 3, 2, "REASON_DRAINING")

    for resend, kinds in ((0, {"Explanation": [1, 4], "Dropped": [2, 3]}), (1, {"Explanation": [1, 2, 3, 4]})):
        with FakeServer(drains, echo) as server:
            outcome = run(kind, server.address, pictures(4), resend=resend)
        outcome.account(4)
        assert outcome.by_kind() == kinds
        assert outcome.counts.dropped == ({"draining": 2} if not resend else {})


@BOTH
def test_runs_of_drops_that_alternate_end_the_right_number_of_frames(kind):
    def script(call):
        yield opened(6)
        for _ in range(6):
            call.read()
        yield dropped(1, 5, 3, "REASON_REPLACED")
        yield dropped(2, 6, 2, "REASON_EXPIRED")
        yield answer(4)

    with FakeServer(script) as server:
        outcome = run(kind, server.address, pictures(6))
    outcome.account(6)
    assert outcome.counts.dropped == {"replaced": 3, "expired": 2} and outcome.counts.connections == 1
    assert outcome.by_kind()["Explanation"] == [4]


@BOTH
def test_a_bad_frame_is_an_answer_and_the_stream_lives_on(kind):
    def script(call):
        yield opened(4)
        while (sequence := call.read()) is not None:
            bad = frame_error(sequence, grpc.StatusCode.INVALID_ARGUMENT, "no picture", "frame.encoded.data")
            yield bad if sequence == 2 else answer(sequence)

    with FakeServer(script) as server:
        outcome = run(kind, server.address, pictures(3))
    outcome.account(3)
    failed = outcome.answers[1]
    assert (failed.code, failed.field) == ("INVALID_ARGUMENT", "frame.encoded.data") and not failed.ok
    assert failed.source.tag == "2"
    with pytest.raises(camlens.FrameFailed, match="no picture"):
        failed.explanation()


@BOTH
def test_an_error_of_the_stream_is_raised_at_once_with_what_was_not_answered(kind):
    def script(call):
        yield opened(4)
        call.read()
        yield answer(1)
        yield dropped(2, 4, 3, "REASON_STREAM_ENDED")
        call.context.abort(grpc.StatusCode.INVALID_ARGUMENT, "sequence 1 after 1")

    with FakeServer(script) as server:
        outcome = run(kind, server.address, pictures(9))
        assert len(server.calls) == 1, "a broken protocol does not mend itself"
    assert isinstance(outcome.error, camlens.StatusError)
    assert outcome.error.code is grpc.StatusCode.INVALID_ARGUMENT and "sequence 1" in str(outcome.error)
    answered = {one.sequence for one in outcome.answers}
    # What ended, and what did not, are all the frames that were read.
    assert answered.isdisjoint(outcome.error.unanswered)
    assert len(answered) + len(outcome.error.unanswered) == outcome.counts.read


@BOTH
def test_without_a_server_the_client_gives_up_after_its_back_off(kind):
    backoff = camlens.Backoff(first_s=0.01, most_s=0.02, give_up_after_s=0.3)
    outcome = run(kind, "127.0.0.1:1", pictures(3), backoff=backoff)
    assert isinstance(outcome.error, camlens.Unavailable) and outcome.error.unanswered
    assert outcome.answers == []


@BOTH
def test_a_server_that_comes_late_is_waited_for(kind):
    def is_not_ready(call):
        call.context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        yield

    with FakeServer(is_not_ready, is_not_ready, is_not_ready, echo) as server:
        outcome = run(kind, server.address, pictures(3))
        assert len(server.calls) == 4
    outcome.account(3)
    assert outcome.counts.lost == 0, "before Opened there is no credit, and nothing is sent"


@BOTH
def test_a_timeout_bounds_the_whole_stream(kind):
    def never_answers(call):
        yield opened(2)
        while call.read() is not None:
            pass

    with FakeServer(never_answers) as server:
        outcome = run(kind, server.address, pictures(5), timeout=2)
    assert isinstance(outcome.error, camlens.DeadlineExceeded)
    assert {1, 2} == {one.sequence for one in outcome.answers if isinstance(one, camlens.Lost)}


@BOTH
def test_an_error_of_the_source_is_raised_after_the_answers_to_its_frames(kind):
    def source():
        yield from pictures(3)
        raise OSError("the camera is gone")

    with FakeServer(echo) as server:
        outcome = run(kind, server.address, source())
    outcome.account(3)
    assert isinstance(outcome.error, OSError) and "camera" in str(outcome.error)
    with FakeServer(echo) as server:
        outcome = run(kind, server.address, [PICTURE, 12.5])
    assert isinstance(outcome.error, TypeError) and "not float" in str(outcome.error)
    outcome.account(1)


@BOTH
def test_an_empty_source_is_an_empty_stream(kind):
    with FakeServer(echo) as server:
        outcome = run(kind, server.address, [])
    assert outcome.answers == [] and outcome.error is None


@BOTH
def test_a_camera_is_read_on_without_credit_and_its_frames_are_accounted_for(kind):
    is_opened, is_full, is_read = threading.Event(), threading.Event(), threading.Event()

    def camera():
        frames = pictures(30)
        yield frames[0]
        assert is_opened.wait(30)
        yield frames[1]
        assert is_full.wait(30)
        yield from frames[2:]
        is_read.set()

    def waits_for_the_end(call):
        yield opened(2)
        first = call.read()
        is_opened.set()
        second = call.read()
        is_full.set()
        assert is_read.wait(30), "the source was not read on"
        yield answer(first)
        yield answer(second)
        while (sequence := call.read()) is not None:
            yield answer(sequence)

    with FakeServer(waits_for_the_end) as server:
        outcome = run(kind, server.address, camera(), policy="latest")
        assert server.calls[0].open.policy.overflow == pb.StreamPolicy.OVERFLOW_LATEST
    outcome.account(30)
    drops = [one for one in outcome.answers if isinstance(one, camlens.Dropped)]
    assert drops and all(one.by_client and one.reason == "replaced" for one in drops)
    assert outcome.by_kind()["Explanation"][-1] == 30, "the newest frame is never the one that is replaced"


@BOTH
def test_cancel_and_update_reach_the_server_and_a_later_connection_keeps_the_update(kind):
    def first(call):
        yield opened(2)
        yield answer(call.read())
        said = []
        while len(said) < 2:
            if isinstance(one := call.read(), str):
                said.append(one)
        for sequence in call.frames[1:]:
            yield answer(sequence)
        yield going_away(call.frames[-1])

    def on_answer(stream, one):
        if one.sequence != 1:
            return
        stream.update(camlens.Options(targets=["espresso"], top_predictions=1))
        stream.cancel(2)

    with FakeServer(first, echo) as server:
        outcome = run(kind, server.address, pictures(8), on_answer=on_answer, targets=["cup"], maps=["grad_cam"])
        messages = {one.WhichOneof("message"): one for one in server.calls[0].others}
        assert messages["cancel"].cancel.sequence == 2
        assert messages["update"].update.options.targets[0].label == "espresso"
        reopened = server.calls[1].open.options
        assert [one.label for one in reopened.targets] == ["espresso"] and len(reopened.tensors) == 1
    outcome.account(8)


@BOTH
def test_a_stream_that_is_left_early_ends_its_call(kind):
    ended = threading.Event()

    def script(call):
        call.context.add_callback(ended.set)
        yield from echo(call)

    def on_answer(stream, one):
        return stream.close() if one.sequence == 3 else None

    def endless():
        while True:
            yield PICTURE

    with FakeServer(script) as server:
        outcome = run(kind, server.address, endless(), on_answer=on_answer)
        assert ended.wait(30)
    assert outcome.error is None and len(outcome.answers) >= 3


@BOTH
def test_a_token_goes_with_every_call(kind):
    seen = []

    def script(call):
        seen.append(dict(call.context.invocation_metadata()).get("authorization"))
        yield from echo(call)

    with FakeServer(script) as server:
        run(kind, server.address, pictures(1), settings={"token": "hush"}).account(1)
    assert seen == ["Bearer hush"]


def test_the_waits_grow_within_their_bounds_and_differ():
    random.seed(1)
    backoff = camlens.Backoff(first_s=0.1, factor=2, most_s=1)
    for tries, bound in ((1, 0.1), (2, 0.2), (4, 0.8), (5, 1), (5000, 1)):
        waits = [backoff.wait_s(tries) for _ in range(200)]
        assert all(0 <= wait <= bound for wait in waits)
        assert max(waits) > 0.8 * bound and min(waits) < 0.2 * bound
    with pytest.raises(ValueError):
        camlens.Backoff(first_s=0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_frame_ends_once(seed):
    """The ledger against random servers: connections that end at any moment, with and without GoingAway."""
    draw = random.Random(seed)
    resend = draw.choice([0, 1, 3])
    ledger, frames, added, accepted_by = Ledger(resend), 200, 0, {}
    for connection in range(10_000):
        if added == frames and not ledger.unanswered:
            break
        credit = draw.randint(1, 6)
        ledger.take(opened(credit), 0)
        there, on_the_way = [], []
        for _ in range(draw.randint(0, 40)):
            action = draw.choice(["add", "send", "send", "read", "end", "end", "drop"])
            if action == "add" and added < frames:
                added += 1
                ledger.add(Entry(added, None, pb.Frame(sequence=added)))
            elif action == "send" and ledger.may_send():
                on_the_way.append(ledger.send(0).sequence)
                assert len(there) + len(on_the_way) <= credit
            elif action == "read" and on_the_way:
                there.append(on_the_way.pop(0))
                accepted_by.setdefault(there[-1], []).append(connection)
            elif action == "end" and there:
                ledger.take(answer(there.pop(0)), 0)
            elif action == "drop" and there:
                count = draw.randint(1, len(there))
                run_of, there = there[:count], there[count:]
                ledger.take(dropped(run_of[0], run_of[-1], count, "REASON_EXPIRED"), 0)
        if draw.random() < 0.5:
            read = [sequence for sequence in accepted_by if connection in accepted_by[sequence]]
            ledger.take(going_away(max(read, default=None)), 0)
            for sequence in there if draw.random() < 0.7 else []:
                ledger.take(answer(sequence), 0)
        ledger.disconnected("the end")
    ended = [one.sequence for one in ledger.endings]
    assert sorted(ended) == list(range(1, frames + 1))
    assert all(len(connections) <= 1 + resend for connections in accepted_by.values())
    assert ledger.counts.ended == ledger.counts.read == frames


def test_a_program_ends_when_its_source_is_read_no_more():
    # Python ends threads where they are; in a library of C++ that aborts the process.
    program = """
import atexit, sys, threading, time
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))
import camlens
def camera():
    while True:
        time.sleep(0.05)
        yield b"a picture"
answers = camlens.stream(camera(), server=sys.argv[1], policy="latest")
print(next(answers).ok)
"""
    with FakeServer(echo) as server:
        done = subprocess.run(
            [sys.executable, "-c", program, server.address], capture_output=True, text=True, timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True\n") and "camlens-source" not in done.stdout, done.stdout
