#!/usr/bin/env python3
"""The matrix of clients: each on each transport, and what happens to it there. run.sh calls it with their names.

- credit kept: a server that plays a script gives credit for 3 frames, answers only when that is used up, and counts.
- drop handled: under LATEST the built binary drops frames; each of them is counted.
- drain survived: SIGTERM in the middle, a new server in its place; every frame is explained.
- killed and back: SIGKILL in the middle, a new server in its place; every frame is explained or reported as lost.
"""

import pathlib
import signal
import sys
import tempfile

from setting import TOKEN, Program, Table, Transport, expect, folder_of_frames

from fake_server import FakeServer, answer, opened

FRAMES, CREDIT = 120, 3
MOST_IN_FLIGHT = 16
TRANSPORTS = {"plain": "plain", "tls": "TLS + token", "unix": "Unix socket"}


def credit_kept(client, transport, frames, out):
    most, tokens = 0, set()

    def script(call):
        nonlocal most
        tokens.add(dict(call.context.invocation_metadata()).get("authorization"))
        yield opened(CREDIT)
        unanswered = []
        while (sequence := call.read()) is not None:
            unanswered.append(sequence)
            most = max(most, len(unanswered))
            if len(unanswered) == CREDIT or sequence == FRAMES:
                for one in unanswered:
                    yield answer(one)
                unanswered = []

    with FakeServer(script, **transport.fake()) as server:
        address = server.address.replace("127.0.0.1", "localhost")
        ended = Program(client, transport.environment(client, address), frames, out).end()
        expect(server.frames == [list(range(1, FRAMES + 1))], f"the server read {server.frames}")
    expect(most == CREDIT, f"{most} frames were in flight, where {CREDIT} were allowed")
    expect(ended.counts["explained"] == FRAMES == len(ended.overlays), str(ended.counts))
    expect(tokens == {f"Bearer {TOKEN}" if transport.kind == "tls" else None}, f"it sent the tokens {tokens}")


def drop_handled(client, transport, frames, out):
    environment = {**transport.environment(client), "CAMLENS_OVERFLOW": "LATEST"}
    ended = Program(client, environment, frames, out).end()
    counts = ended.counts
    expect(counts["dropped"] > 0, f"nothing was dropped: {counts}")
    expect(counts["explained"] + counts["dropped"] == FRAMES, f"not every frame is accounted for: {counts}")
    expect(len(ended.overlays) == counts["explained"], f"{len(ended.overlays)} overlays: {counts}")


def server_replaced(client, transport, frames, out, with_signal):
    program = Program(client, transport.environment(client), frames, out)
    program.wait_for_overlays(10)
    transport.replace(with_signal)
    ended = program.end()
    counts = ended.counts
    expect(counts["connections"] >= 2, f"it was too fast for this test: {counts}")
    expect(counts["explained"] + counts["lost"] == FRAMES, f"not every frame is accounted for: {counts}")
    expect(len(ended.overlays) == counts["explained"], f"{len(ended.overlays)} overlays: {counts}")
    most_lost = 0 if with_signal == signal.SIGTERM else MOST_IN_FLIGHT
    expect(counts["lost"] <= most_lost, f"{counts['lost']} frames are lost, at most {most_lost} may be")


CHECKS = {
    "credit kept": credit_kept,
    "drop handled": drop_handled,
    "drain survived": lambda *case: server_replaced(*case, signal.SIGTERM),
    "killed and back": lambda *case: server_replaced(*case, signal.SIGKILL),
}


def main(clients):
    table = Table("client")
    with tempfile.TemporaryDirectory(prefix="camlens-", ignore_cleanup_errors=True) as folder:
        folder = pathlib.Path(folder)
        frames = folder_of_frames(folder / "frames", FRAMES)
        for client in clients:
            for kind, name in TRANSPORTS.items():
                transport = Transport(kind, folder / f"{client}-{kind}")
                transport.serve()
                for number, (event, check) in enumerate(CHECKS.items()):
                    case = (client, transport, frames, transport.folder / f"out{number}")
                    table.check(client, f"{name}: {event}", lambda: check(*case))
                transport.stop()
            print(f"  {client}: {sum(cell == 'yes' for (row, _), cell in table.cells.items() if row == client)} of "
                  f"{len(CHECKS) * len(TRANSPORTS)}", file=sys.stderr, flush=True)
        table.end("matrix.md")


if __name__ == "__main__":
    main(sys.argv[1:])
