"""Streams of a client that knows only the proto files."""

import io
import threading
import time

from google.protobuf import timestamp_pb2
from PIL import Image

from conftest import CLIP, PHOTOGRAPHS

from protocol import pb

FRAMES = 200


def clip_frames(count: int) -> list[bytes]:
    """The clip's first frames, each as a JPEG."""
    frames = []
    with Image.open(CLIP) as clip:
        for number in range(count):
            clip.seek(number)
            jpeg = io.BytesIO()
            clip.convert("RGB").save(jpeg, "JPEG", quality=80)
            frames.append(jpeg.getvalue())
    return frames


def open_message(**fields) -> pb.ExplainStreamRequest:
    return pb.ExplainStreamRequest(open=pb.Open(**fields))


def frame_message(sequence: int, data: bytes, **fields) -> pb.ExplainStreamRequest:
    frame = pb.Frame(sequence=sequence, encoded=pb.EncodedImage(data=data), **fields)
    return pb.ExplainStreamRequest(frame=frame)


def small_options() -> pb.ExplainOptions:
    """Requests a small result: 8-bit maps at the layer's resolution."""
    output = pb.TensorOutput(map=pb.MAP_GRAD_CAM, element_type=pb.ELEMENT_TYPE_UINT8, resolution=pb.RESOLUTION_LAYER)
    return pb.ExplainOptions(tensors=[output])


def answered_sequences(answers) -> list[tuple[int, str]]:
    """The sequence and the kind of every ending, in the order of arrival."""
    out = []
    for answer in answers:
        kind = answer.WhichOneof("message")
        if kind == "explanation":
            out.append((answer.explanation.sequence, kind))
        elif kind == "frame_error":
            out.append((answer.frame_error.sequence, kind))
        elif kind == "dropped":
            run = answer.dropped
            out.extend((run.first_sequence + i, kind) for i in range(run.count))
    return out


def test_every_frame_of_a_real_clip_is_answered_in_order_with_its_time_and_tag(stub):
    frames = clip_frames(FRAMES)
    start = time.time_ns()

    def stamp(i):
        return timestamp_pb2.Timestamp(seconds=start // 10**9, nanos=i)

    def requests():
        yield open_message(
            source="clip", policy=pb.StreamPolicy(overflow=pb.StreamPolicy.OVERFLOW_BLOCK), options=small_options()
        )
        for i, data in enumerate(frames):
            yield frame_message(10 + 3 * i, data, capture_time=stamp(i), tag=b"camera-7/%d" % i)

    answers = list(stub.ExplainStream(requests(), timeout=600))
    assert answers[0].WhichOneof("message") == "opened"
    explanations = [a.explanation for a in answers[1:]]
    assert [a.WhichOneof("message") for a in answers[1:]] == ["explanation"] * FRAMES
    assert [e.sequence for e in explanations] == [10 + 3 * i for i in range(FRAMES)]
    assert [e.tag for e in explanations] == [b"camera-7/%d" % i for i in range(FRAMES)]
    assert [e.capture_time for e in explanations] == [stamp(i) for i in range(FRAMES)]
    for e in explanations:
        assert e.model.name == "efficientnet-lite0" and e.model.version == 1 and len(e.model.digest) == 64
        assert len(e.predictions) == 5 and e.targets[0].class_index == e.predictions[0].class_index
        assert e.targets[0].tensors[0].tensor.shape == [7, 7]


def test_with_the_latest_policy_every_frame_is_answered_or_reported_dropped(stub):
    frames = clip_frames(FRAMES)

    def requests():
        yield open_message(policy=pb.StreamPolicy(overflow=pb.StreamPolicy.OVERFLOW_LATEST), options=small_options())
        for i, data in enumerate(frames):
            yield frame_message(i, data)

    accounted = answered_sequences(stub.ExplainStream(requests(), timeout=600))
    assert [sequence for sequence, _ in accounted] == list(range(FRAMES))
    kinds = [kind for _, kind in accounted]
    assert kinds.count("dropped") > 0, "the server kept up with frames sent as fast as they can be written?"
    assert kinds[-1] == "explanation", "the newest frame is never the one that is replaced"


def test_the_timings_of_a_frame_add_up(stub):
    data = (PHOTOGRAPHS / "coffee.png").read_bytes()
    request = pb.ExplainRequest(frame=pb.Frame(encoded=pb.EncodedImage(data=data)))
    timings = stub.Explain(request, timeout=60).explanation.timings
    end = 0
    for timing in timings:
        assert timing.start_ns == end, "stages follow each other without a gap"
        end = timing.start_ns + timing.duration_ns
    names = [pb.Stage.Name(t.stage).removeprefix("STAGE_").lower() for t in timings]
    assert names == [
        "receive",
        "queue",
        "decode",
        "preprocess",
        "batch",
        "copy_in",
        "forward",
        "backward",
        "fuse",
        "copy_out",
        "render",
        "deliver",
    ]


def test_an_overlay_is_a_picture_of_the_frames_size(stub):
    data = (PHOTOGRAPHS / "chelsea.png").read_bytes()
    options = pb.ExplainOptions(
        pictures=[
            pb.PictureOutput(picture=pb.PICTURE_OVERLAY, format=pb.IMAGE_FORMAT_JPEG),
            pb.PictureOutput(picture=pb.PICTURE_GUIDED_GRAD_CAM, format=pb.IMAGE_FORMAT_PNG),
        ]
    )
    request = pb.ExplainRequest(options=options, frame=pb.Frame(encoded=pb.EncodedImage(data=data)))
    overlay, guided = stub.Explain(request, timeout=60).explanation.targets[0].pictures
    with Image.open(io.BytesIO(data)) as frame:
        size = frame.size
    with Image.open(io.BytesIO(overlay.data)) as picture:
        assert picture.format == "JPEG" and picture.size == size
    with Image.open(io.BytesIO(guided.data)) as picture:
        assert picture.format == "PNG"


def test_two_streams_on_one_connection_do_not_mix(stub):
    frames = clip_frames(20)
    results = {}

    def run(name, offset):
        def requests():
            yield open_message(
                source=name, policy=pb.StreamPolicy(overflow=pb.StreamPolicy.OVERFLOW_BLOCK), options=small_options()
            )
            for i, data in enumerate(frames):
                yield frame_message(offset + i, data, tag=name.encode())

        results[name] = list(stub.ExplainStream(requests(), timeout=120))

    threads = [threading.Thread(target=run, args=(f"camera-{i}", 1000 * i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        explanations = [a.explanation for a in results[f"camera-{i}"][1:]]
        assert [e.sequence for e in explanations] == [1000 * i + j for j in range(20)]
        assert {e.tag for e in explanations} == {f"camera-{i}".encode()}
