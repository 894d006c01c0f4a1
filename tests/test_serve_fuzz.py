"""Damaged requests by the thousand, and SIGTERM under load."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import re
import sys
import time

import numpy as np
import pytest
from serving import HEADER, binary_request, http_bytes, json_request, serving

INFER = "/v2/models/net/infer"
ZERO = np.zeros((1, 28, 28), np.uint8)
FUZZ = int(os.environ.get("FUZZ", 600))
JUNK = [b"", b"\0", b"\xff\xfe", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b"9" * 40, b'"',
        b"[" * 2000, b"\r\n", b"\r\n\r\n", b"%00", b"../", b"x" * 300, "ü".encode()]
GOOD = [  # method, path, headers, body
    ("POST", INFER, {}, json_request(ZERO, id="seven").encode()),
    ("POST", INFER, *reversed(binary_request(ZERO))),
    ("POST", INFER, {HEADER.decode(): "0"}, bytes(784)),
    ("POST", "/page/models/net/drawing?width=28&height=28", {}, bytes(range(256)) * 3 + bytes(16)),
    ("POST", "/page/models/net/layer", {}, bytes(784)),
    ("GET", "/page/models/net/test?index=1", {}, b""),
]


def damaged(chance, method, path, headers, body):
    """The bytes of a request: its body, a JSON value, a header, its path, method or head damaged.

    It announces the length that its body has: no server has to wait for the rest."""
    way = chance.randrange(6)
    if way == 0 and body:
        place = chance.randrange(min(len(body), chance.choice([60, 200, 5000])))
        body = body[:place] + chance.choice(JUNK) + body[place + chance.randrange(3):]
    elif way == 1:
        body = re.sub(rb'(?<=[\[:,]) ?("\w+"|\d+)', lambda value: chance.choice(JUNK)
                      if chance.random() < 0.05 else value.group(), body)
    elif way == 2:
        name = chance.choice([HEADER.decode(), "Content-Encoding", "Host", "Origin", "Expect", "X"])
        headers = {**headers, name: chance.choice(JUNK + [b"gzip", b"deflate"]).decode("latin-1")}
    elif way == 3:
        place = chance.randrange(len(path))
        path = path[:place] + chance.choice(JUNK).decode("latin-1") + path[place + 1:]
    elif way == 4:
        method = chance.choice(["PUT", "DELETE", "get", "CONNECT", "X" * 50, "", "TRACE"])
    head = bytearray(http_bytes(method, path, Content_Length=str(len(body)), Connection="close",
                                **headers))
    if way == 5:
        head[chance.randrange(20)] = chance.randrange(256)
    return bytes(head) + body


@pytest.mark.fuzz
def test_damaged_requests(server):
    refused = memory = 0
    for seed in range(FUZZ):
        if seed == FUZZ // 2 and sys.platform == "linux":
            memory = server.memory()
        chance = random.Random(seed)
        request = damaged(chance, *chance.choice(GOOD))
        with server.connect() as client, contextlib.suppress(ConnectionError):
            client.sendall(request)
            response = http.client.HTTPResponse(client)
            response.begin()
            body = response.read()
            assert response.status // 100 in (2, 4), (request[:600], response.status, body[:300])
            refused += response.status >= 400
            if response.status >= 400 and b"Invalid HTTP request" not in body:  # uvicorn's own
                assert json.loads(body)["error"]
    assert not memory or server.memory() - memory < 20e6
    assert refused > FUZZ // 3 and server.infer(ZERO).shape == (1, 10)


@pytest.mark.slow
def test_sigterm_under_load_twenty_times():
    """Every request that could be sent is answered."""
    body, headers = binary_request(ZERO)

    def ask_on(connection):
        sent = answered = 0
        while True:
            try:
                connection.request("POST", INFER, body, headers)
            except ConnectionError:  # closed before
                return sent, answered
            sent += 1
            response = connection.getresponse()
            answered += response.status == 200 and len(response.read()) > 40
            if response.will_close:
                return sent, answered

    for _ in range(20):
        with serving() as server, concurrent.futures.ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(ask_on, http.client.HTTPConnection(server.host, server.port))
                       for _ in range(16)]
            time.sleep(random.uniform(0.2, 0.6))
            status, seconds, err = server.stop()
            sent, answered = map(sum, zip(*(client.result() for client in clients)))
        assert (status, err) == (0, "") and seconds < 10 and sent == answered > 50
