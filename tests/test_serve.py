"""ServeMNIST.py as its users meet it: paths, statuses, limits, strangers, a clean end."""

import asyncio
import base64
import concurrent.futures
import gzip
import http.client
import io
import json
import os
import signal
import time
import types
import zlib

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, refused, run
from serving import HEADER, binary_request, http_bytes, json_request, serving

from mnist.datasets.image_set import MNIST

INFER = "/v2/models/net/infer"
ZERO = np.zeros((1, 28, 28), np.uint8)
pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(scope="module")
def expected():
    """Function: the shipped network's log-probabilities of digits, by torch, nothing folded."""
    import torch

    from mnist.models.weights import load_network
    net = load_network(network="net").net

    def answers(digits):
        with torch.no_grad():
            return net(torch.from_numpy(MNIST.normalise(digits.reshape(-1, 1, 28, 28)))).numpy()
    return answers


# The protocol over HTTP


def test_health_and_metadata(server):
    assert server.get("/v2/health/live") == {"live": True}
    assert server.get("/v2/health/ready") == {"ready": True}
    assert "binary_tensor_data" in server.get("/v2")["extensions"]
    for path in ("/v2/models/net", "/v2/models/net/versions/1"):
        assert server.get(path + "/ready") == {"ready": True}
        metadata = server.get(path)
        assert metadata["inputs"] == [
            {"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}]
        assert metadata["outputs"] == [
            {"name": "log_probs", "datatype": "FP32", "shape": [-1, 10]}]
        assert server.get(path + "/config")["max_batch_size"] == 64


def test_answers_are_those_of_the_network(server, expected, digits):
    np.testing.assert_allclose(server.infer(digits), expected(digits), atol=1e-3)


def test_bodies_in_chunks_or_compressed(server):
    body = json_request(ZERO).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in
                      (body[:1], body[1:700], body[700:])) + b"0\r\n\r\n"
    answer = server.raw(http_bytes("POST", INFER, chunks, Content_Length="",
                                   Transfer_Encoding="chunked", Connection="close"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    for encode, name in ((gzip.compress, "gzip"), (zlib.compress, "deflate")):
        status, _, _ = server.ask("POST", INFER, encode(body), {"Content-Encoding": name})
        assert status == 200


def test_head_is_get_without_a_body(server):
    status, headers, body = server.ask("HEAD", "/v2")
    assert status == 200 and int(headers["Content-Length"]) > 0 and body == b""


def test_a_client_that_asks_whether_to_go_on_is_told_so(server):
    body = json_request(ZERO).encode()
    head, _, _ = http_bytes("POST", INFER, body, Expect="100-continue").partition(b"\r\n\r\n")
    with server.connect() as client:
        client.sendall(head + b"\r\n\r\n")
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


# What is refused


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/nothing", 404), ("GET", "/v2/models/nobody", 404), ("GET", INFER, 405),
    ("POST", "/v2", 405), ("OPTIONS", INFER, 405), ("POST", INFER, 400),
    ("GET", "/v2/models/net/versions/2", 404), ("GET", "/../ServeMNIST.py", 404),
    ("GET", "/web/index.html", 404), ("GET", "/page/models/net/test?index=x", 400),
    ("GET", "/page/models/net/test?index=99999999", 400),
    ("POST", "/page/models/net/drawing?width=3&height=3", 400),
    ("POST", "/page/models/net/picture", 400),
    ("POST", "/page/models/net/layer", 400), ("GET", "/page/models/net/mistake?after=-1", 400),
])
def test_each_path_and_method_has_its_status(server, method, path, status):
    got, headers, body = server.ask(method, path)
    assert got == status
    assert json.loads(body)["error"] and headers["Content-Type"] == "application/json"
    assert (status == 405) == ("Allow" in headers)


@pytest.mark.parametrize("request_bytes, status", [
    (b"nonsense\r\n\r\n", 400), (b"\x16\x03\x01\x02\x00", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 403),  # no Host
    (http_bytes("POST", INFER, Content_Length="99999999999"), 413),
    (http_bytes("POST", INFER, b"x", Content_Encoding="br"), 415),
    (http_bytes("POST", INFER, b"not gzip", Content_Encoding="gzip"), 400),
    (http_bytes("POST", INFER, gzip.compress(b"x" * 99)[:-3], Content_Encoding="gzip"), 400),
    (http_bytes("POST", INFER, gzip.compress(bytes(1 << 26)), Content_Encoding="gzip"), 413),
    (http_bytes("POST", INFER, b"x", Inference_Header_Content_Length="many"), 400),
], ids=lambda value: value if isinstance(value, int) else value[:30].decode("latin-1"))
def test_what_isnt_a_good_request(server, request_bytes, status):
    answer = server.raw(request_bytes.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_an_offer_to_upgrade_is_ignored(server):
    """As Java's HttpClient makes it, and curl --http2."""
    answer = server.raw(http_bytes("POST", INFER, bytes(784), Upgrade="h2c",
                                   Connection="Upgrade, HTTP2-Settings, close",
                                   HTTP2_Settings="AAMAAABkAAQCAAAAAAIAAAAA",
                                   Inference_Header_Content_Length="0"))
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_refused_body_is_answered_before_it_was_sent(server):
    body = bytes(20 << 20)
    with server.connect() as client:
        client.sendall(http_bytes("POST", INFER, Content_Length=str(len(body))))
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


# Pages of other sites


@pytest.mark.parametrize("headers, status", [
    ({"Host": "evil.example"}, 403), ({"Host": "evil.example:80"}, 403), ({"Host": ""}, 403),
    ({"Host": "127.0.0.1.evil.example"}, 403), ({"Host": "localhost:1"}, 200),
    ({"Host": "192.168.1.7:8000"}, 200), ({"Host": "[::1]:8000"}, 200), ({"Host": "["}, 403),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
    ({"Host": "localhost", "Origin": "http://localhost"}, 200),
    ({"Host": "localhost", "Origin": "https://localhost"}, 200),
    # behind a proxy: one of them without the port, or Host rewritten
    ({"Host": "localhost:8000", "Origin": "http://localhost"}, 200),
    ({"Host": "127.0.0.1:8000", "Origin": "http://localhost"}, 200),
    ({"Host": "localhost."}, 200), ({"Host": "127.0.0.1", "Origin": "http://a.example"}, 403),
], ids=str)
def test_host_and_origin(server, headers, status):
    got, answer, _ = server.ask("GET", "/v2", headers=headers)
    assert got == status
    assert not [name for name in answer if name.lower().startswith("access-control")]


def test_the_page_may_use_only_itself(server):
    status, headers, body = server.ask("GET", "/")
    assert status == 200 and headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert policy.count("'sha256-") == 2 and "unsafe" not in policy
    text = body.decode().replace("http://www.w3.org/2000/svg", "")  # the icon's namespace
    assert "http:" not in text and "https:" not in text and " src=" not in text


# The page's own paths


def test_a_drawing_and_a_picture_of_it_become_the_same_digit(server):
    from mnist.datasets.drawing import digit_from_picture

    def ask(path, body):
        return json.loads(server.ask("POST", "/page/models/net/" + path, body)[2])

    drawing = np.zeros((40, 60), np.uint8)
    drawing[5:35, 28:33] = 255
    file = io.BytesIO()
    Image.fromarray(drawing).save(file, "PNG")
    expected = base64.b64encode(digit_from_picture(drawing).image.tobytes()).decode()
    assert ask("drawing?width=60&height=40", drawing.tobytes())["image"] == expected
    assert ask("picture", file.getvalue())["image"] == expected
    assert ask("drawing?width=60&height=40", bytes(2400)) == {
        "image": None, "note": "nothing drawn"}
    assert "can't read the picture" in ask("picture", b"no picture")["error"]
    layer = ask("layer", bytes(784))
    assert layer["filters"]["shape"] == [20, 5, 5] and layer["maps"]["shape"] == [20, 24, 24]


# Many at once


def test_no_answer_reaches_another_request(server, expected):
    """Thousands of requests at once, of 1 to 200 digits, each of which knows its answers."""
    rng = np.random.default_rng(3)
    digits = rng.integers(0, 256, (500, 28, 28), np.uint8)
    answers = expected(digits)

    def client(seed):
        rng = np.random.default_rng(seed)
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        for _ in range(50):
            chosen = rng.integers(0, len(digits), int(rng.choice([1] * 12 + [2, 7, 65, 150])))
            if len(chosen) < 10 and rng.random() < 0.5:
                connection.request("POST", INFER, json_request(digits[chosen]))
                output, = json.loads(connection.getresponse().read())["outputs"]
                got = np.array(output["data"])
            else:
                connection.request("POST", INFER, *binary_request(digits[chosen]))
                response = connection.getresponse()
                length = int(response.headers[HEADER.decode()])
                got = np.frombuffer(response.read(), "<f4", offset=length)
            np.testing.assert_allclose(got.reshape(-1, 10), answers[chosen], atol=1e-3)
        connection.close()
        return 50

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        assert sum(pool.map(client, range(40))) == 2000


def test_clients_that_leave_harm_nobody(server, expected, digits):
    for _ in range(50):
        with server.connect() as client:
            client.sendall(http_bytes("POST", INFER, json_request(digits).encode()))
    while server.metrics()['mnist_waiting_images{model="net"}'] > 1000:
        pass
    np.testing.assert_allclose(server.infer(digits), expected(digits), atol=1e-3)


def test_metrics_add_up(server, digits):
    while server.metrics()['mnist_waiting_images{model="net"}']:
        pass
    before = server.metrics()
    for size in (1, 5, 100):
        server.infer(digits[:size])
    server.ask("POST", INFER, b"{")
    server.ask("GET", "/nothing")
    after = server.metrics()
    gained = {name: after[name] - before.get(name, 0) for name in after}
    assert gained['mnist_images_total{model="net"}'] == 106
    assert gained['mnist_batch_images_sum{model="net"}'] == 106
    assert gained['mnist_engine_seconds_count{model="net"}'] >= 4
    assert gained['mnist_infer_seconds_count{model="net"}'] == 3
    assert gained['mnist_queue_seconds_count{model="net"}'] == 3
    assert gained['mnist_requests_total{status="400"}'] == 1
    assert gained['mnist_requests_total{status="404"}'] == 1
    for path in ("/v2/models/stats", "/v2/models/net/stats"):
        statistics = server.get(path)["model_stats"][0]
        assert statistics["inference_count"] == after['mnist_images_total{model="net"}']
        assert statistics["inference_stats"]["success"]["count"] >= 3


# Bounds


def test_a_full_queue_answers_503_and_the_log_says_so():
    """Of a server that is open to the world."""
    with serving("--max-waiting", 10, "--host", "0.0.0.0", "--access-log", "--model",
                 "a.b-c=" + os.path.join(ROOT, "weights", "net.pth")) as server:
        path = "/v2/models/a.b-c/infer"
        body, headers = binary_request(np.zeros((2000, 28, 28), np.uint8))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: server.ask("POST", path, body, headers), range(8)))
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 503}
        _, headers, body = answers[statuses.index(503)]
        assert headers["Retry-After"] == "1" and "waiting" in json.loads(body)["error"]
        assert server.infer(ZERO, "a.b-c").shape == (1, 10)
        while f'"POST {path} HTTP/1.1" 503' not in server.process.stdout.readline():
            pass
        assert "no authentication" in server.stop()[2]


