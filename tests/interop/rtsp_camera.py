#!/usr/bin/python3
"""A camera for tests: an RTSP server that pans over a picture, and writes its clock into each frame.

    rtsp_camera.py --port 8554 --width 1280 --height 720 --rate 30 PICTURE

PICTURE is raw RGB, HEIGHT rows, wider than the frames: the camera pans over it. The first 16 columns of 16 pixels in
the first two rows of 16 pixels are the time of the frame, in milliseconds since 1970 modulo 2³², as bits, the highest
first, white for 1. `read_clock` reads them. The server needs the system's Python with GStreamer's bindings: on Debian
gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly. `Camera` starts it.
"""

import argparse
import pathlib
import shutil
import subprocess
import time

BITS, SIDE = 32, 16
PER_ROW = BITS // 2
ADDRESS = "rtsp://127.0.0.1:{port}/camera"


def clock_ms():
    """Now, as the frames tell it."""
    return time.time_ns() // 1_000_000 % (1 << BITS)


def read_clock(path):
    """The time in the picture of a frame: milliseconds modulo 2³². ffmpeg reads the picture."""
    crop = f"crop={PER_ROW * SIDE}:{2 * SIDE}:0:0,scale={PER_ROW}:2:flags=area"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(path), "-vf", crop]
    command += ["-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    blocks = subprocess.run(command, check=True, capture_output=True).stdout
    value = 0
    for block in blocks[:BITS]:
        value = value << 1 | int(block > 127)
    return value


def age_ms(clock):
    """How old a frame with this time is, in milliseconds."""
    return (clock_ms() - clock) % (1 << BITS)


def panorama(out, pictures, height):
    """Writes the pictures side by side, `height` rows of raw RGB: what the camera pans over."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y"]
    for picture in pictures:
        command += ["-i", str(picture)]
    scaled = "".join(f"[{index}]scale=-2:{height}[p{index}];" for index in range(len(pictures)))
    names = "".join(f"[p{index}]" for index in range(len(pictures)))
    command += ["-filter_complex", f"{scaled}{names}hstack=inputs={len(pictures)}", "-f", "rawvideo"]
    subprocess.run([*command, "-pix_fmt", "rgb24", str(out)], check=True)


class Camera:
    """The camera as a process, for tests. It may be killed and started again."""

    def __init__(self, picture, port=8554, width=1280, height=720, rate=30):
        self.address = ADDRESS.format(port=port)
        self.command = ["/usr/bin/python3", __file__, "--port", str(port), "--width", str(width)]
        self.command += ["--height", str(height), "--rate", str(rate), str(picture)]
        self.process = None

    @staticmethod
    def is_there():
        """Whether the system's Python has GStreamer's RTSP server, and there is an ffmpeg."""
        probe = "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0')"
        probe += "; from gi.repository import Gst, GstRtspServer; Gst.init(None)"
        probe += "; assert all(map(Gst.ElementFactory.find, ('x264enc', 'rtph264pay', 'appsrc')))"
        if not (shutil.which("ffmpeg") and pathlib.Path("/usr/bin/python3").exists()):
            return False
        return subprocess.run(["/usr/bin/python3", "-c", probe], capture_output=True).returncode == 0

    def start(self):
        """Starts it, and waits until it listens."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout.readline().strip() == self.address, "the camera did not start"

    def kill(self):
        """Ends it without a word to its clients."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()


def write_clock(frame, width, value):
    """Writes the time into a frame of raw RGB, in place."""
    shades = [b"\xff" if value >> (BITS - 1 - bit) & 1 else b"\0" for bit in range(BITS)]
    for row in range(2):
        line = b"".join(shade * (3 * SIDE) for shade in shades[row * PER_ROW : (row + 1) * PER_ROW])
        for y in range(row * SIDE, (row + 1) * SIDE):
            frame[y * width * 3 : y * width * 3 + len(line)] = line


class Pan:
    """The frames: a window that moves to and fro over the picture."""

    def __init__(self, path, width, height):
        with open(path, "rb") as file:
            self.picture = file.read()
        self.width, self.height = width, height
        self.stride = len(self.picture) // height
        self.most = self.stride // 3 - width

    def frame(self, number):
        """One frame with its clock."""
        at = number * 4 % max(2 * self.most, 1)
        left = 3 * min(at, 2 * self.most - at)
        rows = (y * self.stride + left for y in range(self.height))
        frame = bytearray(b"".join(self.picture[row : row + 3 * self.width] for row in rows))
        write_clock(frame, self.width, clock_ms())
        return frame


def serve(options):
    """Serves until the process is ended."""
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    pan = Pan(options.picture, options.width, options.height)

    class Camera(GstRtspServer.RTSPMediaFactory):
        """One pipeline for all clients."""

        def do_create_element(self, url):
            size = f"width={options.width},height={options.height},framerate={options.rate}/1"
            return Gst.parse_launch(
                f"( appsrc name=frames is-live=true format=time block=true max-bytes=1"
                f" caps=video/x-raw,format=RGB,{size} ! videoconvert ! video/x-raw,format=I420"
                " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 bitrate=6000"
                " ! rtph264pay name=pay0 pt=96 config-interval=1 )"
            )

        def feed(self, media):
            frames = media.get_element().get_by_name("frames")
            state = {"number": 0, "began": None}

            def push(*_):
                clock = frames.get_clock()
                now = (clock.get_time() - frames.get_base_time()) if clock else 0
                state["began"] = now if state["began"] is None else state["began"]
                # A machine that is too slow for the rate skips frames: their times stay those of their clocks.
                state["number"] = max(state["number"], (now - state["began"]) * options.rate // Gst.SECOND)
                due = state["began"] + state["number"] * Gst.SECOND // options.rate
                if due > now:
                    time.sleep((due - now) / Gst.SECOND)
                buffer = Gst.Buffer.new_wrapped(bytes(pan.frame(state["number"])))
                buffer.pts = due
                buffer.duration = Gst.SECOND // options.rate
                state["number"] += 1
                frames.emit("push-buffer", buffer)

            frames.connect("need-data", push)

    server = GstRtspServer.RTSPServer(service=str(options.port))
    camera = Camera(shared=True)
    camera.connect("media-configure", lambda factory, media: factory.feed(media))
    server.get_mount_points().add_factory("/camera", camera)
    server.attach(None)
    print(ADDRESS.format(port=options.port), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture")
    for name, default in (("port", 8554), ("width", 1280), ("height", 720), ("rate", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    serve(parser.parse_args())
