"""What the Python client makes of pictures, options, addresses and answers. Without a server."""

import datetime
import io

import numpy as np
import pytest
from PIL import Image

import camlens
from camlens import _picture
from camlens._calls import explain_request
from camlens.answers import array
from conftest import PHOTOGRAPHS
from protocol import pb


def message(image, color="rgb", **fields):
    return camlens.Frame(image, **fields).message(7, color)


def pixels(raw):
    return np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.stride_bytes)


@pytest.fixture
def picture():
    return np.random.default_rng(1).integers(0, 256, (6, 5, 3), np.uint8)


# ------------------------------------------------------------------------------------------------------------ frames
def test_files_go_as_they_are(tmp_path):
    data = (PHOTOGRAPHS / "rocket.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data)
    for image in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), data, bytearray(data), memoryview(data)):
        frame = message(image)
        assert frame.encoded.data == data and frame.sequence == 7
    with pytest.raises(FileNotFoundError):
        message(tmp_path / "none.jpg")


@pytest.mark.parametrize("color, pixel_format", [("rgb", "PIXEL_FORMAT_RGB8"), ("bgr", "PIXEL_FORMAT_BGR8")])
def test_arrays_go_as_pixels_in_their_own_order(picture, color, pixel_format):
    raw = message(picture, color).raw
    assert (raw.width, raw.height, raw.stride_bytes) == (5, 6, 15)
    assert raw.pixel_format == getattr(pb, pixel_format)
    assert (pixels(raw) == picture.reshape(6, 15)).all()
    own = camlens.Frame(picture, color=color).message(7, "bgr" if color == "rgb" else "rgb")
    assert own.raw.pixel_format == raw.pixel_format, "a frame's own order wins"


def test_whatever_an_arrays_strides_are_its_rows_arrive(picture):
    for view in (picture[1:4, 1:4], picture[::-1], picture[:, ::2], picture.transpose(1, 0, 2), picture[:, :, ::-1]):
        assert (pixels(message(view).raw) == np.ascontiguousarray(view).reshape(view.shape[0], -1)).all()


def test_grey_pictures_and_those_with_alpha(picture):
    for grey in (picture[:, :, 0], picture[:, :, :1]):
        raw = message(grey).raw
        assert raw.pixel_format == pb.PIXEL_FORMAT_GRAY8 and (pixels(raw) == picture[:, :, 0]).all()
    with_alpha = np.dstack([picture, np.zeros((6, 5), np.uint8)])
    assert message(with_alpha).raw == message(picture).raw


def test_float_arrays_are_model_inputs():
    values = np.random.default_rng(2).normal(size=(3, 4, 4))
    for one in (values, values[None], values.astype(np.float32)):
        tensor = message(one).tensor
        assert tensor.shape == list(one.shape)
        assert (array(tensor) == one.astype(np.float32)).all()


@pytest.mark.parametrize("image, error, says", [
    (np.zeros((2, 2), np.uint16), TypeError, "uint16"),
    (np.zeros((2, 2, 5), np.uint8), ValueError, r"\[2, 2, 5\]"),
    (np.zeros((0, 2), np.uint8), ValueError, "empty"),
    (np.zeros((2, 3, 4, 4), np.float32), ValueError, r"\[1, C, H, W\]"),
    (12, TypeError, "not int"),
    (Image.new("I;16", (2, 2)), TypeError, "more than 8 bits"),
])  # fmt: skip
def test_what_is_no_picture_is_refused_with_what_is_allowed(image, error, says):
    with pytest.raises(error, match=says):
        message(image)


def test_pil_pictures_arrive_upright():
    upright = Image.open(PHOTOGRAPHS / "rocket.jpg").convert("RGB").resize((8, 6))
    assert (pixels(message(upright).raw) == np.asarray(upright).reshape(6, 24)).all()
    assert message(upright.convert("L")).raw.pixel_format == pb.PIXEL_FORMAT_GRAY8
    # Palettes and alpha become RGB.
    assert message(upright.convert("P")).raw.pixel_format == pb.PIXEL_FORMAT_RGB8
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    upright.save(file, "PNG", exif=exif)
    raw = message(Image.open(file)).raw
    assert (raw.width, raw.height) == (6, 8), "orientation 6 is a quarter turn"


