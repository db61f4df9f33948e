"""The committed small networks and their references: inputs go as tensors over gRPC, maps come back.

Only the repository has them; they need grpcio-tools, which `deploy/python-env client` has."""

import importlib.util
import json
import sys
import tempfile

import numpy as np

from . import setting as places
from .report import CannotRun

CASES = ("resnet_basic", "resnet_bottleneck", "clamps", "vgg_bn", "mobilenet_v2", "densenet")


def needed():
    """Raises CannotRun where the references cannot be used."""
    if not places.FIXTURES.is_dir():
        raise CannotRun(f"the committed references are not here ({places.FIXTURES})")
    if importlib.util.find_spec("grpc_tools") is None:
        raise CannotRun("this Python has no grpcio-tools, which sends tensors to the server")


def case(name):
    """What the case is, and its arrays."""
    folder = places.FIXTURES / name / "reference"
    with np.load(folder / "arrays.npz") as arrays:
        return json.loads((folder / "case.json").read_text()), dict(arrays)


class Client:
    """A client whose stubs are generated from the repository's proto files."""

    def __init__(self, address):
        self.folder = tempfile.TemporaryDirectory(prefix="stubs-")
        import grpc
        import grpc_tools
        from grpc_tools import protoc

        files = sorted(str(path.relative_to(places.PROTO)) for path in places.PROTO.glob("camlens/v1/*.proto"))
        own = grpc_tools.__path__[0] + "/_proto"
        out = [f"--python_out={self.folder.name}", f"--grpc_python_out={self.folder.name}"]
        if protoc.main(["protoc", f"-I{places.PROTO}", f"-I{own}", *out, *files]):
            raise CannotRun("protoc refuses the repository's proto files")
        sys.path.insert(0, self.folder.name)
        from camlens.v1 import explain_pb2, explain_pb2_grpc, frame_pb2, model_pb2, options_pb2, tensor_pb2

        self.modules = (explain_pb2, frame_pb2, model_pb2, options_pb2, tensor_pb2)
        # On a Unix socket gRPC sends the socket's path as the authority, which HTTP/2 servers refuse.
        self.channel = grpc.insecure_channel(address, options=[("grpc.default_authority", "localhost")])
        self.stub = explain_pb2_grpc.ExplainServiceStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        sys.path.remove(self.folder.name)
        self.folder.cleanup()

    def explain(self, model, x, target, layer, precision):
        """The maps of one row `x`, `[C, H, W]`, by name, and its logit; `heat` is Grad-CAM at the layer's size."""
        explain_pb2, frame_pb2, model_pb2, options_pb2, tensor_pb2 = self.modules
        outputs = {
            "guided_grad_cam": (options_pb2.MAP_GUIDED_GRAD_CAM, options_pb2.RESOLUTION_MODEL),
            "heat": (options_pb2.MAP_GRAD_CAM, options_pb2.RESOLUTION_LAYER),
            "guided_backprop": (options_pb2.MAP_GUIDED_BACKPROP, options_pb2.RESOLUTION_MODEL),
        }
        element = tensor_pb2.ELEMENT_TYPE_FLOAT32
        options = options_pb2.ExplainOptions(
            targets=[options_pb2.Target(class_index=target)],
            target_layers=[layer],
            tensors=[
                options_pb2.TensorOutput(map=kind, element_type=element, resolution=size)
                for kind, size in outputs.values()
            ],
            precision=getattr(options_pb2, f"PRECISION_{precision.upper()}"),
        )
        x = np.ascontiguousarray(x, "<f4")
        frame = frame_pb2.Frame(tensor=tensor_pb2.Tensor(data=x.tobytes(), shape=x.shape, element_type=element))
        selector = model_pb2.ModelSelector(name=model)
        request = explain_pb2.ExplainRequest(model=selector, options=options, frame=frame)
        (found,) = self.stub.Explain(request, timeout=120).explanation.targets
        arrays = [np.frombuffer(one.tensor.data, "<f4").reshape(one.tensor.shape) for one in found.tensors]
        return dict(zip(outputs, arrays, strict=True)), found.score
