#!/usr/bin/env python3
"""What telemetry costs, in pairs against a server without any, on `builtin:identity`: everything but a model.

  full     every frame traced and metrics kept, with a collector that takes everything
  zero     no frame traced, metrics kept, with the same collector
  missing  a collector whose name nobody knows    these must cost nothing but the traces,
  away     one that refuses connections           and must not hold up the exit
  hanging  one that accepts and never answers
  errors   one that answers with errors

The collector is a loop in Python on the same cores, at the lowest priority since its place is elsewhere; its processor time is told, and the server's own time a frame
is given beside the throughput.
"""

import multiprocessing
import os
import pathlib
import selectors
import socket
import tempfile
import time

import sidecar

# Of the throughput without telemetry, and of its p99.
ALLOWED = {"full": 0.97, "zero": 0.995, "missing": 0.98, "away": 0.98, "hanging": 0.98, "errors": 0.98}
P99_ALLOWED = 1.1
MEMORY_ALLOWED = 0.05
# How many rows run together is learned, and would differ from run to run.
CONFIG = "[limits]\nmax_batch = 1\n"
# The flush's bound, and what a server takes to stop without telemetry.
EXIT_ALLOWED_S = 3 + 2

options = sidecar.arguments(
    __doc__,
    ("cases", "full,zero,missing,away,hanging,errors", "which"),
    ("pairs", 10, "measurements of each"),
    ("seconds", 6.0, "of one measurement"),
    ("size", "224x224", "of a frame"),
)

load = ["--streams", 4, "--connections", 2, "--in-flight", 4, "--overflow", "block", "--predictions-only"]
load += ["--size", options.size, "--duration", options.seconds, "--warm-up", 1]


def collect(listener, answer, cpu_file):
    """Reads HTTP requests with a length and answers each; `None`: never. Its processor time goes to a file."""
    os.nice(19)
    buffers = {}
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select(0.5):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
                buffers[connection] = [b"", 0]
                continue
            connection = key.fileobj
            try:
                data = connection.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                selector.unregister(connection)
                connection.close()
                continue
            if answer is None:
                continue
            state = buffers[connection]
            # What remains of a body is only counted.
            while data:
                if state[1]:
                    taken = min(state[1], len(data))
                    state[1] -= taken
                    data = data[taken:]
                    if not state[1]:
                        connection.sendall(answer)
                    continue
                state[0] += data
                data = b""
                head, found, rest = state[0].partition(b"\r\n\r\n")
                if found:
                    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                    state[0], state[1] = b"", int(lengths[0].split(b":")[1])
                    data = rest
                    if not state[1]:
                        connection.sendall(answer)
        usage = os.times()
        pathlib.Path(cpu_file).write_text(f"{usage.user + usage.system}")


class Collector:
    """One of the six, as a process of its own where it is one."""

    ANSWERS = {
        "full": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "zero": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "errors": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        "hanging": None,
    }

    def __init__(self, case):
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.process = None
        self.cpu_file = tempfile.NamedTemporaryFile("r")
        self.host = "collector.invalid" if case == "missing" else "127.0.0.1"
        if case in self.ANSWERS:
            arguments = (listener, self.ANSWERS[case], self.cpu_file.name)
            self.process = multiprocessing.Process(target=collect, args=arguments, daemon=True)
            self.process.start()
        listener.close()

    def cpu_s(self):
        text = pathlib.Path(self.cpu_file.name).read_text()
        return float(text) if text else 0.0

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.join()


def measure(server):
    result = sidecar.bench(server, *load)
    assert result["exit_code"] == 0 and result["frames"]["accounted_for"], result
    return result


def server_us(result):
    """The server's processor time for a frame, in microseconds."""
    return 1e6 * result["server_cpu_s"] / result["frames"]["answered"]


def run(case):
    collector = Collector(case)
    flags = ["--otlp-endpoint", f"http://{collector.host}:{collector.port}", "--otlp-protocol", "http/protobuf"]
    flags += ["--trace-ratio", "0" if case == "zero" else "1"]
    without, watched = sidecar.Sidecar(options, config=CONFIG), sidecar.Sidecar(options, *flags, config=CONFIG)
    ones, others, rss = [], [], []
    for pair in range(options.pairs):
        # Whoever is first changes from pair to pair.
        for server, results in [(without, ones), (watched, others)][:: 1 if pair % 2 else -1]:
            results.append(measure(server))
        rss.append(watched.rss_bytes())
        ratio = others[-1]["answered_hz"] / ones[-1]["answered_hz"]
        sidecar.say(f"{case} {pair}: {ones[-1]['answered_hz']:.0f} without and {others[-1]['answered_hz']:.0f}, {ratio:.3f}")
    wall = sum(result["wall_s"] for result in others)
    collector_cores = collector.cpu_s() / (2 * wall)
    began = time.monotonic()
    codes = [watched.stop()]
    exit_s = time.monotonic() - began
    codes.append(without.stop())
    collector.stop()
    ratios = sorted(other["answered_hz"] / one["answered_hz"] for one, other in zip(ones, others))
    p99s = [other["latency_ms"]["p99"] / one["latency_ms"]["p99"] for one, other in zip(ones, others)]
    costs = [server_us(other) / server_us(one) - 1 for one, other in zip(ones, others)]
    figures = {
        "ratio_median": sidecar.median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
        "ratio_allowed": ALLOWED[case],
        "p99_ratio_median": sidecar.median(p99s),
        "server_us_without": sidecar.median([server_us(one) for one in ones]),
        "server_us_with": sidecar.median([server_us(other) for other in others]),
        "server_cost_median": sidecar.median(costs),
        "answered_hz_without": sidecar.median([one["answered_hz"] for one in ones]),
        "rss_growth": rss[-1] / rss[0] - 1,
        "exit_s": exit_s,
        "collector_cores": round(collector_cores, 3),
        **sidecar.shares(others[-1]),
    }
    passed = figures["ratio_median"] >= ALLOWED[case] and codes == [0, 0] and exit_s <= EXIT_ALLOWED_S
    passed = passed and abs(figures["rss_growth"]) <= MEMORY_ALLOWED
    if case not in ("full", "zero"):
        passed = passed and figures["p99_ratio_median"] <= P99_ALLOWED
    return passed, figures


cases = options.cases.split(",")
results = {case: run(case) for case in cases}
sidecar.report(
    "telemetry",
    all(passed for passed, _ in results.values()),
    **{case: {"pass": passed, **figures} for case, (passed, figures) in results.items()},
)
