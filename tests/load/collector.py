"""An OpenTelemetry collector that discards everything, or misbehaves. Needs only Python's standard library."""

import multiprocessing
import os
import pathlib
import selectors
import socket
import tempfile


def collect(listener, answer, cpu_file):
    """Reads HTTP requests with a length, answers with `answer` (`None`: never), writes its processor time to a file."""
    os.nice(19)
    buffers = {}
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select(0.5):
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
                buffers[connection] = [b"", 0]
                continue
            connection = key.fileobj
            try:
                data = connection.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                selector.unregister(connection)
                connection.close()
                continue
            if answer is None:
                continue
            state = buffers[connection]
            # The rest of a body is only counted.
            while data:
                if state[1]:
                    taken = min(state[1], len(data))
                    state[1] -= taken
                    data = data[taken:]
                    if not state[1]:
                        connection.sendall(answer)
                    continue
                state[0] += data
                data = b""
                head, found, rest = state[0].partition(b"\r\n\r\n")
                if found:
                    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                    state[0], state[1] = b"", int(lengths[0].split(b":")[1])
                    data = rest
                    if not state[1]:
                        connection.sendall(answer)
        usage = os.times()
        pathlib.Path(cpu_file).write_text(f"{usage.user + usage.system}")


class Collector:
    """The collector of a case of telemetry.py: a process, or an address on which nothing listens."""

    ANSWERS = {
        "full": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "zero": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "errors": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        "hanging": None,
    }

    def __init__(self, case):
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.process = None
        self.cpu_file = tempfile.NamedTemporaryFile("r")
        self.host = "collector.invalid" if case == "missing" else "127.0.0.1"
        if case in self.ANSWERS:
            arguments = (listener, self.ANSWERS[case], self.cpu_file.name)
            self.process = multiprocessing.Process(target=collect, args=arguments, daemon=True)
            self.process.start()
        listener.close()

    def cpu_s(self):
        text = pathlib.Path(self.cpu_file.name).read_text()
        return float(text) if text else 0.0

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.join()
