"""Cameras that resume: they stream frames to the ready pods of a Deployment and account for every frame.

    cluster run DIR "$(deploy/python-env client)" tests/kubernetes/load.py --namespace N --seconds 30 [--ca FILE …]

A frame whose stream ended before its answer came is sent again, to whichever pod is ready then; so is one that the
server says it did not read or did not finish (`GoingAway`, `Dropped{DRAINING}`). The last line of the output is a JSON
object. `unaccounted`: frames without an ending, or with two. `broken_promises`: accepted frames that a server which
said goodbye left without an ending. The exit code is 1 if either is not 0, or if nothing was answered.

A file named by --stop ends the cameras early.
"""

import argparse
import json
import pathlib
import queue
import random
import subprocess
import sys
import threading
import time

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/python"))

from protocol import pb  # noqa: E402
from camlens.v1 import explain_pb2_grpc  # noqa: E402

PICTURE = (ROOT / "deploy/demo-assets/photographs/rocket.jpg").read_bytes()
AGAIN = {pb.Dropped.REASON_DRAINING, pb.Dropped.REASON_STREAM_ENDED}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--port", type=int, default=8033)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--stop", type=pathlib.Path)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--rate", type=float, default=4, help="frames a second of each camera")
    parser.add_argument("--ca", type=pathlib.Path, help="TLS: the authority of the server's certificate")
    parser.add_argument("--certificate", type=pathlib.Path)
    parser.add_argument("--key", type=pathlib.Path)
    parser.add_argument("--token", type=pathlib.Path)
    return parser.parse_args()