# The end


@pytest.mark.slow
def test_a_body_that_does_not_come_is_a_408(server):
    whole = http_bytes("POST", INFER, json_request(ZERO).encode())
    start = time.monotonic()
    with server.connect() as one, server.connect() as other:
        one.sendall(whole[:-20])
        other.sendall(whole.partition(b"{")[0])
        assert one.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert other.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert 9 < time.monotonic() - start < 15


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_what_is_in_flight_is_answered_at_the_end():
    with serving() as server:
        body, headers = binary_request(np.zeros((3000, 28, 28), np.uint8))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            busy = pool.submit(server.ask, "POST", INFER, body, headers)
            while server.metrics()['mnist_images_total{model="net"}'] == 0:
                pass
            server.process.send_signal(signal.SIGTERM)
            assert busy.result()[0] == 200
        start = time.monotonic()
        out, err = server.process.communicate(timeout=20)
        assert server.process.returncode == 0 and time.monotonic() - start < 10
        assert "stopped" in out and err == ""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="processes share a port on POSIX systems")
def test_workers_share_the_port_and_one_that_is_killed_is_replaced():
    with serving("--workers", 2) as server:
        found, deadline = [], time.monotonic() + 60  # the others may open their engines yet
        while len(found) < 3 and time.monotonic() < deadline:
            pid, = (int(name.split('"')[1]) for name in server.metrics()
                    if name.startswith("mnist_process"))
            if pid not in found:
                found.append(pid)
                if len(found) == 2:
                    os.kill(found[0], signal.SIGKILL)
                    time.sleep(1)
        assert len(found) == 3 and server.infer(ZERO).shape == (1, 10)
        status, seconds, _ = server.stop()
        assert status == 0 and seconds < 10


