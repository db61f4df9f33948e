"""A peer's forward run, in a process of its own that obeys lines on its standard input and answers each with JSON.

    $(deploy/python-env bench) tests/load/peer.py KIND MODEL THREADS     KIND: onnxruntime, openvino
    rate SECONDS                runs as fast as it can: {"hz"}
    serve SECONDS HZ            a request is due every 1/HZ s, even if the last one has not ended: {"hz", "p50_ms",
                                "p99_ms"}

Weights are random: they change neither the work nor its time.
"""

import json
import sys
import tempfile
import time


def make(name):
    import torch

    if name == "efficientnet-lite0":
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name("efficientnet-lite0").eval()
    import torchvision

    with torch.no_grad():
        return torchvision.models.get_model(name, weights=None).eval()


def runner(kind, name, threads):
    import torch

    model, x = make(name), torch.randn(1, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(model, x, path, dynamo=False, input_names=["x"])
        if kind == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return lambda: session.run(None, {"x": x.numpy()})
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        return lambda: compiled(x.numpy())


def rate(run, seconds):
    began, count = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        run()
        count += 1
    return {"hz": count / (time.perf_counter() - began)}


def serve(run, seconds, hz):
    began, latencies = time.perf_counter(), []
    while (due := began + len(latencies) / hz) < began + seconds:
        if (early := due - time.perf_counter()) > 0:
            time.sleep(early)
        run()
        latencies.append(1e3 * (time.perf_counter() - due))
    ended = time.perf_counter()
    latencies.sort()
    at = lambda share: latencies[min(len(latencies) - 1, int(share * len(latencies)))]
    return {"hz": len(latencies) / (ended - began), "p50_ms": at(0.5), "p99_ms": at(0.99)}


def main():
    run = runner(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    for _ in range(5):
        run()
    print("{}", flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        print(json.dumps({"rate": rate, "serve": serve}[command](run, *map(float, numbers))), flush=True)


if __name__ == "__main__":
    main()
