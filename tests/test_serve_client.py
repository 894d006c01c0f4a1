"""The real client, NVIDIA's tritonclient over HTTP, sync and asyncio."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("tritonclient.http", reason="tritonclient[http] isn't installed")

import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException


@pytest.fixture(scope="module")
def client(server):
    with tritonclient.http.InferenceServerClient(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def many():
    return np.random.default_rng(5).integers(0, 256, (2500, 28, 28), np.uint8)


@pytest.fixture(scope="module")
def expected(server, many):
    """The answers to `many`, asked for without tritonclient."""
    return np.concatenate([server.infer(many[i:i + 500]) for i in range(0, len(many), 500)])


def image(digits, binary=True, datatype="UINT8"):
    if datatype == "FP32":
        digits = digits[:, None].astype(np.float32)
    tensor = tritonclient.http.InferInput("image", list(digits.shape), datatype)
    return tensor.set_data_from_numpy(digits, binary_data=binary)


def log_probs(binary=True, **more):
    return tritonclient.http.InferRequestedOutput("log_probs", binary_data=binary, **more)


def test_what_the_server_says_of_itself(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("net")
    assert client.is_model_ready("net", "1") and not client.is_model_ready("nobody")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("net")["inputs"][0]["name"] == "image"
    assert client.get_model_config("net", "1")["max_batch_size"] == 64
    assert client.get_inference_statistics("net")["model_stats"][0]["name"] == "net"


@pytest.mark.parametrize("size, datatype, into, out, compressed", [
    (1, "UINT8", False, False, None), (3, "UINT8", True, True, "gzip"),
    (3, "UINT8", False, True, None), (3, "FP32", False, False, None),
    (3, "FP32", True, False, "deflate"), (2500, "UINT8", True, True, None)])
def test_answers(client, many, expected, size, datatype, into, out, compressed):
    result = client.infer("net", [image(many[:size], into, datatype)], outputs=[log_probs(out)],
                          request_id="seven", model_version="1",
                          request_compression_algorithm=compressed,
                          response_compression_algorithm=compressed)
    np.testing.assert_allclose(result.as_numpy("log_probs"), expected[:size], atol=1e-4)
    assert result.get_response()["id"] == "seven"


def test_classification(client, many, expected):
    for binary in (True, False):
        result = client.infer("net", [image(many[:2])],
                              outputs=[log_probs(binary, class_count=3)]).as_numpy("log_probs")
        best = [[int(text.split(b":" if binary else ":")[1]) for text in row] for row in result]
        assert result.shape == (2, 3)
        np.testing.assert_array_equal(best, np.argsort(-expected[:2], axis=1)[:, :3])


@pytest.mark.parametrize("change, words", [
    (dict(model_name="nobody"), "nothing is at /v2/models/nobody"),
    (dict(model_version="2"), "of version 1"),
    (dict(outputs=[tritonclient.http.InferRequestedOutput("probs")]), "one, log_probs"),
    (dict(inputs=[]), "this model has one, image"),
    (dict(inputs=[image(np.zeros((1, 27, 28), np.uint8))]), "has the shape"),
])
def test_errors(client, many, change, words):
    call = dict(model_name="net", inputs=[image(many[:1])])
    with pytest.raises(InferenceServerException, match=words):
        client.infer(**{**call, **change})


def test_asyncio(server, many, expected):
    async def ask(client, start):
        tensor = tritonclient.http.aio.InferInput("image", [5, 28, 28], "UINT8")
        tensor.set_data_from_numpy(many[start:start + 5])
        result = await client.infer("net", [tensor])
        np.testing.assert_allclose(result.as_numpy("log_probs"), expected[start:start + 5],
                                   atol=1e-4)

    async def use():
        async with tritonclient.http.aio.InferenceServerClient(server.url) as client:
            assert await client.is_server_ready() and await client.is_model_ready("net")
            await asyncio.gather(*(ask(client, start) for start in range(0, 500, 5)))
            with pytest.raises(InferenceServerException, match="nothing is at"):
                await client.get_model_metadata("nobody")
    asyncio.run(use())
