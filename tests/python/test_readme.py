"""Runs the Python of the READMEs as printed: in a user's folder, over TCP, with stubs made as README.md says."""

import re
import shlex
import shutil
import socket
import subprocess
import sys

import pytest

from conftest import PHOTOGRAPHS, ROOT, Server

PRINTED_ADDRESS = "127.0.0.1:8033"


def block(name: str, language: str, containing: str) -> str:
    """The one block of a README that contains a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.M | re.S)
    found = [text for text in blocks if containing in text]
    assert len(found) == 1, f"{name} has {len(found)} blocks of {language} with {containing!r}"
    return found[0]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % free.getsockname()[1]
    server = Server(tmp_path_factory.mktemp("tcp"), "--listen", address)
    yield address
    assert server.stop() == 0, server.output()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder: photographs, and the stubs that README's own command makes."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        shutil.copy(PHOTOGRAPHS / "rocket.jpg", folder / name)
    line = next(line for line in block("README.md", "sh", "grpc_tools.protoc").splitlines() if "protoc" in line)
    command = line.replace("-I proto", f"-I {ROOT / 'proto'}").replace("proto/camlens/v1/*.proto", "")
    files = sorted(str(path) for path in (ROOT / "proto/camlens/v1").glob("*.proto"))
    assert command.startswith("python -m "), command
    subprocess.run([sys.executable, *shlex.split(command)[1:], *files], cwd=folder, check=True)
    return folder


def run(folder, code: str, address: str) -> str:
    assert PRINTED_ADDRESS in code
    code = code.replace(PRINTED_ADDRESS, address)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_ten_lines_explain_a_photograph(folder, address):
    code = block("README.md", "python", "guided_grad_cam")
    assert len(code.strip().splitlines()) <= 10
    label, probability = run(folder, code + "print(guided_grad_cam.shape)\n", address).splitlines()[0].rsplit(" ", 1)
    assert label == "missile" and float(probability) > 0.2


def test_the_stream_explains_every_file(folder, address):
    assert run(folder, block("proto/README.md", "python", "ExplainStream"), address) == "1 missile\n2 missile\n"