def test_what_belongs_to_a_frame_goes_along():
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=datetime.timezone.utc)
    frame = message(b"x", tag="camera 7", capture_time=when, time_to_live_s=0.25, traceparent="00-a-b-01",
                    options=camlens.Options(targets=3))  # fmt: skip
    assert frame.tag == b"camera 7" and frame.traceparent == "00-a-b-01"
    assert frame.capture_time.ToMicroseconds() == int(when.timestamp()) * 10**6 + 678_901
    assert frame.time_to_live.ToMilliseconds() == 250
    assert frame.options.targets[0].class_index == 3


# ----------------------------------------------------------------------------------------------------------- options
def test_options_are_those_of_the_protocol():
    options = camlens.Options(
        targets=[0, "espresso", camlens.Top(2)], maps=["grad_cam"], pictures=["overlay"], element_type="uint8",
        resolution="layer", opacity=0.0, color_map="viridis", quality=80, fixed_range=(0, 2), picture_format="jpeg",
        precision="exact", convention="captum", top_predictions=0, target_layers=["layer4"],
    ).message()  # fmt: skip
    assert [one.WhichOneof("kind") for one in options.targets] == ["class_index", "label", "top"]
    (tensor,), (picture,) = options.tensors, options.pictures
    assert (tensor.map, tensor.element_type, tensor.resolution) == (
        pb.MAP_GRAD_CAM, pb.ELEMENT_TYPE_UINT8, pb.RESOLUTION_LAYER)  # fmt: skip
    assert (picture.picture, picture.format) == (pb.PICTURE_OVERLAY, pb.IMAGE_FORMAT_JPEG)
    assert picture.HasField("opacity") and picture.opacity == 0 and picture.fixed_range.max == 2
    assert options.HasField("top_predictions") and options.precision == pb.PRECISION_EXACT
    assert camlens.Options().message() == pb.ExplainOptions(), "what is not asked for is the server's choice"


@pytest.mark.parametrize("fields, says", [
    ({"maps": ["gradcam"]}, "guided_grad_cam, grad_cam"),
    ({"maps": "grad_cam"}, "a list of names"),
    ({"pictures": ["overlay"], "picture_format": "gif"}, "jpeg, png"),
    ({"precision": "unspecified"}, "bfloat16"),
])  # fmt: skip
def test_a_wrong_name_is_an_error_that_lists_the_right_ones(fields, says):
    with pytest.raises(ValueError, match=says):
        camlens.Options(**fields).message()


def test_a_policy_is_that_of_the_protocol():
    policy = camlens.Policy("latest", depth=2, time_to_live_s=0.1, max_rate_hz=5, priority=3).message()
    assert policy.overflow == pb.StreamPolicy.OVERFLOW_LATEST and policy.depth == 2
    assert policy.time_to_live.ToMilliseconds() == 100 and policy.max_rate_hz == 5 and policy.priority == 3
    assert not camlens.Policy().message().HasField("max_rate_hz")


def test_one_picture_has_an_overlay_unless_it_is_a_model_input(picture):
    def asked(image, options=None, **fields):
        return explain_request(image, options, None, None, "rgb", fields).options

    assert asked(picture).pictures and len(asked(picture).tensors) == 2
    assert not asked(np.zeros((3, 8, 8), np.float32)).pictures
    assert asked(picture, targets=["cup"]) == camlens.Options(targets=["cup"]).message()
    merged = asked(picture, camlens.Options(maps=["grad_cam"]), top_predictions=1)
    assert merged.top_predictions == 1 and len(merged.tensors) == 1


