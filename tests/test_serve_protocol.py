"""The Open Inference Protocol's messages, read and written without a server."""

import json
import struct

import numpy as np
import pytest

pytest.importorskip("orjson", reason="orjson isn't installed; requirements/serve.txt has it")

from serving import binary_request

from mnist.datasets.image_set import MNIST
from mnist.serving.protocol import Protocol, RequestError

PROTOCOL = Protocol("net", MNIST, 64)

DIGITS = np.random.default_rng(1).integers(0, 256, (3, 1, 28, 28), np.uint8)
LOG_PROBS = np.random.default_rng(2).normal(-5, 2, (3, 10)).astype(np.float32)


def request(**changes):
    """The JSON of a good request for one digit, its input changed."""
    tensor = {"name": "image", "shape": [1, 28, 28], "datatype": "UINT8", "data": [0] * 784}
    tensor.update(changes)
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def read(record, *arguments):
    return PROTOCOL.read_request(json.dumps(record).encode(), *arguments)


def read_float32(numbers):
    """Read a request with float32 (N, 1, 28, 28) in binary."""
    head = json.dumps(request(datatype="FP32", shape=list(numbers.shape), data=None,
                              parameters={"binary_data_size": numbers.nbytes})).encode()
    return PROTOCOL.read_request(head + numbers.astype("<f4").tobytes(), len(head))[1]


# Requests that are good


@pytest.mark.parametrize("nest", [
    lambda digits: digits.ravel(), lambda digits: digits], ids=["flat", "nested"])
@pytest.mark.parametrize("datatype, shape", [
    ("UINT8", (3, 28, 28)), ("FP32", (3, 1, 28, 28))])
def test_numbers_are_read_however_they_are_nested(nest, datatype, shape):
    _, digits = read(request(datatype=datatype, shape=shape,
                             data=nest(DIGITS.reshape(shape)).tolist()))
    np.testing.assert_array_equal(digits, DIGITS)
    assert digits.dtype == np.uint8


@pytest.mark.parametrize("identity", ["seven", "x" * 5000], ids=len)
def test_binary(identity):
    body, headers = binary_request(DIGITS, id=identity)
    header, digits = PROTOCOL.read_request(body, int(headers["Inference-Header-Content-Length"]))
    np.testing.assert_array_equal(digits, DIGITS)
    assert header.id == identity and header.binary
    header, digits = PROTOCOL.read_request(DIGITS.tobytes(), 0)
    np.testing.assert_array_equal(digits, DIGITS)
    assert header.binary


def test_float32_is_rounded_and_refused_where_it_was_scaled_to_one():
    np.testing.assert_array_equal(read_float32(DIGITS.astype(np.float32)), DIGITS)
    _, digits = read(request(datatype="FP32", shape=[1, 1, 28, 28], data=[0.4, 254.6] * 392))
    assert digits.ravel()[:2].tolist() == [0, 255]
    scaled = DIGITS / np.float32(255)
    with pytest.raises(RequestError, match="from 0 to 1: multiply them by 255"):
        read_float32(scaled)
    with pytest.raises(RequestError, match="from 0 to 1: multiply them by 255"):
        read(request(datatype="FP32", data=scaled[0].ravel().tolist()))
    for level in (0, 1):  # whole numbers are levels, however dark
        _, digits = read(request(datatype="FP32", data=[float(level)] * 784))
        assert np.all(digits == level)


# Requests that aren't


@pytest.mark.parametrize("changes", [
    dict(name="picture"), dict(name=None), dict(name=7), dict(datatype="INT8"),
    dict(datatype=None), dict(shape=[1, 28, 27]), dict(shape=[0, 28, 28]), dict(shape=[28, 28]),
    dict(shape=[1.0, 28, 28]), dict(shape=[]), dict(shape=None), dict(shape=[2, 28, 28]),
    dict(shape=[10 ** 15, 28, 28]), dict(data=[0] * 783), dict(data=None), dict(data="0" * 784),
    dict(data=[256] * 784), dict(data=[-1] * 784), dict(data=[0.5] * 784), dict(data=["a"] * 784),
    dict(data=[[[0] * 28] * 27 + [[0] * 27]]), dict(data=[0] * 783 + [[0]]), dict(data=[{}] * 784),
    dict(parameters={"binary_data_size": 784}), dict(parameters=[1]), dict(data=[None] * 784),
    dict(data=None, parameters={"binary_data_size": "784"}),
    dict(datatype="FP32", data=[-0.01] * 784), dict(datatype="FP32", data=[255.01] * 784),
    dict(datatype="FP32", data=[1.0] * 700 + [0.2] * 84),
    dict(datatype="FP32", data=[1] * 783 + [[1]]),
], ids=str)
def test_bad_input_is_a_400(changes):
    with pytest.raises(RequestError) as caught:
        read(request(**changes))
    assert caught.value.status == 400


