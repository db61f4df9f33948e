#!/usr/bin/env python3
"""A camera (RTSP, 720p, 30 Hz, tests/interop/rtsp_camera.py) that `camlens stream` explains live. The camera is killed
and comes back twice, the server is stopped and started again once. Every frame must be accounted for, and the memory of
both sides flat.

The latency from glass to answer is reported twice: as camlens estimates it, and measured. For the measured one the
camera writes its clock into its frames, and one explained frame a second is read again: the difference is what camlens
cannot know, the shortest way from the camera's clock to its decoder. Needs GStreamer's RTSP server and ffmpeg.
"""

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time

import sidecar

sys.path.insert(0, str(sidecar.ROOT / "tests/interop"))
import rtsp_camera  # noqa: E402

# Of the memory that is not mapped from files, from the first quarter of the run to the last.
ALLOWED_GROWTH_BYTES = 32 << 20
AWAY_S = 5

options = sidecar.arguments(
    __doc__,
    ("seconds", 600.0, "of the run"),
    ("width", 1280, "of a frame"),
    ("height", 720, "of a frame"),
    ("rate", 30, "frames a second"),
    ("port", 8554, "of the camera"),
    ("video", "", "an MP4 to write"),
    threads=0,
)
if options.models == "builtin:identity":
    options.models = str(sidecar.ROOT / "deploy/models")
if not rtsp_camera.Camera.is_there():
    sidecar.say("error: no GStreamer RTSP server, or no ffmpeg; tests/interop/rtsp_camera.py names the packages")
    sys.exit(2)


class Server:
    """A server at a fixed address, which can be started again."""

    def __init__(self, folder):
        self.address = f"unix:{folder}/camlens.sock"
        self.log = open(folder / "log", "wb")
        self.start()

    def start(self):
        command = [options.binary, "serve", "--models", options.models, "--listen", self.address]
        command += ["--threads", str(options.threads), "--log", "warn"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        env=sidecar.environment())
        health = [options.binary, "health", "--server", self.address, "--wait", str(sidecar.PATIENCE_S)]
        subprocess.run(health, check=True, env=sidecar.environment())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(sidecar.PATIENCE_S)


class Client:
    """`camlens stream`: its events are counted, its pictures removed, and one a second is read before."""

    def __init__(self, server, camera, folder):
        command = [options.binary, "stream", camera.address, "--server", server.address, "--json"]
        command += ["--out", str(folder), *(["--video", options.video] if options.video else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                                        env=sidecar.environment())
        self.events, self.measured_ms, self.summary = {}, [], None
        self.next_measurement = 0.0
        # Pictures whose clock is to be read, with when they came. ffmpeg reads them, for longer than a frame takes:
        # the client's events must not wait for it.
        self.pictures = queue.SimpleQueue()
        self.threads = [threading.Thread(target=work) for work in (self.read, self.measure)]
        for thread in self.threads:
            thread.start()

    def read(self):
        for line in self.process.stdout:
            event = json.loads(line)
            name = event["event"]
            self.events[name] = self.events.get(name, 0) + 1
            if name == "summary":
                self.summary = event
            elif name == "answered":
                for target in event["targets"]:
                    for path in target["files"].values():
                        self.picture(path)
            elif name in ("camera_lost", "camera_back", "server_lost", "going_away", "opened"):
                sidecar.say(f"{time.monotonic() - began:6.1f} s: {name} {event.get('reason', '')}")
        self.pictures.put(None)

    def picture(self, path):
        now = time.monotonic()
        if now >= self.next_measurement:
            self.next_measurement = now + 1
            self.pictures.put((path, rtsp_camera.clock_ms()))
        else:
            os.unlink(path)

    def measure(self):
        while picture := self.pictures.get():
            path, read_at = picture
            self.measured_ms.append((read_at - rtsp_camera.read_clock(path)) % (1 << rtsp_camera.BITS))
            os.unlink(path)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(sidecar.PATIENCE_S)
        for thread in self.threads:
            thread.join()
        return code


def anonymous_bytes(process):
    """Resident memory that is not mapped from files; None if the process is not there."""
    try:
        lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), None)


def growth(samples):
    """From the median of the first quarter of the samples to that of the last quarter, in bytes."""
    quarter = max(1, len(samples) // 4)
    return sidecar.median(samples[-quarter:]) - sidecar.median(samples[:quarter])


def percentiles(values):
    """Like the summary's, in milliseconds."""
    ordered = sorted(values)
    at = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 95, 99)}
    return {"count": len(ordered), **at, "max": ordered[-1]}


with tempfile.TemporaryDirectory(prefix="camlens-camera-") as name, contextlib.ExitStack() as started:
    folder = pathlib.Path(name)
    photographs = sorted((sidecar.ROOT / "deploy/demo-assets/photographs").glob("*.*g"))
    rtsp_camera.panorama(folder / "picture.rgb", photographs, options.height)
    camera = rtsp_camera.Camera(folder / "picture.rgb", options.port, options.width, options.height, options.rate)
    camera.start()
    started.callback(camera.kill)
    server = Server(folder)
    started.callback(lambda: server.process.kill())
    began = time.monotonic()
    client = Client(server, camera, folder / "out")
    started.callback(client.process.kill)
    # The server's memory is compared within the life of one process: the second, which is the longer one.
    memory = {"client": [], "server": []}
    happenings = [
        (0.2, camera.kill),
        (0.2 + AWAY_S / options.seconds, camera.start),
        (0.35, lambda: (server.stop(), server.start(), memory["server"].clear())),
        (0.7, camera.kill),
        (0.7 + AWAY_S / options.seconds, camera.start),
    ]
    while (passed := time.monotonic() - began) < options.seconds and client.process.poll() is None:
        while happenings and passed >= happenings[0][0] * options.seconds:
            happenings.pop(0)[1]()
        # The first seconds fill caches.
        if passed > min(30, options.seconds / 10):
            for samples, process in ((memory["client"], client.process), (memory["server"], server.process)):
                size = anonymous_bytes(process)
                if size is not None:
                    samples.append(size)
        time.sleep(1)
    code = client.stop()
    server_code = server.stop()

summary = client.summary or {}
grown = {name: growth(samples) for name, samples in memory.items()}
fates = ("read", "unsent", "sent", "answered", "lost", "not_accepted", "missing")
sidecar.report(
    "camera",
    code == 0
    and server_code == 0
    and summary.get("accounted_for") is True
    and summary["camera"]["reconnections"] == 2
    and summary["connections"] == 2
    and all(bytes_ <= ALLOWED_GROWTH_BYTES for bytes_ in grown.values()),
    frames={key: summary.get(key) for key in fates} | {"dropped": summary.get("dropped")},
    accounted_for=summary.get("accounted_for"),
    frames_per_second=summary.get("frames_per_second"),
    glass_to_answer_ms={"estimated": summary.get("glass_to_answer_ms"), "measured": percentiles(client.measured_ms)},
    stages_ms={name: round(stage["p50"], 2) for name, stage in summary.get("stages_ms", {}).items()},
    decode_errors=summary.get("decode_errors"),
    camera=summary.get("camera"),
    connections=summary.get("connections"),
    events=client.events,
    memory={
        name: {"growth_bytes": grown[name], "least_bytes": min(samples), "most_bytes": max(samples)}
        for name, samples in memory.items()
    },
    exit_codes={"client": code, "server": server_code},
    cores=sidecar.CORES,
)
