"""camlens as a step of Ray Data: pictures in, classes and Grad-CAM maps out.

    pip install 'ray[data]' grpcio grpcio-tools numpy
    python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/camlens/v1/*.proto
    python deploy/ray_data.py PICTURES OUT --server unix:/run/camlens/camlens.sock [--actors 2]

`PICTURES` is a folder or an object store's address, `OUT` where Parquet files go. Each actor holds one stream to a
camlens: the sidecar of its Ray worker's pod (a Unix socket or 127.0.0.1:8033), or a service (HOST:PORT). In a pipeline
of your own, take `Explainer`:

    dataset.map_batches(Explainer, fn_constructor_kwargs={"server": …}, batch_size=64, concurrency=8)

A row has `path` and `bytes`; to it come `label`, `probability`, `map` (Grad-CAM of the top class, uint8 [h, w], scaled
from 0 to its maximum) and `error` (empty, or why this picture was not explained: the batch goes on).
"""

import argparse
import collections
import queue
import time

import numpy as np

PATIENCE_S = 300
RECONNECTS = 5


class Explainer:
    """An actor with one channel; a batch is one stream, with as many frames in flight as the server allows."""

    def __init__(self, server, token=None):
        # Imported by the worker, which may be another machine.
        import grpc
        from camlens.v1 import explain_pb2, explain_pb2_grpc, frame_pb2, image_pb2, options_pb2, tensor_pb2

        self.grpc, self.pb = grpc, explain_pb2
        self.frame, self.image, self.options, self.tensor = frame_pb2, image_pb2, options_pb2, tensor_pb2
        limits = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
        # On a Unix socket gRPC sends the socket's path as the authority, which HTTP/2 servers refuse.
        authority = [("grpc.default_authority", "localhost")] if server.startswith("unix:") else []
        self.stub = explain_pb2_grpc.ExplainServiceStub(grpc.insecure_channel(server, limits + authority))
        self.metadata = [("authorization", f"Bearer {token}")] if token else []

    def __call__(self, batch):
        answers, waiting = {}, list(range(len(batch["bytes"])))
        for attempt in range(RECONNECTS):
            if not waiting:
                break
            time.sleep(2**attempt - 1)
            try:
                self.stream(batch["bytes"], waiting, answers)
            except self.grpc.RpcError as error:
                if error.code() != self.grpc.StatusCode.UNAVAILABLE:
                    raise
            # A server that goes away leaves some frames to the next stream.
            waiting = [row for row in waiting if row not in answers]
        if waiting:
            raise RuntimeError(f"camlens ended {RECONNECTS} streams before {len(waiting)} pictures were explained")
        rows = [answers[row] for row in range(len(batch["bytes"]))]
        return {**batch, **{name: np_column([row[name] for row in rows]) for name in rows[0]}}

    def stream(self, pictures, waiting, answers):
        """Sends the pictures of `waiting` and files their answers; ends early if the server goes away."""
        requests, unsent = queue.Queue(), collections.deque(waiting)
        answered = self.stub.ExplainStream(iter(requests.get, None), timeout=PATIENCE_S, metadata=self.metadata)
        policy = self.pb.StreamPolicy(overflow=self.pb.StreamPolicy.OVERFLOW_BLOCK)
        opening = self.pb.Open(options=self.wanted(), policy=policy, source="ray")
        requests.put(self.pb.ExplainStreamRequest(open=opening))

        def send():
            if not unsent:
                requests.put(None)
                return
            row = unsent.popleft()
            # Sequences begin with 1 and rise: they are the rows' numbers.
            frame = self.frame.Frame(sequence=row + 1, encoded=self.image.EncodedImage(data=bytes(pictures[row])))
            requests.put(self.pb.ExplainStreamRequest(frame=frame))

        try:
            for answer in answered:
                kind = answer.WhichOneof("message")
                if kind == "opened":
                    for _ in range(answer.opened.max_in_flight):
                        send()
                    continue
                if kind == "going_away":
                    unsent.clear()
                elif kind == "explanation":
                    answers[answer.explanation.sequence - 1] = row_of(answer.explanation)
                elif kind == "frame_error":
                    answers[answer.frame_error.sequence - 1] = failure(answer.frame_error.message)
                send()
        finally:
            requests.put(None)

    def wanted(self):
        """Grad-CAM of the top class, in the layer's own resolution, as bytes."""
        output = self.options.TensorOutput(
            map=self.options.MAP_GRAD_CAM,
            element_type=self.tensor.ELEMENT_TYPE_UINT8,
            resolution=self.options.RESOLUTION_LAYER,
        )
        return self.options.ExplainOptions(tensors=[output])


def row_of(explanation):
    prediction, tensor = explanation.predictions[0], explanation.targets[0].tensors[0].tensor
    values = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape[-2:])
    return {"label": prediction.label, "probability": prediction.probability, "map": values, "error": ""}


def failure(message):
    return {"label": "", "probability": float("nan"), "map": np.zeros((1, 1), np.uint8), "error": message}


def np_column(values):
    """A column of a batch; maps may differ in size."""
    if isinstance(values[0], np.ndarray):
        column = np.empty(len(values), object)
        column[:] = values
        return column
    return np.array(values)


def main():
    import ray

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("out")
    parser.add_argument("--server", required=True)
    parser.add_argument("--token")
    parser.add_argument("--actors", type=int, default=2)
    options = parser.parse_args()
    arguments = {"server": options.server, "token": options.token}
    pictures = ray.data.read_binary_files(options.pictures, include_paths=True)
    explained = pictures.map_batches(Explainer, fn_constructor_kwargs=arguments, batch_size=64,
                                     concurrency=options.actors)
    explained.drop_columns(["bytes"]).write_parquet(options.out)


if __name__ == "__main__":
    main()
