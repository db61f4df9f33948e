#!/usr/bin/env python3
"""Writes tests/fixtures/onnx/edge: small models as other exporters than PyTorch's write them, with their outputs.

    $(deploy/python-env onnx) tests/onnx/edge.py

Each NAME.onnx has a NAME.npz with `input` and `output`, which is ONNX Runtime's.
"""

import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OUT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "onnx" / "edge"
random = np.random.default_rng(7)


def weight(name, *size, scale=0.4):
    return numpy_helper.from_array((random.standard_normal(size) * scale).astype(np.float32), name)


def constant(name, values, dtype=np.int64):
    return numpy_helper.from_array(np.array(values, dtype), name)


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs.split(), outputs.split(), name=f"the_{outputs.split()[0]}", **attributes)


def model(nodes, weights, shape, opset, classes=4, **more):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, classes])
    graph = helper.make_graph(nodes, "graph", [x], [y], weights)
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def channels_last():
    """As tf2onnx writes a Keras model: [N, H, W, C], a Transpose, uneven padding, a softmax at the end."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w b", "c", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Relu", "c", "r"),
        node("Transpose", "r", "last", perm=[0, 2, 3, 1]),
        node("ReduceMean", "last", "mean", axes=[1, 2], keepdims=0),
        node("MatMul", "mean dense", "product"),
        node("Add", "product bias", "logits"),
        node("Softmax", "logits", "y", axis=1),
    ]
    weights = [weight("w", 5, 3, 3, 3), weight("b", 5), weight("dense", 5, 4), weight("bias", 4)]
    return model(nodes, weights, ["unk__1", 10, 10, 3], 13), (2, 10, 10, 3)


def free_sizes():
    """As Paddle writes a classifier: free sizes, constants as nodes, a Hardswish and a gate in parts, a Reshape of
    sizes."""
    def const(name, values, dtype=np.float32):
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, dtype)))
    nodes = [
        const("three", [3.0]), const("zero", 0.0), const("six", 6.0), const("sixth", [6.0]),
        const("start", [0], np.int64), const("end", [1], np.int64), const("rest", [-1], np.int32),
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Reshape", "b shape", "b4"),
        node("Add", "c b4", "conv"),
        node("Add", "conv three", "plus"),
        node("Clip", "plus zero six", "clipped"),
        node("Mul", "conv clipped", "product"),
        node("Div", "product sixth", "swish"),
        node("GlobalAveragePool", "swish", "pool"),
        node("Conv", "pool gate", "gated"),
        node("HardSigmoid", "gated", "hard", alpha=0.2, beta=0.5),
        node("Mul", "swish hard", "scaled"),
        node("Relu", "scaled", "rectified"),
        node("MaxPool", "rectified", "halved", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "halved", "mean"),
        node("Shape", "mean", "size"),
        node("Cast", "size", "size32", to=TensorProto.INT32),
        node("Slice", "size32 start end", "rows"),
        node("Concat", "rows rest", "target", axis=0),
        node("Cast", "target", "target64", to=TensorProto.INT64),
        node("Reshape", "mean target64", "flat"),
        node("MatMul", "flat dense", "product2"),
        node("Add", "product2 bias", "logits"),
        node("Softmax", "logits", "soft", axis=1),
        node("Identity", "soft", "y"),
    ]
    weights = [weight("w", 6, 3, 3, 3), weight("b", 6), constant("shape", [1, 6, 1, 1]), weight("gate", 6, 6, 1, 1),
               weight("dense", 6, 4), weight("bias", 4)]
    return model(nodes, weights, [-1, 3, "?", "?"], 11), (2, 3, 12, 20)


def quantised():
    """QuantizeLinear and DequantizeLinear around a convolution. The scales are so fine that rounding hardly shows; the
    zero point of 0 stands for the ReLU."""
    w = random.integers(-127, 128, (5, 3, 3, 3)).astype(np.int8)
    nodes = [
        node("QuantizeLinear", "x fine middle", "xq"),
        node("DequantizeLinear", "xq fine middle", "xd"),
        node("DequantizeLinear", "wq ws wz", "wd", axis=0),
        node("Conv", "xd wd b", "c"),
        node("QuantizeLinear", "c fine least", "cq"),
        node("DequantizeLinear", "cq fine least", "cd"),
        node("GlobalAveragePool", "cd", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat dense bias", "y", alpha=0.5, beta=2.0),
    ]
    weights = [
        numpy_helper.from_array(w, "wq"), constant("ws", [1e-3, 2e-3, 3e-3, 1e-3, 2e-3], np.float32),
        constant("wz", [0] * 5, np.int8), constant("fine", 2e-2, np.float32), constant("middle", 128, np.uint8),
        constant("least", 0, np.uint8), weight("b", 5), weight("dense", 5, 4), weight("bias", 4),
    ]
    return model(nodes, weights, ["N", 3, 8, 8], 13), (2, 3, 8, 8)


def functions():
    """A function with an attribute and a default, called twice, and a branch that a constant chooses."""
    leaky = helper.make_function(
        "own", "Scaled", ["a"], ["c"],
        [helper.make_node("LeakyRelu", ["a"], ["b"]), helper.make_node("Mul", ["b", "b"], ["c"])],
        [helper.make_opsetid("", 17)], attributes=["alpha"],
    )
    slope = helper.make_attribute("alpha", 0.0)
    slope.ClearField("f")
    slope.ref_attr_name = "alpha"
    leaky.node[0].attribute.append(slope)
    branches = {
        f"{which}_branch": helper.make_graph(
            [helper.make_node(operator, ["s2"], [f"{which}_out"])], which, [],
            [helper.make_tensor_value_info(f"{which}_out", TensorProto.FLOAT, None)])
        for which, operator in {"then": "Relu", "else": "Neg"}.items()
    }
    nodes = [
        node("Conv", "x w b", "c"),
        helper.make_node("Scaled", ["c"], ["s1"], "first", domain="own", alpha=0.1),
        helper.make_node("Scaled", ["s1"], ["s2"], "second", domain="own", alpha=0.5),
        node("If", "yes", "branch", **branches),
        node("GlobalAveragePool", "branch", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat dense bias", "y"),
    ]
    weights = [weight("w", 5, 3, 3, 3), weight("b", 5), constant("yes", True, np.bool_), weight("dense", 5, 4),
               weight("bias", 4)]
    made = model(nodes, weights, ["N", 3, 8, 8], 17, functions=[leaky], opsets=[helper.make_opsetid("own", 1)])
    return made, (2, 3, 8, 8)


def external():
    """Weights in a file beside the model."""
    nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("GlobalMaxPool", "r", "p"),
             node("Flatten", "p", "y")]
    return model(nodes, [weight("w", 4, 3, 3, 3), weight("b", 4)], ["N", 3, 8, 8], 17), (2, 3, 8, 8)


def attention():
    """Attention in parts: with factors of query and key and a mask; with scores that are divided and a key that no
    Transpose made; and with a mask that depends on the picture, which is no operator of ATen's with a gradient."""
    nodes = [
        node("Conv", "x w b", "c"),
        node("Reshape", "c heads", "features"),
        node("Transpose", "features", "tokens", perm=[0, 1, 3, 2]),
        node("Mul", "tokens factor", "query"),
        node("Transpose", "tokens", "turned", perm=[0, 1, 3, 2]),
        node("Mul", "turned factor", "key"),
        node("MatMul", "query key", "scores"),
        node("Add", "mask scores", "masked"),
        node("Softmax", "masked", "weights", axis=-1),
        node("MatMul", "weights tokens", "first"),
        node("Reshape", "first heads", "key2"),
        node("MatMul", "first key2", "scores2"),
        node("Div", "scores2 two", "divided2"),
        node("Softmax", "divided2", "weights2", axis=3),
        node("MatMul", "weights2 first", "second"),
        node("MatMul", "second key2", "scores3"),
        node("Add", "scores3 scores2", "masked3"),
        node("Softmax", "masked3", "weights3", axis=-1),
        node("MatMul", "weights3 second", "third"),
        node("ReduceMean", "third", "mean", axes=[2], keepdims=0),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat dense bias", "y"),
    ]
    weights = [weight("w", 8, 3, 1, 1), weight("b", 8), constant("heads", [0, 2, 4, -1]), weight("mask", 2, 16, 16),
               constant("factor", 0.7, np.float32), constant("two", 2.0, np.float32), weight("dense", 8, 4),
               weight("bias", 4)]
    return model(nodes, weights, ["N", 3, 4, 4], 17), (2, 3, 4, 4)


