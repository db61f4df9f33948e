#!/usr/bin/env python3
"""Envoy, nginx and HAProxy, with the configuration of deploy/clients/proxies, between the clients and camlens.

Each proxy has to carry a stream, answers of several megabytes, a deadline, a drain, and a server that is killed and
comes back.
"""

import itertools
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from setting import CLIENTS, PATIENCE_S, Program, Table, Transport, Wrong, expect, folder_of_frames, free_port

import camlens  # isort: skip - `setting` has installed it

FRAMES, MOST_IN_FLIGHT = 120, 16
PROXIES = {"Envoy": ("envoy.yaml", "port_value: {}"), "nginx": ("nginx.conf", "127.0.0.1:{}"),
           "HAProxy": ("haproxy.cfg", "127.0.0.1:{}")}  # fmt: skip


class Proxy:
    """A proxy on a port of its own, in front of a server."""

    def __init__(self, name: str, folder: pathlib.Path, server_port: int):
        folder.mkdir(parents=True)
        self.kind, self.folder, self.port = "plain", folder, free_port()
        file, port = PROXIES[name]
        text = (CLIENTS / "proxies" / file).read_text()
        assert port.format(8033) in text and port.format(8034) in text
        text = text.replace(port.format(8033), port.format(server_port))
        text = text.replace(port.format(8034), port.format(self.port))
        if name == "nginx":
            # Folders that only the system's own nginx has.
            kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            text = text.replace("http {", "http {\n" + "".join(f"{k}_temp_path {folder}/{k};\n" for k in kinds), 1)
            text = f"pid {folder}/pid;\nerror_log stderr;\ndaemon off;\nmaster_process off;\n{text}".replace(
                "http {", "http {\naccess_log off;\n", 1)  # fmt: skip
        (folder / file).write_text(text)
        commands = {
            "Envoy": ["envoy", "--config-path", folder / file, "--concurrency", "1", "--log-level", "warning",
                      "--disable-hot-restart"],
            "nginx": ["nginx", "-p", folder, "-c", folder / file],
            "HAProxy": ["haproxy", "-f", folder / file],
        }  # fmt: skip
        self.log = open(folder / "log", "w+b")
        self.process = subprocess.Popen([str(part) for part in commands[name]], stdout=self.log, stderr=self.log)
        deadline_s = time.monotonic() + 30
        while True:
            expect(self.process.poll() is None, f"{name} ended: {self.said()}")
            expect(time.monotonic() < deadline_s, f"{name} does not listen: {self.said()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-2000:]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def streams(client, proxy, frames, out):
    ended = Program(client, {"CAMLENS_SERVER": proxy.address}, frames, out).end()
    expect(ended.counts["explained"] == FRAMES == len(ended.overlays), str(ended.counts))
    expect(ended.counts["connections"] == 1, str(ended.counts))


def large_answers(client, proxy, large, out):
    ended = Program(client, {"CAMLENS_SERVER": proxy.address}, large, out).end()
    expect(ended.counts["explained"] == 6, str(ended.counts))
    sizes = [overlay.stat().st_size for overlay in ended.overlays]
    expect(len(sizes) == 6 and min(sizes) > 4 << 20, f"the overlays have {sizes} bytes")


def deadline(client, proxy, frames, out):
    if client == "go":
        program = Program(client, {"CAMLENS_SERVER": proxy.address, "CAMLENS_TIMEOUT": "100ms"}, frames, out)
        program.process.communicate(timeout=PATIENCE_S)
        expect(program.process.returncode == 1 and "DeadlineExceeded" in program.said(), program.said())
        return
    picture = (frames / "0001.jpg").read_bytes()
    with camlens.Client(proxy.address) as one:
        answers = one.stream(itertools.repeat(picture), timeout=1.5, predictions_only=True)
        try:
            for answer in answers:
                expect(answer.ok or isinstance(answer, (camlens.Lost, camlens.Dropped)), str(answer))
        except camlens.DeadlineExceeded:
            expect(answers.counts.answered > 0, "nothing was answered before the deadline")
            return
    raise Wrong("the stream ended without DEADLINE_EXCEEDED")


def replaced(client, proxy, frames, out, transport, with_signal):
    program = Program(client, {"CAMLENS_SERVER": proxy.address}, frames, out)
    program.wait_for_overlays(10)
    transport.replace(with_signal)
    ended = program.end()
    most_lost = 0 if with_signal == signal.SIGTERM else MOST_IN_FLIGHT
    counts = ended.counts
    expect(counts["connections"] >= 2, f"it was too fast for this test: {counts}")
    expect(counts["explained"] + counts["lost"] == FRAMES and counts["lost"] <= most_lost, str(counts))
    expect(len(ended.overlays) == counts["explained"], f"{len(ended.overlays)} overlays: {counts}")


def large_pictures(folder):
    """Noise: its overlay as PNG has more than gRPC's 4 MiB."""
    folder.mkdir()
    values = np.random.default_rng(5).integers(0, 256, (1100, 1700, 3), np.uint8)
    for number in range(6):
        camlens.write_png(folder / f"{number}.png", np.roll(values, number, 0))
    return folder


def main(names):
    unknown = [name for name in names if name not in PROXIES]
    if unknown:
        sys.exit(f"error: there is no proxy {unknown[0]}: {', '.join(PROXIES)}")
    table = Table("through")
    with tempfile.TemporaryDirectory(prefix="camlens-", ignore_cleanup_errors=True) as folder:
        folder = pathlib.Path(folder)
        frames, large = folder_of_frames(folder / "frames", FRAMES), large_pictures(folder / "large")
        for name in names or PROXIES:
            transport = Transport("plain", folder / f"{name}-server")
            transport.serve()
            proxy = Proxy(name, folder / name, transport.port)
            events = {
                "streams": lambda client, out: streams(client, proxy, frames, out),
                "answers over 4 MiB": lambda client, out: large_answers(client, proxy, large, out),
                "deadline": lambda client, out: deadline(client, proxy, frames, out),
                "drain": lambda client, out: replaced(client, proxy, frames, out, transport, signal.SIGTERM),
                "killed and back": lambda client, out: replaced(client, proxy, frames, out, transport, signal.SIGKILL),
            }
            for client in ("python", "go"):
                for number, (event, check) in enumerate(events.items()):
                    out = folder / f"{name}-{client}-{number}"
                    table.check(f"{name}, {client}", event, lambda: check(client, out), proxy.said)
            proxy.stop()
            transport.stop()
        table.end("proxies.md")


if __name__ == "__main__":
    main(sys.argv[1:])
