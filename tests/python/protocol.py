"""Every message and enum of camlens.v1 in one module; there is one generated module for each proto file."""

import types

import conftest  # noqa: F401  (installs the stubs)
from camlens.v1 import explain_pb2, explanation_pb2, frame_pb2, image_pb2, model_pb2, options_pb2, tensor_pb2

pb = types.SimpleNamespace()
for module in (explain_pb2, explanation_pb2, frame_pb2, image_pb2, model_pb2, options_pb2, tensor_pb2):
    vars(pb).update({name: value for name, value in vars(module).items() if not name.startswith("_")})
