"""Driving the real server: ServeMNIST.py in a process of its own, and a plain client."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import time

import numpy as np
import scripts

HEADER = b"Inference-Header-Content-Length"


class Server:
    """A running ServeMNIST.py; `out` holds the lines it printed so far."""

    def __init__(self, process):
        self.process, self.out = process, []
        for line in process.stdout:
            self.out.append(line)
            found = re.match(r"serving on http://(.*):(\d+)$", line)
            if found:
                self.host, self.port = found.group(1), int(found.group(2))
                self.url = f"{self.host}:{self.port}"
                return
        raise AssertionError(process.communicate()[1])

    def ask(self, method, path, body=None, headers=()):
        """One request on a connection of its own: (status, headers, body)."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path):
        """The JSON at a path."""
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def infer(self, digits, model="net"):
        """The log-probabilities of uint8 (N, 28, 28), asked for in JSON."""
        status, _, body = self.ask("POST", f"/v2/models/{model}/infer", json_request(digits))
        assert status == 200, body
        output, = json.loads(body)["outputs"]
        return np.reshape(output["data"], output["shape"])

    def connect(self):
        """A bare socket to the server."""
        return socket.create_connection((self.host, self.port), timeout=60)

    def raw(self, data):
        """What the server answers to bytes, until it closes."""
        with self.connect() as client:
            client.sendall(data)
            return receive_all(client)

    def metrics(self):
        """{name and labels: number} of /metrics."""
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return {name: float(value) for name, value in
                (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def memory(self):
        """Resident memory of the process, bytes."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return 4096 * int(file.read().split()[1])

    def stop(self, number=signal.SIGTERM):
        """Tell it to end: (exit status, seconds, what it printed on stderr)."""
        start = time.monotonic()
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, time.monotonic() - start, err


@contextlib.contextmanager
def serving(*flags, env=None):
    """A server on a free port; ended when it is left."""
    process = scripts.start("ServeMNIST.py", "--port", 0, "--engine", "torch", "--device", "cpu",
                            *flags, env=env)
    try:
        yield Server(process)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def receive_all(client):
    """What comes from a socket until it is closed, or reset."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while True:
            part = client.recv(1 << 16)
            if not part:
                break
            parts.append(part)
    return b"".join(parts)


def json_request(digits, **more):
    """The JSON of a request with digits, uint8 (N, 28, 28)."""
    return json.dumps({"inputs": [{"name": "image", "shape": list(digits.shape),
                                   "datatype": "UINT8", "data": digits.ravel().tolist()}], **more})


def binary_request(digits, **more):
    """(body, headers) of a request with digits, uint8 (N, 28, 28), in binary."""
    head = json.dumps({"inputs": [{"name": "image", "shape": list(digits.shape),
                                   "datatype": "UINT8",
                                   "parameters": {"binary_data_size": digits.nbytes}}],
                       "parameters": {"binary_data_output": True}, **more}).encode()
    return head + digits.tobytes(), {HEADER.decode(): str(len(head))}


def http_bytes(method, path, body=b"", **headers):
    """A request as bytes; a header of "" is left out."""
    headers = {"Host": "localhost", "Content-Length": str(len(body)),
               **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {path} HTTP/1.1",
             *(f"{name}: {value}" for name, value in headers.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