# --------------------------------------------------------------------------------------------------------- addresses
@pytest.mark.parametrize("address, target, is_tls", [
    ("localhost:8033", "dns:localhost:8033", False),
    ("http://camlens.example:80/", "dns:camlens.example:80", False),
    ("https://camlens.example:443", "dns:camlens.example:443", True),
    ("[::1]:8033", "[::1]:8033", False),
    ("unix:/run/camlens.sock", "unix:/run/camlens.sock", False),
    ("unix:///run/camlens.sock", "unix:/run/camlens.sock", False),
])  # fmt: skip
def test_addresses_are_those_of_the_command_line(address, target, is_tls):
    connection = camlens.Connection(address)
    assert (connection.target, connection.is_tls) == (target, is_tls)
    authority = dict(connection.arguments()).get("grpc.default_authority")
    assert authority == ("localhost" if target.startswith("unix") else None)


@pytest.mark.parametrize(
    "address", ["", "localhost", ":8033", "unix:", "ftp://host:1", "a b:1", "https://host", "h:99999", "me:secret@h:1"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="HOST:PORT|names no socket"):
        camlens.Connection(address)


def test_the_environment_is_that_of_the_command_line(monkeypatch, tmp_path):
    (tmp_path / "tokens").write_text("# ours\n\ncamera-4: hush\nother\n")
    monkeypatch.setenv("CAMLENS_SERVER", "https://h:1")
    monkeypatch.setenv("CAMLENS_TLS_CA", "ca.crt")
    monkeypatch.setenv("CAMLENS_TOKEN_FILE", str(tmp_path / "tokens"))
    connection = camlens.Connection()
    assert (connection.address, connection.ca, connection.token) == ("https://h:1", "ca.crt", "hush")
    assert connection.metadata() == (("authorization", "Bearer hush"),)
    assert "hush" not in repr(connection)
    monkeypatch.setenv("CAMLENS_TOKEN", "louder")
    assert camlens.Connection().token == "louder" and camlens.Connection(token="own").token == "own"


def test_a_token_leaves_this_machine_only_encrypted():
    for safe in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/s", "https://far:1"):
        camlens.Connection(safe, token="hush")
    for unsafe in ("far:1", "http://10.0.0.1:1"):
        with pytest.raises(ValueError, match="unencrypted"):
            camlens.Connection(unsafe, token="hush")
        camlens.Connection(unsafe, token="hush", insecure=True)


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="belong together"):
        camlens.Connection("https://h:1", certificate="c")
    with pytest.raises(ValueError, match="plaintext"):
        camlens.Connection("http://h:1", ca="ca.crt")
    assert camlens.Connection("h:1", ca="ca.crt").is_tls
    with pytest.raises(FileNotFoundError):
        camlens.Connection("https://h:1", ca=tmp_path / "none").credentials()
    with pytest.raises(ValueError, match="not both"):
        camlens.Client(camlens.Connection("h:1"), ca="ca.crt")
    with pytest.raises(ValueError, match="in_flight"):
        camlens.Client("h:1").stream([], in_flight=0)


# ----------------------------------------------------------------------------------------------------------- answers
def test_every_element_type_becomes_float32():
    values = np.array([[0.5, -1.0], [2.0, 0.25]], np.float32)
    of = pb.Tensor(element_type=pb.ELEMENT_TYPE_FLOAT32, shape=[2, 2], data=values.tobytes())
    assert (array(of) == values).all()
    half = pb.Tensor(element_type=pb.ELEMENT_TYPE_FLOAT16, shape=[2, 2], data=values.astype("<f2").tobytes())
    assert (array(half) == values).all() and array(half).dtype == np.float32
    bytes_ = pb.Tensor(element_type=pb.ELEMENT_TYPE_UINT8, shape=[3], data=bytes([0, 4, 255]), scale=0.5, zero_point=4)
    assert array(bytes_).tolist() == [-2.0, 0.0, 125.5]
    with pytest.raises(camlens.CamlensError, match="99"):
        array(pb.Tensor(element_type=99))


