"""The Python client against the built binary: pictures, TLS, drains, a server that is killed and comes back."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import trustme
from PIL import Image

import camlens
from clients import explain, run
from conftest import PHOTOGRAPHS, ROOT, Server, build_wheel
from test_stream import clip_frames

BOTH = pytest.mark.parametrize("kind", ["sync", "aio"])
SMALL = {"maps": ["grad_cam"], "element_type": "uint8", "resolution": "layer"}
BACKOFF = camlens.Backoff(first_s=0.05, most_s=0.5, give_up_after_s=60)
TOKEN = "a-token-of-the-client-0123456789"


class Replaced:
    """A server on a Unix socket that is stopped with a signal once and started again, when a test says so."""

    def __init__(self, folder, with_signal):
        self.folder, self.with_signal = folder, with_signal
        self.server = Server(folder, kernel_timing="never")
        self.address = self.server.address
        self.thread = threading.Thread(target=self._replace)
        self.is_wanted, self.is_over = threading.Event(), False
        self.thread.start()

    def _replace(self):
        self.is_wanted.wait()
        if self.is_over:
            return
        first = self.server.process
        first.send_signal(self.with_signal)
        self.code = first.wait(60)
        if self.with_signal == signal.SIGKILL:
            os.unlink(self.address.removeprefix("unix:"))
        self.server = Server(self.folder, kernel_timing="never")

    def now(self):
        self.is_wanted.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.is_over = not self.is_wanted.is_set()
        self.is_wanted.set()
        self.thread.join()
        assert self.server.stop() == 0, self.server.output()


# ---------------------------------------------------------------------------------------------------------- pictures
@BOTH
def test_one_picture_one_line(kind, server, tmp_path):
    answer = explain(kind, server.address, PHOTOGRAPHS / "coffee.png")
    assert answer.label == "espresso" and answer.probability > 0.9 and len(answer.predictions) == 5
    assert answer.guided_grad_cam.shape == (3, 224, 224) and answer.grad_cam.shape == (224, 224)
    assert answer.grad_cam.min() >= 0 < answer.grad_cam.max() and answer.round_trip_s > 0
    assert answer.timings_ms["forward"] > 0 and answer.message.model.name == "efficientnet-lite0"
    answer.save_overlay(tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as overlay, Image.open(PHOTOGRAPHS / "coffee.png") as frame:
        assert overlay.format == "PNG" and overlay.size == frame.size
        drawn = answer.draw(np.asarray(frame.convert("RGB")))
        assert drawn.shape == (frame.height, frame.width, 3)


def test_files_arrays_and_pil_pictures_are_the_same_picture(server):
    with Image.open(PHOTOGRAPHS / "coffee.png") as file:
        picture = file.convert("RGB")
    rgb = np.asarray(picture)
    kinds = [(PHOTOGRAPHS / "coffee.png", "rgb"), (picture, "rgb"), (rgb, "rgb"), (rgb[:, :, ::-1], "bgr"),
             (np.dstack([rgb, rgb[:, :, :1]]), "rgb")]  # fmt: skip
    with camlens.Client(server.address) as client:
        logits = [[p.logit for p in client.explain(image, color=color, maps=["grad_cam"]).predictions]
                  for image, color in kinds]  # fmt: skip
        assert logits == [logits[0]] * len(kinds)
        assert client.explain(rgb[:, :, ::-1], maps=["grad_cam"]).predictions[0].logit != logits[0][0]
        given = client.explain(picture, maps=["input"]).maps["input"]
        assert client.explain(given).predictions[0].logit == pytest.approx(logits[0][0], rel=1e-4)
        assert client.explain(picture.convert("L"), predictions_only=True).predictions


def test_models_are_listed(server):
    with camlens.Client(server.address) as client:
        (model,) = client.models()
        assert model.class_count == 1000
        assert "espresso" in client.model(model.name).labels
        with pytest.raises(camlens.NotFound):
            client.model("none")


@BOTH
def test_what_is_wrong_names_the_field(kind, server):
    with pytest.raises(camlens.StatusError) as refused:
        explain(kind, server.address, PHOTOGRAPHS / "coffee.png", targets=["expresso"])
    assert refused.value.code.name == "INVALID_ARGUMENT" and "espresso" in refused.value.message
    assert refused.value.field == "options.targets[0].label"


@BOTH
def test_the_functions_take_the_address_from_the_environment(kind, server):
    one = "asyncio.run(camlens.aio.explain(sys.argv[1]))" if kind == "aio" else "camlens.explain(sys.argv[1])"
    code = f"import asyncio, sys, camlens; print({one})"
    environment = {**os.environ, "CAMLENS_SERVER": server.address, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", code, str(PHOTOGRAPHS / "coffee.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"frame 0: espresso 0\.\d+\n", done.stdout)


# ----------------------------------------------------------------------------------------------------------- streams
@BOTH
def test_a_recording_loses_nothing_and_keeps_its_credit(kind, server):
    frames = [camlens.Frame(data, tag=f"{i}", capture_time=i + 0.25) for i, data in enumerate(clip_frames(60))]
    outcome = run(kind, server.address, frames, **SMALL)
    outcome.account(60)
    assert [one.sequence for one in outcome.answers] == list(range(1, 61))
    assert all(one.tag == str(i).encode() and one.capture_time == i + 0.25 for i, one in enumerate(outcome.answers))
    assert all(one.source is frame and one.grad_cam.shape == (7, 7) for one, frame in zip(outcome.answers, frames))
    assert 1 < outcome.counts.most_in_flight <= outcome.counts.credit


@BOTH
def test_of_a_camera_each_frame_is_answered_or_dropped_with_a_reason(kind, server):
    rgb = np.asarray(Image.open(PHOTOGRAPHS / "coffee.png").convert("RGB"))
    outcome = run(kind, server.address, [rgb] * 80, policy="latest", **SMALL)
    outcome.account(80)
    kinds = outcome.by_kind()
    assert set(kinds) == {"Explanation", "Dropped"} and kinds["Explanation"][-1] == 80
    assert set(outcome.counts.dropped) == {"replaced"}
    assert outcome.counts.most_in_flight <= outcome.counts.credit


@BOTH
def test_a_bad_frame_does_not_end_the_stream(kind, server):
    good = (PHOTOGRAPHS / "rocket.jpg").read_bytes()
    outcome = run(kind, server.address, [good, good[:2000], b"no picture", good], **SMALL)
    outcome.account(4)
    assert outcome.by_kind() == {"Explanation": [1, 4], "Failed": [2, 3]}
    assert outcome.answers[1].code == "INVALID_ARGUMENT" and outcome.answers[1].field == "frame.encoded.data"


@BOTH
def test_a_drain_loses_no_frame(kind, tmp_path):
    """SIGTERM: accepted frames are answered, the others go to the next server."""
    frames = clip_frames(20) * 6
    with Replaced(tmp_path, signal.SIGTERM) as servers:
        def on_answer(_, one):
            if one.sequence == 30:
                servers.now()

        outcome = run(kind, servers.address, frames, on_answer=on_answer, backoff=BACKOFF, **SMALL)
    outcome.account(120)
    assert servers.code == 0
    assert outcome.by_kind() == {"Explanation": list(range(1, 121))}
    # A server that is about to end may still open a stream, and leaves it at once.
    assert outcome.counts.connections >= 2 and outcome.counts.lost == 0


@BOTH
@pytest.mark.parametrize("resend", [0, 1])
def test_when_the_server_is_killed_every_frame_is_accounted_for(kind, resend, tmp_path):
    frames = clip_frames(20) * 6
    with Replaced(tmp_path, signal.SIGKILL) as servers:
        def on_answer(_, one):
            if one.sequence == 30:
                servers.now()

        outcome = run(kind, servers.address, frames, on_answer=on_answer, backoff=BACKOFF, resend=resend, **SMALL)
    outcome.account(120)
    assert outcome.counts.connections == 2
    # At most the frames that the credit allows were with the server when it died.
    if resend:
        assert outcome.counts.lost == 0 < outcome.counts.resent <= outcome.counts.credit
    else:
        assert 0 < outcome.counts.lost <= outcome.counts.credit
    assert outcome.counts.answered == 120 - outcome.counts.lost


@BOTH
def test_a_stream_goes_on_when_connections_reach_their_age(kind, tmp_path):
    config = tmp_path / "camlens.toml"
    config.write_text("[server]\nmax_connection_age_s = 1\n")
    server = Server(tmp_path, "--config", str(config), kernel_timing="never")

    def source():
        began, frames = time.monotonic(), clip_frames(20)
        while time.monotonic() < began + 3:
            yield from frames

    outcome = run(kind, server.address, source(), backoff=BACKOFF, **SMALL)
    assert server.stop() == 0
    outcome.account(outcome.counts.read)
    assert outcome.counts.connections > 1 and outcome.counts.answered == outcome.counts.read


# ---------------------------------------------------------------------------------------------------------- security
@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """A server with TLS that requires certificates and tokens; its address, and the files of a client."""
    authority, folder = trustme.CA(), tmp_path_factory.mktemp("secure")
    own, client = authority.issue_cert("localhost"), authority.issue_cert("client@example.org")
    files = {"tls.crt": own.cert_chain_pems[0], "tls.key": own.private_key_pem, "ca.crt": authority.cert_pem,
             "client.crt": client.cert_chain_pems[0], "client.key": client.private_key_pem}  # fmt: skip
    for name, blob in files.items():
        blob.write_to_path(folder / name)
    (folder / "tokens").write_text(f"client: {TOKEN}\n")
    for secret in ("tls.key", "tokens"):
        (folder / secret).chmod(0o600)
    server = Server(
        folder, "--listen", "127.0.0.1:0", "--tls-certificate", str(folder / "tls.crt"), "--tls-key",
        str(folder / "tls.key"), "--tls-client-ca", str(folder / "ca.crt"), "--token-file", str(folder / "tokens"),
        kernel_timing="never",
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (port := re.search(r"serving address=127\.0\.0\.1:(\d+)", server.output())):
        assert time.monotonic() < deadline, server.output()
        time.sleep(0.05)
    settings = {"ca": folder / "ca.crt", "certificate": folder / "client.crt", "key": folder / "client.key"}
    yield f"https://localhost:{port[1]}", settings
    assert server.stop() == 0, server.output()


@BOTH
def test_tls_with_certificates_on_both_sides_and_a_token(kind, secure):
    address, settings = secure
    outcome = run(kind, address, clip_frames(8), settings={**settings, "token": TOKEN}, **SMALL)
    outcome.account(8)
    assert outcome.by_kind() == {"Explanation": list(range(1, 9))}


@BOTH
def test_what_a_refused_client_is_told_and_that_it_does_not_try_again(kind, secure):
    address, settings = secure
    outcome = run(kind, address, clip_frames(2), settings={**settings, "token": "another"}, **SMALL)
    assert isinstance(outcome.error, camlens.Unauthenticated) and outcome.answers == []
    backoff = camlens.Backoff(give_up_after_s=0)
    with pytest.raises(camlens.Unavailable):
        explain(kind, address, PHOTOGRAPHS / "rocket.jpg", backoff=backoff, settings={"ca": settings["ca"]})


# ------------------------------------------------------------------------------------------------------------- wheel
def test_the_wheel_is_the_same_whenever_it_is_built(tmp_path):
    wheels = [build_wheel(tmp_path / name) for name in ("a", "b")]
    first, second = (hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels)
    assert first == second
    assert not list((ROOT / "deploy/clients/python").rglob("*_pb2.py")), "generated code stays out of the tree"


def test_the_readme_of_the_clients_does_what_it_says(server, tmp_path):
    text = (ROOT / "deploy/clients/README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?save_overlay.*?)^```", text, re.M | re.S)
    assert len(code.strip().splitlines()) <= 10
    for name in ("photo.jpg", "frames/a.jpg", "frames/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((PHOTOGRAPHS / "rocket.jpg").read_bytes())
    environment = {**os.environ, "CAMLENS_SERVER": server.address, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("missile") == 3
    for name in ("overlay.png", "1.png", "2.png"):
        with Image.open(tmp_path / name) as overlay:
            assert overlay.format == "PNG"
