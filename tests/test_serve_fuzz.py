"""Damaged requests by the thousand, and SIGTERM under load again and again."""

import json
import random
import re
import socket
import struct
import sys
import threading
import time

import numpy as np
import pytest
from serving import binary_request, http_bytes, json_request, serving

INFER = "/v2/models/net/infer"
ZERO = np.zeros((1, 28, 28), np.uint8)
JUNK = [b"", b"\0", b"\xff\xfe", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b"9" * 40, b'"',
        b"[" * 2000, b"\r\n", b"\r\n\r\n", b"%00", b"../", b"x" * 300, "ü".encode()]


def good_requests():
    """Requests of every kind, as (method, path, headers, body)."""
    body, headers = binary_request(ZERO)
    float_head = json.dumps({"inputs": [
        {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32",
         "parameters": {"binary_data_size": 3136}}]}).encode()
    return [
        ("POST", INFER, {}, json_request(ZERO, id="seven").encode()),
        ("POST", INFER, headers, body),
        ("POST", INFER, {"Inference-Header-Content-Length": str(len(float_head))},
         float_head + struct.pack("<784f", *[7.0] * 784)),
        ("POST", INFER, {"Inference-Header-Content-Length": "0"}, bytes(784)),
        ("POST", "/page/models/net/drawing?width=28&height=28", {},
         bytes(range(256)) * 3 + bytes(16)),
        ("POST", "/page/models/net/layer", {}, bytes(784)),
        ("GET", "/page/models/net/test?index=1", {}, b""),
        ("GET", "/v2/models/net/stats", {}, b""),
    ]


def damaged(rng, method, path, headers, body):
    """The bytes of a request that was damaged in one of many ways."""
    headers = dict(headers)
    way = rng.randrange(7)
    if way == 0 and body:  # bytes of the body
        changed = bytearray(body)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(min(len(changed), rng.choice([60, 200, 5000])))
            changed[place:place + rng.randrange(3)] = rng.choice(JUNK)
        body = bytes(changed)
    elif way == 1 and body:  # too short or too long
        body = rng.choice([body[:rng.randrange(len(body))], body + rng.choice(JUNK[1:])])
    elif way == 2:  # one JSON value
        numbers = re.sub(rb'(\[|:|,) ?("[a-zA-Z_]+"|[0-9]+)',
                         lambda match: match.group(1) + (rng.choice(JUNK) if rng.random() < 0.05
                                                         else match.group(2)), body)
        body = numbers
    elif way == 3:  # a header
        name = rng.choice(["Inference-Header-Content-Length", "Content-Encoding", "Host", "Origin",
                           "Transfer-Encoding", "Content-Type", "Expect", "X"])
        headers[name] = rng.choice(JUNK + [b"gzip", b"chunked", b"deflate", b"5"]).decode("latin-1")
    elif way == 4:  # the path
        place = rng.randrange(len(path))
        path = path[:place] + rng.choice(JUNK).decode("latin-1") + path[place + 1:]
    elif way == 5:  # the method
        method = rng.choice(["PUT", "DELETE", "get", "CONNECT", "PATCH", "X" * 50, "", "TRACE"])
    whole = http_bytes(method, path, b"", **{"Content-Length": str(len(body)),
                                             "Connection": "close", **headers})
    if way == 6:  # bytes of the request's head
        changed = bytearray(whole)
        changed[rng.randrange(len(changed))] = rng.randrange(256)
        whole = bytes(changed)
    return whole + body


def answer_to(server, request):
    """What comes back, until the server closes; the client says that it has sent all."""
    with server.connect() as client:
        client.settimeout(20)
        parts = []
        try:
            client.sendall(request)
            while not parts or not complete(b"".join(parts)):
                part = client.recv(1 << 16)
                if not part:
                    break
                parts.append(part)
        except ConnectionError:
            pass
        return b"".join(parts)


def complete(answer):
    """Whether a final answer, with its body, is there."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if end and head.startswith(b"HTTP/1.1 100 "):
        return complete(body)
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end and length) and len(body) >= int(length.group(1))


def bombard(server, count, seed):
    """Send `count` damaged requests; gives how often each status came, "" for none at all."""
    rng = random.Random(seed)
    requests = good_requests()
    statuses = {}
    for _ in range(count):
        request = damaged(rng, *rng.choice(requests))
        if waits_for_more(request):
            continue
        answer = answer_to(server, request)
        status = answer[9:12].decode()
        statuses[status] = statuses.get(status, 0) + 1
        assert status[:1] in "24", (request[:600], answer[:300])
        if status[:1] == "4" and b"Invalid HTTP request received" not in answer:  # uvicorn's own
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return statuses


def waits_for_more(request):
    """Whether a server has to wait for the rest of a request: no complete head, or fewer bytes of
    body than it announces. (What becomes of those: test_slow_clients_are_ended.)"""
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    chunked = b"chunked" in head.lower()
    return not end or chunked or bool(length and len(body) < int(length.group(1)))


def test_damaged_requests(server):
    statuses = bombard(server, 600, seed=0)
    assert sum(count for status, count in statuses.items() if status[:1] == "4") > 300, statuses
    assert server.infer(ZERO).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_hundred_thousand_damaged_requests():
    with serving() as server:
        bombard(server, 20000, seed=1)
        memory, start = server.memory(), time.monotonic()
        total = {}
        for seed in range(2, 7):
            for status, count in bombard(server, 20000, seed).items():
                total[status] = total.get(status, 0) + count
        grown = server.memory() - memory
        print(f"{total} in {time.monotonic() - start:.0f} s, memory {grown / 1e6:+.1f} MB")
        assert grown < 20e6
        assert server.infer(ZERO).shape == (1, 10)
        assert server.stop()[::2] == (0, "")


# SIGTERM


class Client(threading.Thread):
    """Sends one request after the other over one connection until the server closes it."""

    def __init__(self, server):
        super().__init__()
        self.connection = server.connect()
        self.sent = self.answered = 0
        self.start()

    def run(self):
        body, headers = binary_request(ZERO)
        request = http_bytes("POST", INFER, body, **headers)
        with self.connection as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                try:
                    connection.sendall(request)
                except ConnectionError:
                    return  # closed before it could be sent
                self.sent += 1
                answer = b""
                while not answer or not complete(answer):
                    part = connection.recv(1 << 16)
                    if not part:
                        return
                    answer += part
                self.answered += answer.startswith(b"HTTP/1.1 200 ")
                if b"connection: close" in answer.lower():
                    return


def stop_under_load():
    with serving() as server:
        clients = [Client(server) for _ in range(16)]
        time.sleep(random.uniform(0.2, 0.6))
        status, seconds, err = server.stop()
        for client in clients:
            client.join()
        assert status == 0 and seconds < 10 and err == ""
        assert sum(client.sent for client in clients) > 50
        assert [client.sent for client in clients] == [client.answered for client in clients]


@pytest.mark.slow
def test_sigterm_under_load_twenty_times():
    for _ in range(20):
        stop_under_load()
