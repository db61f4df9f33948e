"""An invalid frame gets an error: a canonical code, the field, what is allowed. The stream continues."""

import dataclasses
import io
import re
import struct
import zlib

import grpc
import numpy as np
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from conftest import PHOTOGRAPHS

from conversation import Conversation
from protocol import pb

INVALID, TOO_MUCH, NOT_BUILT = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)
SIDE = 224
UNKNOWN = 999  # not a value of any enum


@dataclasses.dataclass
class Bad:
    frame: pb.Frame
    code: grpc.StatusCode
    field: str
    says: str  # a regular expression for the error's description


def picture(format: str, size=(40, 30)) -> bytes:
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint32).astype(np.uint8).reshape(size[1], size[0], 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header declares its size, without any pixel data."""

    def chunk(kind: bytes, data: bytes = b"") -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT") + chunk(b"IEND")


def encoded(data: bytes, **fields) -> pb.Frame:
    return pb.Frame(encoded=pb.EncodedImage(data=data, **fields))


def raw(**fields) -> pb.Frame:
    sound = dict(data=bytes(4 * 4 * 3), width=4, height=4, pixel_format=pb.PIXEL_FORMAT_RGB8)
    return pb.Frame(raw=pb.RawImage(**{**sound, **fields}))


def tensor(shape, value=0.0, **fields) -> pb.Frame:
    data = np.full(shape, value, "<f4").tobytes()
    return pb.Frame(tensor=pb.Tensor(**{"shape": shape, "data": data, **fields}))


def one_value(value: float) -> pb.Frame:
    data = np.zeros((3, SIDE, SIDE), "<f4")
    data[1, 0, 2] = value
    return pb.Frame(tensor=pb.Tensor(shape=data.shape, data=data.tobytes()))


def asking(**options) -> pb.Frame:
    frame = encoded(picture("PNG"))
    frame.options.CopyFrom(pb.ExplainOptions(**options))
    return frame


def target(**kind) -> pb.Frame:
    return asking(targets=[pb.Target(**kind)])


def drawn(**fields) -> pb.Frame:
    return asking(pictures=[pb.PictureOutput(**{"picture": pb.PICTURE_OVERLAY, **fields})])


def with_field(**fields) -> pb.Frame:
    return pb.Frame(encoded=pb.EncodedImage(data=picture("PNG")), **fields)


DATA, SHAPE = "frame.encoded.data", "frame.tensor.shape"
LAYERS, TARGET = "frame.options.target_layers", "frame.options.targets[0]"
JPEG = picture("JPEG", (400, 300))

BAD_FRAMES = {
    # Pictures.
    "a JPEG cut in half": Bad(
        encoded(JPEG[: len(JPEG) // 2]), INVALID, DATA, "damaged JPEG: it ends early, and .* % of the picture was lost"
    ),
    "a PNG cut in half": Bad(encoded(picture("PNG")[:90]), INVALID, DATA, "cannot be read as PNG"),
    "a WebP cut in half": Bad(encoded(picture("WEBP")[:60]), INVALID, DATA, "cannot be read as WebP"),
    "a PNG of 50,000 by 50,000": Bad(
        encoded(png_header(50_000, 50_000)), TOO_MUCH, DATA, "50000×50000, 2500000000 pixels: the limit is 64000000"
    ),
    "a GIF": Bad(encoded(picture("GIF")), INVALID, DATA, "is a GIF picture: JPEG, PNG and WebP are read"),
    "a BMP": Bad(encoded(picture("BMP")), INVALID, DATA, "is a BMP picture: JPEG, PNG and WebP are read"),
    "no picture at all": Bad(encoded(b"hello, world"), INVALID, DATA, "begins with 68 65 6c 6c.*JPEG, PNG and WebP"),
    "an empty picture": Bad(encoded(b""), INVALID, DATA, "is empty: a frame needs content"),
    "a PNG that is called a JPEG": Bad(
        encoded(picture("PNG"), format=pb.IMAGE_FORMAT_JPEG),
        INVALID,
        "frame.encoded.format",
        "says JPEG, but .* is PNG",
    ),
    "a picture of an unknown format": Bad(
        encoded(picture("PNG"), format=UNKNOWN), INVALID, "frame.encoded.format", "999.*JPEG, PNG and WEBP are allowed"
    ),
    # Raw pixels.
    "too few bytes": Bad(raw(data=bytes(47)), INVALID, "frame.raw.data", "47 bytes.*need 48"),
    "no bytes": Bad(raw(data=b""), INVALID, "frame.raw.data", "0 bytes.*need 48"),
    "no width": Bad(raw(width=0), INVALID, "frame.raw.width", "is 0: it must be at least 1"),
    "no height": Bad(raw(height=0), INVALID, "frame.raw.height", "is 0: it must be at least 1"),
    "rows that overlap": Bad(raw(stride_bytes=11), INVALID, "frame.raw.stride_bytes", "is 11.*at least 12 bytes a row"),
    "a giant that is not there": Bad(
        raw(width=4_294_967_295, height=4_294_967_295), TOO_MUCH, "frame.raw", "the limit is 64000000 pixels"
    ),
    "pixels of no format": Bad(
        raw(pixel_format=0), INVALID, "frame.raw.pixel_format", "is missing: RGB8, BGR8 and GRAY8 are allowed"
    ),
    "pixels of an unknown format": Bad(
        raw(pixel_format=UNKNOWN), INVALID, "frame.raw.pixel_format", "999.*RGB8, BGR8 and GRAY8 are allowed"
    ),
    "pixels of a later format": Bad(
        raw(pixel_format=pb.PIXEL_FORMAT_NV12), NOT_BUILT, "frame.raw.pixel_format", "NV12 is not built yet; send RGB8"
    ),
    # Tensors.
    "a tensor of another size": Bad(
        tensor((3, SIDE, SIDE + 1)), INVALID, SHAPE, r"\[3, 224, 225\]: the model takes \[3, 224, 224\]"
    ),
    "a tensor of one channel": Bad(tensor((1, SIDE, SIDE)), INVALID, SHAPE, r"the model takes \[3, 224, 224\]"),
    "a tensor of two axes": Bad(tensor((SIDE, SIDE)), INVALID, SHAPE, r"\[C, H, W\] or \[1, C, H, W\]"),
    "a batch": Bad(tensor((2, 3, SIDE, SIDE)), INVALID, SHAPE, r"\[C, H, W\] or \[1, C, H, W\]"),
    "a tensor without a shape": Bad(tensor((), data=bytes(4)), INVALID, SHAPE, r"\[C, H, W\] or \[1, C, H, W\]"),
    "a tensor with too few numbers": Bad(
        tensor((3, SIDE, SIDE), data=bytes(400)), INVALID, "frame.tensor.data", "400 bytes.*needs 602112"
    ),
    "one NaN": Bad(
        one_value(np.nan), INVALID, "frame.tensor.data", f"NaN at element {SIDE * SIDE + 2} .*must be finite"
    ),
    "one infinity": Bad(one_value(-np.inf), INVALID, "frame.tensor.data", "-inf at element .*must be finite"),
    "numbers of a later type": Bad(
        tensor((3, SIDE, SIDE), element_type=pb.ELEMENT_TYPE_FLOAT16), NOT_BUILT, "frame.tensor.element_type", "float32"
    ),
    "numbers of an unknown type": Bad(
        tensor((3, SIDE, SIDE), element_type=UNKNOWN), INVALID, "frame.tensor.element_type", "999.*FLOAT32 is allowed"
    ),
    "a scale that means nothing": Bad(
        tensor((3, SIDE, SIDE), scale=0.5), INVALID, "frame.tensor.scale", "belongs to UINT8 tensors: leave it out"
    ),
    # The frame itself.
    "nothing": Bad(pb.Frame(), INVALID, "frame.payload", "is missing: give encoded, raw or tensor"),
    "memory that is not shared": Bad(
        pb.Frame(shared_memory=pb.SharedMemoryImage()), NOT_BUILT, "frame.shared_memory", "not built yet; leave it out"
    ),
    "a part of the frame": Bad(with_field(region=pb.Region(width=1, height=1)), NOT_BUILT, "frame.region", "not built"),
    "no time to live": Bad(
        with_field(time_to_live=duration_pb2.Duration(seconds=-1)),
        INVALID,
        "frame.time_to_live",
        "more than 0 s is allowed",
    ),
    "a tag as long as a letter": Bad(
        with_field(tag=bytes(5000)), INVALID, "frame.tag", "5000 bytes: at most 4096 are allowed"
    ),
    # Options.
    "an unknown layer": Bad(asking(target_layers=["_blocks.99"]), INVALID, LAYERS, r"_blocks\.99\b.*_blocks\.9\b"),
    "a layer without a map": Bad(
        asking(target_layers=["_fc"]), INVALID, LAYERS, "_fc has shape.*layers that are spatial"
    ),
    "an unknown label": Bad(
        target(label="tabbi"), INVALID, f"{TARGET}.label", '"tabbi"; the nearest labels are .*tabby'
    ),
    "a class that does not exist": Bad(
        target(class_index=1000), INVALID, f"{TARGET}.class_index", "is 1000: the model has 1000 classes, 0 to 999"
    ),
    "the top none": Bad(target(top=0), INVALID, f"{TARGET}.top", "is 0: 1 to 16 are allowed"),
    "the top thousand": Bad(target(top=1000), INVALID, f"{TARGET}.top", "is 1000: 1 to 16 are allowed"),
    "no class": Bad(target(), INVALID, TARGET, "names no class: give class_index, label or top"),
    "too many classes": Bad(
        asking(targets=[pb.Target(top=9), pb.Target(top=9)]), INVALID, "frame.options.targets", "18 classes: at most 16"
    ),
    "an unknown method": Bad(
        asking(cam_method=UNKNOWN), INVALID, "frame.options.cam_method", "999.*GRAD_CAM is allowed"
    ),
    "a later method": Bad(
        asking(cam_method=pb.CAM_METHOD_LAYER_CAM), NOT_BUILT, "frame.options.cam_method", "CAM_METHOD_GRAD_CAM is"
    ),
    "an unknown convention": Bad(
        asking(convention=UNKNOWN), INVALID, "frame.options.convention", "CAPTUM and PYTORCH_GRAD_CAM are allowed"
    ),
    "an unknown precision": Bad(
        asking(precision=UNKNOWN), INVALID, "frame.options.precision", "FLOAT32, EXACT and BFLOAT16 are allowed"
    ),
    "an unknown map": Bad(
        asking(tensors=[pb.TensorOutput(map=UNKNOWN)]), INVALID, "frame.options.tensors[0].map", "999.*GUIDED_GRAD_CAM"
    ),
    "an unknown resolution": Bad(
        asking(tensors=[pb.TensorOutput(map=pb.MAP_GRAD_CAM, resolution=UNKNOWN)]),
        INVALID,
        "frame.options.tensors[0].resolution",
        "999.*MODEL, FRAME and LAYER are allowed",
    ),
    "an unknown picture": Bad(drawn(picture=UNKNOWN), INVALID, "frame.options.pictures[0].picture", "999.*OVERLAY"),
    "a picture of an unknown file format": Bad(
        drawn(format=UNKNOWN), INVALID, "frame.options.pictures[0].format", "999.*JPEG and PNG are allowed"
    ),
    "unknown colours": Bad(drawn(color_map=UNKNOWN), INVALID, "frame.options.pictures[0].color_map", "TURBO, VIRIDIS"),
    "more than opaque": Bad(drawn(opacity=1.5), INVALID, "frame.options.pictures[0].opacity", "1.5: 0 to 1 is allowed"),
    "better than best": Bad(
        drawn(quality=101), INVALID, "frame.options.pictures[0].quality", "101: 1 to 100 are allowed"
    ),
    "a range upside down": Bad(
        drawn(fixed_range=pb.ValueRange(min=1, max=0)),
        INVALID,
        "frame.options.pictures[0].fixed_range",
        "min must lie below",
    ),
    "nothing and something": Bad(
        asking(predictions_only=True, tensors=[pb.TensorOutput(map=pb.MAP_GRAD_CAM)]),
        INVALID,
        "frame.options.predictions_only",
        "means no maps",
    ),
    "a condition": Bad(asking(condition=pb.Condition()), NOT_BUILT, "frame.options.condition", "not built yet"),
}


def violations(error: grpc.RpcError) -> list[tuple[str, str]]:
    """The field and description of each violation in the call's google.rpc.BadRequest."""
    out = []
    for detail in rpc_status.from_call(error).details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            out += [(v.field, v.description) for v in bad_request.field_violations]
    return out


@pytest.fixture(scope="module")
def conversation(server):
    """One stream for all invalid frames: each must leave it usable."""
    from camlens.v1 import explain_pb2_grpc

    with server.channel() as channel:
        small = pb.ExplainOptions(predictions_only=True)
        conversation = Conversation(explain_pb2_grpc.ExplainServiceStub(channel), options=small)
        assert conversation.hear()[0] == "opened"
        conversation.sequence = 0
        yield conversation
        assert conversation.end() == []
        assert conversation.answers.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_on_a_stream_it_is_the_frames_error_and_the_next_frame_is_answered(conversation, name):
    bad = BAD_FRAMES[name]
    conversation.sequence += 1
    frame = pb.Frame(sequence=conversation.sequence, tag=b"camera-7")
    frame.MergeFrom(bad.frame)
    # Maps are requested, so that layers are checked.
    if not (frame.options.tensors or frame.options.pictures):
        frame.options.tensors.add(map=pb.MAP_GUIDED_GRAD_CAM)
    conversation.say(frame=frame)
    kind, error = conversation.hear()
    assert kind == "frame_error", error
    assert (error.sequence, error.tag) == (frame.sequence, frame.tag)
    assert (error.code, error.field) == (bad.code.value[0], bad.field), error.message
    assert error.message.startswith(bad.field) and re.search(bad.says, error.message), error.message

    conversation.sequence += 1
    good = encoded(picture("PNG"))
    good.sequence = conversation.sequence
    conversation.say(frame=good)
    kind, answer = conversation.hear()
    assert kind == "explanation" and answer.sequence == conversation.sequence and len(answer.predictions) == 5


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_alone_it_is_the_calls_status_with_a_bad_request(stub, name):
    bad = BAD_FRAMES[name]
    with pytest.raises(grpc.RpcError) as raised:
        stub.Explain(pb.ExplainRequest(frame=bad.frame), timeout=60)
    error = raised.value
    assert error.code() == bad.code, error.details()
    # In a single call, options belong to the call, whether they were sent with the frame or not.
    field = bad.field.replace("frame.options", "options")
    assert error.details().startswith(field) and re.search(bad.says, error.details()), error.details()
    assert violations(error) == [(field, error.details())]


@pytest.mark.parametrize("selector, field", [({"name": "resnet"}, "model.name"), ({"version": 7}, "model.version")])
def test_an_unknown_model_or_version_is_not_found_and_what_there_is_is_said(stub, selector, field):
    frame = encoded((PHOTOGRAPHS / "coffee.png").read_bytes())
    selector = pb.ModelSelector(**selector)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Explain(pb.ExplainRequest(model=selector, frame=frame), timeout=60)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert "efficientnet-lite0" in raised.value.details()
    assert [name for name, _ in violations(raised.value)] == [field]

    conversation = Conversation(stub, model=selector)
    with pytest.raises(grpc.RpcError) as raised:
        conversation.hear()
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert raised.value.details().startswith(f"open.{field}")
    assert [name for name, _ in violations(raised.value)] == [f"open.{field}"]


def test_a_frame_over_the_limit_says_which_limit_and_a_message_over_it_ends_the_call(stub):
    conversation = Conversation(stub)
    _, opened = conversation.hear()
    too_long = encoded(bytes(opened.max_frame_bytes + 1))
    too_long.sequence = 1
    conversation.say(frame=too_long)
    kind, error = conversation.hear()
    assert (kind, error.code, error.field) == ("frame_error", TOO_MUCH.value[0], "frame")
    assert str(opened.max_frame_bytes) in error.message and "limits.max_frame_bytes" in error.message
    conversation.say(frame=pb.Frame(sequence=2, encoded=pb.EncodedImage(data=bytes(2 * opened.max_frame_bytes - 100))))
    with pytest.raises(grpc.RpcError) as raised:
        conversation.hear()
    assert raised.value.code() == TOO_MUCH
    assert "limits.max_frame_bytes" in raised.value.details()