# The command line


@pytest.mark.parametrize("flags, words", [
    (["--model", "net=nowhere.pth"], "no weights file nowhere.pth"),
    (["--model", "a b=x.pth"], "is not NAME=WEIGHTS"), (["--port", "70000"], "is not a port"),
    (["--host", "999.0.0.1"], "can't listen on 999.0.0.1"),
    (["--network", "net"], "of which weights?"),
])
def test_what_cant_be_served(flags, words):
    _, err = refused("ServeMNIST.py", "--engine", "torch", "--device", "cpu", *flags)
    assert words in err and "unforeseen" not in err


def test_a_port_that_is_taken(server):
    _, err = run("ServeMNIST.py", "--port", server.port, status=2)
    assert f"port {server.port}" in err and "--port takes another" in err


# Batches, without a server


OPTIONS = types.SimpleNamespace(device="cpu", precision="fp32", max_batch=8, threads=1)


def test_no_engine_is_opened_for_a_server_that_ends():
    from mnist.models.weights import load_network
    from mnist.serving.batching import fastest_engines
    engines, report = fastest_engines(load_network(), OPTIONS, stop=lambda: True)
    assert engines is None and "the server ends" in report


def test_a_batch_goes_to_the_engine_that_is_quickest_for_it(monkeypatch):
    from mnist.serving import batching
    seconds = {1: 1.0, 2: 1.9, 4: 5.0, 8: 6.0}  # batches of 4 are slow here
    monkeypatch.setattr(batching, "open_engine", lambda *settings, **_: types.SimpleNamespace(
        batch_size=settings[4], detail=""))
    monkeypatch.setattr(batching, "fastest_call", lambda engine: seconds[engine.batch_size])
    network = types.SimpleNamespace(image_set=MNIST)
    engines = batching.Engines("torch", network, OPTIONS)
    assert [engines.take(waiting) for waiting in range(1, 10)] == [1, 2, 2, 2, 2, 2, 7, 8, 8]
    assert [engines.engines[engines.best[size]].batch_size for size in (1, 2, 7, 8)] == [1, 2, 8, 8]


