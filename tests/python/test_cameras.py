"""`camlens stream` with a real ffmpeg: videos in and out, and a camera over RTSP where GStreamer's server is there."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from conftest import BINARY, ROOT

sys.path.insert(0, str(ROOT / "tests/interop"))
import rtsp_camera  # noqa: E402

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="there is no ffmpeg")
WIDTH, HEIGHT = 320, 240


def ffmpeg(*arguments):
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def facts(path):
    """The streams of a file, and its length in seconds."""
    command = ["ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found["streams"], float(found["format"]["duration"])


def picture(path, seconds):
    """The picture that a video shows at a time, [height, width, 3]."""
    data = ffmpeg("-ss", seconds, "-i", path, "-frames:v", 1, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    streams, _ = facts(path)
    shape = (streams[0]["height"], streams[0]["width"], 3)
    return np.frombuffer(data, np.uint8).reshape(shape).astype(np.float32)


def shades(path, width):
    """The mean of the left half of each picture of a video whose pictures have this width."""
    data = ffmpeg("-i", path, "-map", "0:v", "-f", "rawvideo", "-pix_fmt", "gray", "-")
    pictures = np.frombuffer(data, np.uint8).reshape(-1, HEIGHT, width)[:, :, :WIDTH]
    return pictures.mean(axis=(1, 2)).tolist()


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith(("CAMLENS_", "OTEL_"))}


def stream(server, *arguments, expected=0):
    """Runs `camlens stream`; its last line."""
    command = [BINARY, "stream", *map(str, arguments), "--server", server.address, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert ended.returncode == expected, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds at 10 Hz: each picture is plain, a shade lighter than the one before."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    source = f"color=black:s={WIDTH}x{HEIGHT}:r=10:d=2,format=gray,geq=lum='20+10*N'"
    ffmpeg("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", "-c:v", "libx264", "-qp", 0, path)
    return path


def test_a_video_in_and_a_video_out_have_the_same_time(server, clip, tmp_path):
    out = tmp_path / "explained.mp4"
    summary = stream(server, clip, "--out", tmp_path / "pictures", "--video", out)
    assert summary["answered"] == 20 and summary["accounted_for"]
    (video, captions), seconds = facts(out)
    assert (video["codec_name"], video["width"], video["height"]) == ("h264", 2 * WIDTH, HEIGHT)
    assert (video["avg_frame_rate"], video["color_space"], captions["codec_name"]) == ("25/1", "bt709", "mov_text")
    # The last picture begins at 1.9 s and is shown once.
    assert seconds == pytest.approx(1.9 + 1 / 25, abs=0.05)
    originals, shown = shades(clip, WIDTH), shades(out, 2 * WIDTH)
    begins = [int(number * 25 / 10 + 0.5) for number in range(20)]
    expected = [originals[max(i for i in range(20) if begins[i] <= number)] for number in range(len(shown))]
    assert np.abs(np.array(shown) - np.array(expected)).max() < 5
    assert not list(tmp_path.glob("*.part")) and not list((tmp_path / "pictures").glob("*.npy"))


def test_the_right_half_is_the_explanation(server, tmp_path):
    photograph, out = ROOT / "deploy/demo-assets/photographs/coffee.png", tmp_path / "explained.mp4"
    stream(server, photograph, "--repeat", 10, "--out", tmp_path, "--video", out, "--format", "png", "--rate", 5)
    both, (_, seconds) = picture(out, 1.0), facts(out)
    frame, explanation = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
    assert seconds == pytest.approx(9 / 5 + 1 / 25, abs=0.05)
    height, width, _ = frame.shape
    original = np.asarray(Image.open(photograph).convert("RGB"), np.float32)[:height, :width]
    assert np.abs(frame - original).mean() < 4
    written = np.asarray(Image.open(next(tmp_path.glob("*.overlay.png"))).convert("RGB"), np.float32)
    assert np.abs(explanation - written[:height, :width]).mean() < 8
    assert np.abs(explanation - frame).mean() > 8


def test_the_video_of_a_camera_has_a_picture_for_each_answer(server, tmp_path):
    out = tmp_path / "explained.mp4"
    source = f"testsrc=s={WIDTH}x{HEIGHT}:r=4,realtime"
    live = ["--live", "--ffmpeg-option", "f=lavfi", "--limit", 12]
    summary = stream(server, source, *live, "--out", tmp_path, "--video", out)
    assert summary["accounted_for"] and summary["answered"] > 0
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "packet=pts_time", "-of", "csv=p=0"]
    times = sorted(map(float, subprocess.run([*command, out], check=True, capture_output=True).stdout.split()))
    # Repeats at 25 pictures a second would be six times as many. An encoder that is too slow leaves some out.
    assert 1 < len(times) <= summary["answered"]
    assert times[0] == 0 and min(b - a for a, b in zip(times, times[1:])) > 0.02
    _, seconds = facts(out)
    assert seconds == pytest.approx(times[-1] + 1 / 25, abs=0.3)


def test_rate_and_width_thin_out_and_scale_down(server, clip, tmp_path):
    summary = stream(server, clip, "--out", tmp_path, "--fps", 4, "--width", 160)
    assert summary["sent"] == 8
    first = next(tmp_path.glob("*.overlay.jpg"))
    assert Image.open(first).size == (160, 120)


def test_damage_within_a_video_is_counted_and_ends_nothing(server, clip, tmp_path):
    whole = bytearray(clip.read_bytes())
    at = whole.index(b"mdat")
    length = int.from_bytes(whole[at - 4 : at], "big")
    whole[at + length // 2 : at + length * 3 // 4] = b"\xff" * (at + length * 3 // 4 - at - length // 2)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(whole)
    summary = stream(server, damaged, "--out", tmp_path)
    assert summary["accounted_for"] and summary["answered"] > 5 and summary["decode_errors"] > 0


def test_a_text_is_no_video(server, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    command = [BINARY, "stream", tmp_path / "text.mp4", "--server", server.address, "--out", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert ended.returncode == 1 and "cannot read" in ended.stderr and "ffmpeg says: " in ended.stderr, ended.stderr


@pytest.mark.skipif(not rtsp_camera.Camera.is_there(), reason="there is no GStreamer RTSP server")
def test_a_real_camera_is_explained_and_comes_back(server, tmp_path):
    pan = tmp_path / "pan.rgb"
    photographs = ROOT / "deploy/demo-assets/photographs"
    rtsp_camera.panorama(pan, [photographs / "coffee.png", photographs / "chelsea.png"], HEIGHT)
    camera = rtsp_camera.Camera(pan, port=18554, width=WIDTH, height=HEIGHT, rate=10)
    with camera:
        command = [BINARY, "stream", camera.address, "--server", server.address, "--json", "--limit", "60"]
        command += ["--out", tmp_path / "out", "--stall", "3"]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        timer = threading.Timer(100, client.kill)
        timer.start()
        events, answered = [], 0
        for line in client.stdout:
            events.append(json.loads(line))
            answered += events[-1]["event"] == "answered"
            if answered == 10:
                answered += 1
                camera.kill()
                time.sleep(1)
                camera.start()
        timer.cancel()
        assert client.wait() == 0
    summary = events[-1]
    assert summary["read"] == 60 and summary["accounted_for"], summary
    assert summary["camera"]["reconnections"] >= 1
    kinds = [event["event"] for event in events]
    assert kinds.index("camera_lost") < kinds.index("camera_back")
    assert summary["glass_to_answer_ms"]["count"] == summary["answered"] > 10
    last = max((tmp_path / "out").glob("*.overlay.jpg"))
    # The clock in the picture: it was written within the life of this test.
    assert rtsp_camera.age_ms(rtsp_camera.read_clock(last)) < 300_000
