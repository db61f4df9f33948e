#!/usr/bin/env python3
"""A real camera over RTSP, and what cameras.md says about it: camlens stream, GStreamer's pipelines, OpenCV's loop."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from setting import CLIENTS, ROOT, Table, Transport, expect, free_port

import rtsp_camera

FRAMES, PATIENCE_S = 40, 60
GUIDE = CLIENTS / "cameras.md"
BINARY = ROOT / "target/release/camlens"


def pipeline(of_source):
    """The GStreamer command line of the guide that begins with this source."""
    blocks = re.findall(r"^gst-launch-1\.0 (?:.*\\\n)*.*$", GUIDE.read_text(), re.MULTILINE)
    (found,) = [block.replace("\\\n", " ") for block in blocks if f" {of_source} " in block]
    return found


@contextlib.contextmanager
def gstreamer(command, port):
    """A pipeline of the guide, on a port of its own."""
    process = subprocess.Popen(command.replace("port=5000", f"port={port}").split(), stderr=subprocess.PIPE)
    try:
        time.sleep(2)
        expect(process.poll() is None, f"the pipeline ended: {command}")
        yield
    finally:
        process.kill()
        process.wait()


def stream(server, out, *arguments):
    """Runs `camlens stream` for some frames; its summary."""
    command = [BINARY, "stream", *arguments, "--server", server, "--out", out, "--limit", FRAMES, "--json"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CAMLENS_")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=PATIENCE_S,
                          env=environment)  # fmt: skip
    expect(done.returncode == 0, f"camlens stream ended with {done.returncode}: {done.stderr[-800:]}")
    summary = json.loads(done.stdout.splitlines()[-1])
    expect(summary["read"] == FRAMES and summary["accounted_for"] and summary["answered"] > 0, summary)
    expect(summary["glass_to_answer_ms"]["p95"] > 0, "no latency from glass to answer")


def rtsp(server, camera, folder):
    stream(server, folder, camera.address)


def h264_through_gstreamer(server, camera, folder):
    port = free_port()
    command = pipeline("rtspsrc").replace("rtsp://camera/1", camera.address)
    with gstreamer(command, port):
        stream(server, folder, f"tcp://127.0.0.1:{port}")


def jpegs_through_gstreamer(server, camera, folder):
    port = free_port()
    # There is no machine-vision camera here: GStreamer's own picture takes its place.
    source = "videotestsrc is-live=true ! video/x-raw,width=640,height=480,framerate=15/1"
    with gstreamer(pipeline("aravissrc").replace("aravissrc", source), port):
        stream(server, folder, f"tcp://127.0.0.1:{port}", "--ffmpeg-option", "f=mpjpeg")


def opencv(server, camera, folder):
    """The loop of the guide, until it has drawn some pictures."""
    command = [sys.executable, CLIENTS / "python/opencv_camera.py", camera.address, folder]
    site = ROOT / "target/python-client/site"
    paths = [str(site), os.environ["CAMLENS_OPENCV"], os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "CAMLENS_SERVER": server, "PYTHONPATH": ":".join(filter(None, paths))}
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + PATIENCE_S
    while len(list(folder.glob("*.jpg"))) < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE_S)[1]
    drawn = sorted(folder.glob("*.jpg"))
    expect(process.returncode == 0, f"it ended with {process.returncode} after Ctrl-C: {said[-800:]}")
    expect(len(drawn) >= 10, f"{len(drawn)} pictures: {said[-800:]}")
    # Each picture was taken after the one before.
    clocks = [rtsp_camera.read_clock(path) for path in drawn[-4:-1]]
    expect(clocks == sorted(clocks) and rtsp_camera.age_ms(clocks[-1]) < 600_000, f"clocks {clocks}")


def main():
    checks = {"RTSP": rtsp, "GStreamer, H.264": h264_through_gstreamer, "GStreamer, JPEGs": jpegs_through_gstreamer,
              "OpenCV": opencv}  # fmt: skip
    table = Table("camera")
    with tempfile.TemporaryDirectory(prefix="camlens-", ignore_cleanup_errors=True) as folder:
        folder = pathlib.Path(folder)
        photographs = ROOT / "deploy/demo-assets/photographs"
        rtsp_camera.panorama(folder / "pan.rgb", [photographs / "coffee.png", photographs / "chelsea.png"], 480)
        transport = Transport("unix", folder / "unix")
        transport.serve()
        with rtsp_camera.Camera(folder / "pan.rgb", free_port(), 640, 480, 15) as camera:
            for name, check in checks.items():
                out = folder / check.__name__
                out.mkdir()
                table.check("explained live", name, lambda: check(transport.address, camera, out))
        transport.stop()
        table.end("cameras.md")


if __name__ == "__main__":
    main()