def test_what_a_busy_start_got_wrong_is_learned_from_the_batches(monkeypatch):
    """It took batches of 8 for slow ones; they aren't."""
    from mnist.serving import batching

    class Engine(types.SimpleNamespace):
        def __call__(self, images):
            time.sleep(0.0005)
            return np.zeros((self.batch_size, 10), np.float32)

    monkeypatch.setattr(batching, "open_engine", lambda *settings, **_: Engine(
        batch_size=settings[4], detail=""))
    monkeypatch.setattr(batching, "fastest_call", lambda engine: 0.001 * engine.batch_size ** 2)
    engines = batching.Engines("torch", types.SimpleNamespace(image_set=MNIST), OPTIONS)
    assert engines.take(8) == 1
    start = time.monotonic()
    while engines.take(8) < 8 and time.monotonic() < start + 10:
        assert len(engines(np.zeros((engines.take(8), 1, 28, 28), np.uint8)))
    assert engines.take(8) == 8
    assert engines.trials < 4 + (time.monotonic() - start) / 0.0005 * batching.TRIAL_SHARE


class FailingEngines:
    """Stands for `Engines`; fails where a batch holds a digit that begins with 13."""

    max_batch, image_set, seconds = 8, MNIST, 0

    def __init__(self):
        self.batches = []

    def take(self, waiting):
        return min(waiting, self.max_batch)

    def __call__(self, images):
        time.sleep(self.seconds)
        self.batches.append(len(images))
        if (images[:, 0, 0, 0] == 13).any():
            raise RuntimeError("out of order")
        return np.repeat(images[:, 0, 0, :1].astype(np.float32), 10, axis=1)


