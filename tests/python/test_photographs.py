"""Explanations of real photographs."""

import json

import numpy as np
import pytest

from conftest import PHOTOGRAPHS, ROOT

from protocol import pb

EXPECTED = json.loads((ROOT / "tests/fixtures/photographs.json").read_text())


def array(tensor) -> np.ndarray:
    dtype = {pb.ELEMENT_TYPE_FLOAT32: "<f4", pb.ELEMENT_TYPE_FLOAT16: "<f2", pb.ELEMENT_TYPE_UINT8: "u1"}[
        tensor.element_type
    ]
    values = np.frombuffer(tensor.data, dtype).reshape(tensor.shape).astype(np.float32)
    if tensor.element_type == pb.ELEMENT_TYPE_UINT8:
        values = (values - tensor.zero_point) * tensor.scale
    return values


def explain(stub, name, **options):
    data = (PHOTOGRAPHS / name).read_bytes()
    request = pb.ExplainRequest(
        options=pb.ExplainOptions(**options), frame=pb.Frame(encoded=pb.EncodedImage(data=data))
    )
    return stub.Explain(request, timeout=60).explanation


@pytest.mark.parametrize("name", EXPECTED)
def test_the_top_five_are_pytorchs(stub, name):
    """The references come from PyTorch with torchvision's transforms: tests/reference/photographs.py."""
    predictions = explain(stub, name).predictions
    expected = EXPECTED[name]["top5"]
    assert [p.class_index for p in predictions] == [e["class_index"] for e in expected]
    assert [p.label for p in predictions] == [e["label"] for e in expected]
    for got, want in zip(predictions, expected):
        assert abs(got.probability - want["probability"]) < 0.02


def test_the_evidence_for_espresso_is_in_the_cup(stub):
    explanation = explain(stub, "coffee.png")
    assert explanation.predictions[0].label == "espresso"
    fused = array(explanation.targets[0].tensors[0].tensor)
    assert fused.shape == (3, 224, 224)
    energy = np.square(fused).sum(0)
    # The box is in the photograph's pixels; the response maps the model's pixels to them.
    x0, y0, x1, y1 = EXPECTED["coffee.png"]["box"]
    m = explanation.model_to_frame
    ys, xs = np.mgrid[0:224, 0:224]
    fx = m.xx * xs + m.xy * ys + m.x0
    fy = m.yx * xs + m.yy * ys + m.y0
    inside = (x0 <= fx) & (fx < x1) & (y0 <= fy) & (fy < y1)
    assert energy[inside].sum() / energy.sum() >= 0.60


def test_another_class_is_looked_for_elsewhere(stub):
    """The map depends on the class: evidence for the cat and for the background is at different pixels."""
    first, second = explain(
        stub, "chelsea.png", targets=[pb.Target(label="tabby"), pb.Target(label="bookcase")]
    ).targets
    a, b = (array(t.tensors[0].tensor).ravel() for t in (first, second))
    assert np.corrcoef(a, b)[0, 1] < 0.9


@pytest.mark.parametrize("element_type,tolerance", [(pb.ELEMENT_TYPE_FLOAT16, 1e-3), (pb.ELEMENT_TYPE_UINT8, 5e-3)])
def test_smaller_element_types_say_the_same(stub, element_type, tolerance):
    outputs = [
        pb.TensorOutput(map=pb.MAP_GUIDED_GRAD_CAM, element_type=t) for t in (pb.ELEMENT_TYPE_FLOAT32, element_type)
    ]
    exact, small = (array(t.tensor) for t in explain(stub, "rocket.jpg", tensors=outputs).targets[0].tensors)
    assert np.abs(exact - small).max() <= tolerance * np.abs(exact).max()