def functional():
    """As PyTorch's older exporter writes a ReLU that is called in forward() itself: in no module."""
    def named(operator, inputs, name, **attributes):
        return helper.make_node(operator, inputs.split(), [f"{name}_output_0"], name=name, **attributes)
    nodes = [named("Conv", "x w b", "/conv/Conv"), named("Relu", "/conv/Conv_output_0", "/Relu"),
             named("GlobalAveragePool", "/Relu_output_0", "/GlobalAveragePool"),
             named("Flatten", "/GlobalAveragePool_output_0", "/Flatten"),
             helper.make_node("Gemm", ["/Flatten_output_0", "dense", "bias"], ["y"], name="/fc/Gemm")]
    weights = [weight("w", 5, 3, 3, 3), weight("b", 5), weight("dense", 5, 4), weight("bias", 4)]
    return model(nodes, weights, ["N", 3, 8, 8], 17), (2, 3, 8, 8)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for make in [channels_last, free_sizes, quantised, functions, external, attention, functional]:
        made, shape = make()
        onnx.checker.check_model(made)
        path = OUT / f"{make.__name__}.onnx"
        beside = {"save_as_external_data": True, "location": "external.data", "size_threshold": 0}
        (OUT / "external.data").unlink(missing_ok=True) if make is external else None
        onnx.save(made, path, **(beside if make is external else {}))
        x = random.standard_normal(shape).astype(np.float32)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        [y] = session.run(None, {"x": x})
        np.savez(OUT / f"{make.__name__}.npz", input=x, output=y)
        print(f"{make.__name__}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