def digits_of(*values):
    digits = np.zeros((len(values), 1, 28, 28), np.uint8)
    digits[:, 0, 0, 0] = values
    return digits


def batch(use):
    """Run the coroutine function `use(batcher)` on a loop; gives the sizes of its batches."""
    from mnist.serving.batching import Batcher
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        batcher = Batcher("net", FailingEngines(), max_waiting=100)
        loop.run_until_complete(use(batcher))
        assert batcher.waiting == 0 and not batcher.jobs
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    return batcher.engines.batches


def test_what_waits_goes_into_one_batch_and_long_requests_behind():
    async def use(batcher):
        answers = await asyncio.gather(
            batcher.read(digits_of(*range(100, 120))), batcher.read(digits_of(1)),
            batcher.read(digits_of(2, 3)))
        assert [list(answer[:, 0]) for answer in answers] == [
            list(range(100, 120)), [1], [2, 3]]
    assert batch(use) == [8, 8, 7]


def test_a_failing_engine_fails_its_batch_alone():
    async def use(batcher):
        long, other, after = await asyncio.gather(
            batcher.read(digits_of(*[13] * 20)), batcher.read(digits_of(5)),
            batcher.read(digits_of(6)), return_exceptions=True)
        assert isinstance(long, RuntimeError)
        assert other[0, 0] == 5 and after[0, 0] == 6
        assert batcher.healthy
        with pytest.raises(RuntimeError):
            await batcher.read(digits_of(13))
        assert not batcher.healthy
        assert (await batcher.read(digits_of(7)))[0, 0] == 7 and batcher.healthy
    batch(use)


def test_waiting_too_long_leaving_and_too_many():
    async def leave():
        return {"type": "http.disconnect"}

    async def use(batcher):
        batcher.engines.seconds, stay = 0.02, asyncio.Event().wait
        *_, late, left, good = await asyncio.gather(
            *(batcher.read(digits_of(*[1] * 8)) for _ in range(3)),
            batcher.read(digits_of(2), 0.001, stay), batcher.read(digits_of(3), None, leave),
            batcher.read(digits_of(4), 60, stay), return_exceptions=True)
        assert (late.status, late.headers["retry_after"]) == (503, "1")
        assert isinstance(left, ConnectionError) and good[0, 0] == 4
        batcher.max_waiting = 2
        good, refused = await asyncio.gather(
            batcher.read(digits_of(5, 6)), batcher.read(digits_of(7)), return_exceptions=True)
        assert good[0, 0] == 5 and refused.status == 503
    assert batch(use) == [8, 8, 8, 1, 2]
