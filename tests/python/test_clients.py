"""What gRPC's own client in C++ and Python does besides calling: compression, metadata, other servers' methods."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conftest import PHOTOGRAPHS
from protocol import pb


@pytest.fixture(params=["Gzip", "Deflate", "NoCompression"])
def compression(request):
    return getattr(grpc.Compression, request.param)


def explain_request():
    return pb.ExplainRequest(
        options=pb.ExplainOptions(tensors=[pb.TensorOutput(map=pb.MAP_GUIDED_GRAD_CAM)]),
        frame=pb.Frame(encoded=pb.EncodedImage(data=(PHOTOGRAPHS / "coffee.png").read_bytes())),
    )


def test_a_client_that_compresses_gets_the_same_answers(server, stub, compression):
    from camlens.v1 import model_pb2_grpc

    plain = stub.Explain(explain_request(), timeout=60).explanation
    answer = stub.Explain(explain_request(), timeout=60, compression=compression).explanation
    assert answer.targets == plain.targets
    frame = explain_request().frame
    frame.sequence = 1
    requests = [pb.ExplainStreamRequest(open=pb.Open()), pb.ExplainStreamRequest(frame=frame)]
    answers = list(stub.ExplainStream(iter(requests), timeout=60, compression=compression))
    assert [answer.WhichOneof("message") for answer in answers] == ["opened", "explanation"]
    with server.channel() as channel:
        models = model_pb2_grpc.ModelServiceStub(channel)
        assert models.ListModels(pb.ListModelsRequest(), timeout=60, compression=compression).models
        health = health_pb2_grpc.HealthStub(channel)
        health = health.Check(health_pb2.HealthCheckRequest(), timeout=60, compression=compression)
    assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_metadata_has_a_limit_with_a_name(stub):
    def call(size):
        return stub.Explain(explain_request(), timeout=60, metadata=[("x-large", "a" * size)])

    for size in [16_000, 17_000, 60_000]:
        assert call(size).explanation.predictions
    with pytest.raises(grpc.RpcError) as refused:
        call(70_000)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 65536 are read" in refused.value.details()


@pytest.mark.parametrize(
    "path", ["/inference.GRPCInferenceService/ServerLive", "/tensorflow.serving.PredictionService/Predict"]
)
def test_clients_of_other_servers_are_told_what_there_is(server, path):
    with server.channel() as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(path)(b"", timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "there is camlens.v1.ExplainService" in refused.value.details()
