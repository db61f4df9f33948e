"""A server that runs the built binary, and the wheel of the Python client, built from this tree.

The tests of the protocol use only the stubs in it: what works there works for any gRPC client. `test_client_*.py` test
the client itself.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("CAMLENS_BINARY", ROOT / "target/release/camlens"))
MODELS = ROOT / "deploy/models"
PHOTOGRAPHS = ROOT / "deploy/demo-assets/photographs"
CLIP = ROOT / "deploy/demo-assets/clip.webp"
MESSAGE_LIMIT = 64 << 20


def build_wheel(out: pathlib.Path) -> pathlib.Path:
    """Builds the wheel of the Python client, without a network: its build requirements are in this environment."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(command, cwd=ROOT / "deploy/clients/python", check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def install_client() -> pathlib.Path:
    """Installs that wheel into a folder of its own, as a user does. It carries the stubs of the protocol."""
    wheels, site = ROOT / "target/python-client/wheel", ROOT / "target/python-client/site"
    for folder in (wheels, site):
        shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(build_wheel(wheels))], check=True, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"})
    return site


sys.path.insert(0, str(install_client()))


class Server:
    """The built binary, serving on a Unix socket."""

    def __init__(
        self,
        directory: pathlib.Path,
        *arguments: str,
        models: pathlib.Path = MODELS,
        variables: dict[str, str] | None = None,
        kernel_timing: str = "at-start",
    ):
        self.address = f"unix:{directory / 'camlens.sock'}"
        self.log = open(directory / "server.log", "w+b")
        # Answers to equal frames are compared, so that kernels are chosen before the first: "at-start".
        serve = ["serve", "--kernel-timing", kernel_timing, "--models", str(models), "--listen", self.address]
        command = [str(BINARY), *serve, *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("CAMLENS_", "OTEL_"))}
        environment |= variables or {}
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log, env=environment)
        self.wait_until_serving()

    def channel(self) -> grpc.Channel:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_LIMIT),
            ("grpc.max_send_message_length", MESSAGE_LIMIT),
            # On a Unix socket gRPC sends the socket's path as the authority, which HTTP/2 servers refuse.
            ("grpc.default_authority", "localhost"),
        ]
        return grpc.insecure_channel(self.address, options=options)

    def wait_until_serving(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended: {self.output()}"
            try:
                with self.channel() as channel:
                    stub = health_pb2_grpc.HealthStub(channel)
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server is not serving after {seconds} s: {self.output()}")

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-4000:]

    def stop(self, with_signal: int = signal.SIGTERM, seconds: float = 30) -> int:
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not stop: {self.output()}")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    assert server.stop() == 0, server.output()


@pytest.fixture
def stub(server):
    from camlens.v1 import explain_pb2_grpc

    with server.channel() as channel:
        yield explain_pb2_grpc.ExplainServiceStub(channel)
