"""Servers, transports and client programs of the interoperability tests."""

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import grpc
import trustme

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))

from conftest import Server  # noqa: E402 - the folder is on the path now, and the client's wheel is installed by it
from test_stream import clip_frames  # noqa: E402

BUILT = ROOT / "target/interop"
TOKEN = "a-token-of-many-languages-0123456789"
PATIENCE_S = 120
CLIENTS = ROOT / "deploy/clients"
#: The command line of each client, before FOLDER and OUT.
COMMANDS = {
    "python": [sys.executable, str(CLIENTS / "python/stream_folder.py")],
    "asyncio": [sys.executable, str(CLIENTS / "python/stream_folder.py")],
    "go": [str(BUILT / "go/streamfolder")],
    "node": ["node", str(CLIENTS / "node/dist/streamfolder.js")],
    "cpp": [str(BUILT / "cpp/streamfolder")],
    "java": ["java", "-cp", f"{CLIENTS}/java/target/streamfolder.jar:{CLIENTS}/java/target/lib/*", "StreamFolder"],
    "rust": [str(ROOT / "target/release/examples/streamfolder")],
}
COUNT = re.compile(r"(connections|explained|dropped|failed|lost)\"?[:=] ?(\d+)")


class Wrong(Exception):
    """What a client did is not what the protocol asks for."""


def expect(is_true: bool, otherwise: str) -> None:
    if not is_true:
        raise Wrong(otherwise)


def free_port() -> int:
    """A port that no connection takes by chance while a server is away: it is below those of clients."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class Transport:
    """A way to a server: "plain", "tls" (with a token) or "unix"."""

    def __init__(self, kind: str, folder: pathlib.Path):
        self.kind, self.folder = kind, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.server: Server | None = None
        self.arguments: list[str] = []
        if kind == "plain":
            self.arguments = ["--listen", f"127.0.0.1:{self.port}"]
        elif kind == "tls":
            authority = trustme.CA()
            own = authority.issue_cert("localhost", "127.0.0.1")
            authority.cert_pem.write_to_path(folder / "ca.crt")
            own.cert_chain_pems[0].write_to_path(folder / "tls.crt")
            own.private_key_pem.write_to_path(folder / "tls.key")
            (folder / "tokens").write_text(f"client: {TOKEN}\n")
            for secret in ("tls.key", "tokens"):
                (folder / secret).chmod(0o600)
            pair = ["--tls-certificate", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key")]
            self.arguments = ["--listen", f"127.0.0.1:{self.port}", "--token-file", str(folder / "tokens"), *pair]

    @property
    def address(self) -> str:
        return f"unix:{self.folder}/camlens.sock" if self.kind == "unix" else f"localhost:{self.port}"

    def environment(self, client: str, address: str | None = None) -> dict[str, str]:
        """A client's environment variables. `address` replaces camlens's, for a proxy in between."""
        told = {"CAMLENS_SERVER": address or self.address}
        if self.kind == "tls":
            told |= {"CAMLENS_TLS_CA": str(self.folder / "ca.crt")}
            token = {"CAMLENS_TOKEN": TOKEN}
            told |= {"CAMLENS_TOKEN_FILE": str(self.folder / "tokens")} if client == "rust" else token
            if client in ("python", "asyncio", "rust"):
                told["CAMLENS_SERVER"] = f"https://{told['CAMLENS_SERVER']}"
        return told

    def fake(self) -> dict:
        """Where a server that plays scripts listens: for TCP on a port of its own."""
        if self.kind == "unix":
            return {"address": f"unix:{self.folder}/fake.sock"}
        if self.kind == "plain":
            return {"address": "127.0.0.1:0"}
        pair = [((self.folder / "tls.key").read_bytes(), (self.folder / "tls.crt").read_bytes())]
        return {"address": "127.0.0.1:0", "credentials": grpc.ssl_server_credentials(pair)}

    def serve(self) -> None:
        """Starts camlens. Without batches, a client that uses its whole credit under LATEST has drops for certain."""
        self.server = Server(self.folder, *self.arguments, "--max-batch", "1", kernel_timing="never")

    def replace(self, with_signal: int) -> None:
        """Stops camlens with a signal and starts another one in its place."""
        self.server.process.send_signal(with_signal)
        code = self.server.process.wait(PATIENCE_S)
        self.serve()
        if with_signal == signal.SIGTERM:
            expect(code == 0, f"the server ended with {code} after SIGTERM")

    def stop(self) -> None:
        """Stops camlens, if it runs."""
        if self.server is not None:
            expect(self.server.stop(seconds=PATIENCE_S) == 0, self.server.output())


@dataclasses.dataclass
class Ended:
    """What a client said and wrote."""

    counts: dict[str, int]
    overlays: list[pathlib.Path]


class Program:
    """A client that runs."""

    def __init__(self, client: str, environment: dict[str, str], frames: pathlib.Path, out: pathlib.Path):
        self.client, self.out = client, out
        out.mkdir(parents=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("CAMLENS_")}
        inherited["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [*COMMANDS[client], str(frames), str(out), *(["--asyncio"] if client == "asyncio" else [])]
        self.errors = open(out.with_suffix(".log"), "w+")
        self.process = subprocess.Popen(
            command, env={**inherited, **environment}, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def wait_for_overlays(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(os.listdir(self.out)) < count:
            expect(self.process.poll() is None, f"it ended before {count} overlays: {self.said()}")
            expect(time.monotonic() < deadline, f"no {count} overlays after {PATIENCE_S} s")
            time.sleep(0.01)

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-2000:]

    def end(self) -> Ended:
        try:
            output, _ = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Wrong(f"it does not end: {self.said()}") from None
        expect(self.process.returncode == 0, f"it ended with {self.process.returncode}: {output} {self.said()}")
        counts = dict.fromkeys(("connections", "explained", "dropped", "failed", "lost"), 0)
        counts |= {name: int(count) for name, count in COUNT.findall(output)}
        return Ended(counts, sorted(self.out.iterdir()))


def folder_of_frames(folder: pathlib.Path, count: int) -> pathlib.Path:
    """Frames of the clip as files."""
    folder.mkdir(parents=True)
    for number, data in enumerate(clip_frames(count), 1):
        (folder / f"{number:04}.jpg").write_bytes(data)
    return folder


class Table:
    """Checks and how they ended, by row and column, in the order in which they were made."""

    def __init__(self, head: str):
        self.head, self.cells = head, {}

    def check(self, row: str, column: str, check, context=lambda: "") -> None:
        """Makes a check. If it fails, says why, and what `context` returns."""
        try:
            check()
            self.cells[row, column] = "yes"
        except Wrong as wrong:
            self.cells[row, column] = "**no**"
            print(f"{row}, {column}: {wrong}\n{context()}", file=sys.stderr, flush=True)

    def markdown(self) -> str:
        rows, columns = (list(dict.fromkeys(key[side] for key in self.cells)) for side in (0, 1))
        lines = [f"| {self.head} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {row} | " + " | ".join(self.cells.get((row, column), "–") for column in columns) + " |"
                  for row in rows]  # fmt: skip
        return "\n".join(lines) + "\n"

    def end(self, name: str) -> None:
        """Writes and prints the table; ends the program with an error if a check failed."""
        (BUILT / name).write_text(self.markdown())
        print(self.markdown())
        passed, failed = (list(self.cells.values()).count(cell) for cell in ("yes", "**no**"))
        if failed:
            sys.exit(f"error: {failed} of {passed + failed} cells failed")
        print(f"{passed} passed, 0 failed")