def explanation(heat, resolution="RESOLUTION_MODEL", **fields):
    tensor = pb.Tensor(element_type=pb.ELEMENT_TYPE_FLOAT32, shape=heat.shape, data=heat.astype("<f4").tobytes())
    one = pb.MapTensor(map=pb.MAP_GRAD_CAM, resolution=getattr(pb, resolution), tensor=tensor)
    target = pb.TargetExplanation(class_index=1, label="cup", tensors=[one])
    return camlens.Explanation(3, None, pb.Explanation(sequence=3, targets=[target], **fields), 0.1)


def test_a_drawing_covers_what_the_model_saw_and_nothing_else():
    heat = np.zeros((4, 4))
    heat[1, 2] = 2.0
    # The model saw the middle of a frame twice as large: x' = 2 x + 4.5.
    transform = pb.AffineTransform(xx=2, yy=2, x0=4.5, y0=4.5)
    frame = np.full((16, 16, 3), 100, np.uint8)
    drawn = explanation(heat, model_to_frame=transform).draw(frame, opacity=1.0)
    changed = np.argwhere((drawn != frame).any(2))
    assert drawn.shape == frame.shape and (frame == 100).all()
    assert changed.min(0).tolist() == [5, 7] and changed.max(0).tolist() == [8, 10]
    # Around (x 8.5, y 6.5); the brightest pixels are turbo's red.
    red, _, blue = drawn[6, 8].astype(int)
    assert red > blue + 80
    swapped = explanation(heat, model_to_frame=transform).draw(frame, opacity=1.0, color="bgr")
    assert (swapped == drawn[:, :, ::-1]).all()
    assert (explanation(heat, model_to_frame=transform).draw(frame[:, :, 0], opacity=1.0) == drawn).all()


def test_without_evidence_a_drawing_is_the_frame():
    frame = np.random.default_rng(3).integers(0, 256, (4, 4, 3), np.uint8)
    assert (explanation(np.zeros((4, 4)), "RESOLUTION_FRAME").draw(frame) == frame).all()
    with pytest.raises(ValueError, match="resolution"):
        explanation(np.ones((2, 2)), "RESOLUTION_LAYER").draw(frame)
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        explanation(np.ones((2, 2)), "RESOLUTION_FRAME").draw(frame)


def test_what_was_not_asked_for_says_how_to_ask(tmp_path):
    answer = explanation(np.ones((2, 2)))
    assert answer.explanation() is answer and answer.ok and answer.capture_time is None
    with pytest.raises(ValueError, match=r'maps=\["guided_grad_cam"\]'):
        answer.guided_grad_cam
    with pytest.raises(ValueError, match=r'pictures=\["overlay"\]'):
        answer.save_overlay(tmp_path / "o.png")
    with pytest.raises(ValueError, match="predictions only"):
        camlens.Explanation(1, None, pb.Explanation()).grad_cam


def test_a_picture_is_not_saved_under_a_wrong_name(tmp_path):
    answer = explanation(np.ones((2, 2)))
    picture = pb.EncodedPicture(picture=pb.PICTURE_OVERLAY, format=pb.IMAGE_FORMAT_JPEG, data=b"\xff\xd8")
    answer.message.targets[0].pictures.append(picture)
    with pytest.raises(ValueError, match="is jpg"):
        answer.save_overlay(tmp_path / "o.png")
    answer.save_overlay(tmp_path / "o.JPG")
    assert (tmp_path / "o.JPG").read_bytes() == b"\xff\xd8" == answer.overlay


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7), (1, 1, 3)])
def test_png_files_have_the_pixels(shape, tmp_path):
    values = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    camlens.write_png(tmp_path / "a.png", values)
    with Image.open(tmp_path / "a.png") as read:
        assert read.format == "PNG" and (np.asarray(read) == values).all()
    with pytest.raises(ValueError, match="uint8"):
        camlens.png(values.astype(np.float32))


def test_turbo_goes_from_blue_to_red_and_is_bounded():
    low, middle, high = _picture.turbo(np.array([-1.0, 0.5, 2.0]))
    assert low.tolist() == [48, 18, 59] and high.tolist() == [122, 4, 3] and middle[1] > 200
