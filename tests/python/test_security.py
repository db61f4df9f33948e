"""TLS of the gRPC library for Python, with client certificates and tokens: the client side is not rustls."""

import re
import time

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conftest import PHOTOGRAPHS, Server

from protocol import pb

TOKEN = "a-token-of-python-0123456789"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def address(authority, tmp_path_factory):
    """A server that requires client certificates and tokens."""
    folder = tmp_path_factory.mktemp("secure")
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    (folder / "tokens").write_text(f"python: {TOKEN}\n")
    for secret in ("tls.key", "tokens"):
        (folder / secret).chmod(0o600)
    server = Server(
        folder, "--listen", "127.0.0.1:0", "--tls-certificate", str(folder / "tls.crt"),
        "--tls-key", str(folder / "tls.key"),
        "--tls-client-ca", str(folder / "ca.crt"), "--token-file", str(folder / "tokens"),
    )  # fmt: skip
    # The line may be logged after the first answer.
    deadline = time.monotonic() + 30
    while not (serving := re.search(r"serving address=127\.0\.0\.1:(\d+)", server.output())):
        assert time.monotonic() < deadline, server.output()
        time.sleep(0.05)
    port = serving.group(1)
    yield f"localhost:{port}"
    assert server.stop() == 0, server.output()
    assert TOKEN not in server.output()


def credentials(authority, own=True, root=None) -> grpc.ChannelCredentials:
    certificate = authority.issue_cert("client@example.org")
    return grpc.ssl_channel_credentials(
        root_certificates=(root or authority).cert_pem.bytes(),
        private_key=certificate.private_key_pem.bytes() if own else None,
        certificate_chain=certificate.cert_chain_pems[0].bytes() if own else None,
    )


def explain(channel):
    from camlens.v1 import explain_pb2_grpc

    data = (PHOTOGRAPHS / "coffee.png").read_bytes()
    request = pb.ExplainRequest(
        options=pb.ExplainOptions(predictions_only=True), frame=pb.Frame(encoded=pb.EncodedImage(data=data))
    )
    return explain_pb2_grpc.ExplainServiceStub(channel).Explain(request, timeout=60).explanation


def test_a_client_with_a_certificate_and_a_token_is_answered(address, authority):
    token = grpc.access_token_call_credentials(TOKEN)
    with grpc.secure_channel(address, grpc.composite_channel_credentials(credentials(authority), token)) as channel:
        assert explain(channel).predictions[0].label == "espresso"


def test_without_the_token_only_health_is_told(address, authority):
    with grpc.secure_channel(address, credentials(authority)) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            explain(channel)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert "authorization: Bearer TOKEN" in refused.value.details()


@pytest.mark.parametrize("case", ["no client certificate", "a server of another authority"])
def test_no_connection_without_the_right_certificates(address, authority, case):
    other = trustme.CA()
    wrong = credentials(authority, own=False) if case == "no client certificate" else credentials(authority, root=other)
    with grpc.secure_channel(address, wrong) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            explain(channel)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