@pytest.mark.parametrize("record", [
    [], 7, None, {}, {"inputs": []}, {"inputs": {}}, {"inputs": [7]},
    {"inputs": request()["inputs"] * 2},
    {**request(), "outputs": 1}, {**request(), "outputs": [{"name": "probs"}]},
    {**request(), "outputs": [{"name": "log_probs"}] * 2}, {**request(), "outputs": [{}]},
    {**request(), "id": 7}, {**request(), "parameters": 7},
    {**request(), "parameters": {"binary_data_output": 1}},
    {**request(), "parameters": {"timeout": "soon"}},
    {**request(), "outputs": [{"name": "log_probs", "parameters": {"classification": -1}}]},
], ids=str)
def test_bad_request_is_a_400(record):
    with pytest.raises(RequestError) as caught:
        read(record)
    assert caught.value.status == 400


@pytest.mark.parametrize("body", [
    b"", b"{", b"\xff", b"[" * 100000, b'{"inputs": NaN}', b'{"a":' * 5000])
def test_what_is_no_json_is_a_400(body):
    with pytest.raises(RequestError):
        PROTOCOL.read_request(body)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 255.5, -1])
def test_binary_float32_outside_is_a_400(value):
    numbers = np.zeros((1, 1, 28, 28), np.float32)
    numbers[0, 0, 5, 5] = value
    with pytest.raises(RequestError):
        read_float32(numbers)


def test_binary_lengths():
    body, headers = binary_request(DIGITS)
    length = int(headers["Inference-Header-Content-Length"])
    text = json.dumps(request()).encode()
    for broken, said, words in (
            (body[:-1], length, "2352 bytes should follow the JSON, 2351 are there"),
            (body + b"x", length, "2352 bytes should follow the JSON, 2353 are there"),
            (body, len(body) + 1, "not JSON"), (body, length - 1, "not JSON"),
            (body, 0, "bytes should follow"), (b"", 0, "784 bytes should follow"),
            (text + b"x", len(text), "0 bytes should follow")):
        with pytest.raises(RequestError, match=words):
            PROTOCOL.read_request(broken, said)


# Responses


def answer(log_probs=LOG_PROBS, **more):
    header, _ = read({**request(), **more})
    return PROTOCOL.write_response(header, log_probs)


def test_json_response():
    body, length = answer(id="seven")
    response = json.loads(body)
    output, = response.pop("outputs")
    assert length is None
    assert response == {"model_name": "net", "model_version": "1", "id": "seven"}
    data = np.float32(output.pop("data")).reshape(3, 10)
    np.testing.assert_array_equal(data, LOG_PROBS)  # float32 there and back
    assert output == {"name": "log_probs", "datatype": "FP32", "shape": [3, 10]}


def test_binary_response():
    body, length = answer(parameters={"binary_data_output": True})
    output, = json.loads(body[:length])["outputs"]
    assert output == {"name": "log_probs", "datatype": "FP32", "shape": [3, 10],
                      "parameters": {"binary_data_size": 120}}
    assert body[length:] == LOG_PROBS.tobytes()
    wish = [{"name": "log_probs", "parameters": {"binary_data": False}}]  # the output's wins
    assert answer(parameters={"binary_data_output": True}, outputs=wish)[1] is None


def test_classification():
    wish = [{"name": "log_probs", "parameters": {"classification": 2}}]
    body, _ = answer(outputs=wish)
    output, = json.loads(body)["outputs"]
    assert output["datatype"] == "BYTES" and output["shape"] == [3, 2]
    for text, row in zip(output["data"][::2], LOG_PROBS):
        value, index, label = text.split(":")
        assert int(index) == int(label) == row.argmax()
        assert float(value) == pytest.approx(row.max(), abs=1e-5)
    wish[0]["parameters"]["binary_data"] = True
    body, length = answer(outputs=wish)
    size, = struct.unpack_from("<I", body, length)
    assert body[length + 4:length + 4 + size].decode() == output["data"][0]