class Pods:
    """The addresses of the pods that are ready and not about to end, as a headless Service would give them."""

    def __init__(self, options):
        self.options = options

    def addresses(self):
        command = ["kubectl", "-n", self.options.namespace, "get", "pods", "-o", "json", "-l",
                   "app.kubernetes.io/name=camlens"]
        found = []
        for pod in json.loads(subprocess.check_output(command))["items"]:
            conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
            if conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]:
                found.append(f"{pod['status']['podIP']}:{self.options.port}")
        return found

    def channel(self, address):
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_retries", 0),
                   ("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000)]
        if not self.options.ca:
            return grpc.insecure_channel(address, options)
        files = (self.options.ca, self.options.key, self.options.certificate)
        credentials = grpc.ssl_channel_credentials(*(file and file.read_bytes() for file in files))
        return grpc.secure_channel(address, credentials, [*options, ("grpc.ssl_target_name_override", "camlens.test")])

    def metadata(self):
        token = self.options.token
        return [("authorization", f"Bearer {token.read_text().strip()}")] if token else []


class Camera(threading.Thread):
    """Makes frames at its rate, and streams them until each has its ending."""

    def __init__(self, pods, options, until):
        super().__init__()
        self.pods, self.options, self.until = pods, options, until
        self.made = self.resent = self.streams = self.broken = 0
        self.endings = {}  # sequence -> the kinds of its endings
        self.waiting = []  # frames to be sent, in order
        self.lock = threading.Lock()
        self.last_answer, self.longest_gap = time.monotonic(), 0.0

    def make_frames(self):
        due = time.monotonic()
        while not self.until():
            due += 1 / self.options.rate
            time.sleep(max(0.0, due - time.monotonic()))
            with self.lock:
                self.made += 1
                self.waiting.append(self.made)

    def run(self):
        maker = threading.Thread(target=self.make_frames)
        maker.start()
        while maker.is_alive() or self.waiting:
            addresses = self.pods.addresses()
            if addresses:
                self.stream(random.choice(addresses))
            else:
                time.sleep(0.2)
        maker.join()

    def stream(self, address):
        """One stream, until it ends or nothing is left to send."""
        requests, in_flight, open_for_more = queue.Queue(), {}, threading.Event()
        last_accepted = None
        policy = pb.StreamPolicy(overflow=pb.StreamPolicy.OVERFLOW_BLOCK)
        requests.put(pb.ExplainStreamRequest(open=pb.Open(policy=policy, source="load")))
        open_for_more.set()
        feeding = threading.Thread(target=self.feed, args=(requests, in_flight, open_for_more))
        said_goodbye = False
        with self.pods.channel(address) as channel:
            stub = explain_pb2_grpc.ExplainServiceStub(channel)
            try:
                answers = stub.ExplainStream(iter(requests.get, None), metadata=self.pods.metadata())
                for answer in answers:
                    kind = answer.WhichOneof("message")
                    if kind == "opened":
                        self.streams += 1
                        self.credit = threading.Semaphore(answer.opened.max_in_flight)
                        feeding.start()
                    elif kind == "going_away":
                        said_goodbye = True
                        if answer.going_away.HasField("last_accepted_sequence"):
                            last_accepted = answer.going_away.last_accepted_sequence
                        open_for_more.clear()
                    else:
                        self.take(kind, answer, in_flight)
                if said_goodbye:
                    # Half-closing may cross the goodbye: frames that it names as accepted must have ended.
                    self.broken += sum(1 for one in in_flight if last_accepted is not None and one <= last_accepted)
            except grpc.RpcError as error:
                print(f"{address}: {error.code().name}: {error.details()}"[:160], file=sys.stderr, flush=True)
                time.sleep(0.1)
            open_for_more.clear()
            requests.put(None)
            if feeding.ident:
                self.credit.release()
                feeding.join()
        with self.lock:
            self.resent += len(in_flight)
            self.waiting = sorted([*in_flight, *self.waiting])

    def feed(self, requests, in_flight, open_for_more):
        while open_for_more.is_set():
            with self.lock:
                sequence = self.waiting[0] if self.waiting else None
            if sequence is None:
                if self.until():
                    break
                time.sleep(0.02)
                continue
            self.credit.acquire()
            if not open_for_more.is_set():
                break
            with self.lock:
                self.waiting.remove(sequence)
                in_flight[sequence] = True
            frame = pb.Frame(sequence=sequence, encoded=pb.EncodedImage(data=PICTURE))
            requests.put(pb.ExplainStreamRequest(frame=frame))
        requests.put(None)

    def take(self, kind, answer, in_flight):
        if kind == "explanation":
            ended, ending = [answer.explanation.sequence], "answered"
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - self.last_answer)
            self.last_answer = now
        elif kind == "frame_error":
            ended, ending = [answer.frame_error.sequence], f"failed: {answer.frame_error.message}"
            if grpc.StatusCode.UNAVAILABLE.value[0] == answer.frame_error.code:
                ending = None
        else:
            dropped = answer.dropped
            ended = [one for one in list(in_flight) if dropped.first_sequence <= one <= dropped.last_sequence]
            ending = None if dropped.reason in AGAIN else f"dropped: {pb.Dropped.Reason.Name(dropped.reason)}"
        with self.lock:
            for sequence in ended:
                in_flight.pop(sequence, None)
                if ending is None:
                    self.resent += 1
                    self.waiting = sorted([*self.waiting, sequence])
                else:
                    self.endings.setdefault(sequence, []).append(ending)
                self.credit.release()


def main():
    options = arguments()
    end = time.monotonic() + options.seconds
    pods = Pods(options)

    def until():
        return time.monotonic() > end or (options.stop is not None and options.stop.exists())

    cameras = [Camera(pods, options, until) for _ in range(options.cameras)]
    for camera in cameras:
        camera.start()
    for camera in cameras:
        camera.join()
    kinds = {}
    for camera in cameras:
        for endings in camera.endings.values():
            kinds[endings[0]] = kinds.get(endings[0], 0) + 1
    made = sum(camera.made for camera in cameras)
    once = sum(1 for camera in cameras for endings in camera.endings.values() if len(endings) == 1)
    result = {
        "frames": made,
        "endings": kinds,
        "unaccounted": made - once,
        "broken_promises": sum(camera.broken for camera in cameras),
        "sent_again": sum(camera.resent for camera in cameras),
        "streams": sum(camera.streams for camera in cameras),
        "longest_gap_s": round(max(camera.longest_gap for camera in cameras), 2),
    }
    print(json.dumps(result))
    sys.exit(0 if kinds.get("answered") == made and not result["unaccounted"] and not result["broken_promises"] else 1)


if __name__ == "__main__":
    main()
