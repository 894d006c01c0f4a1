"""The exported model repository: what Triton would read, read with its own definition."""

import importlib.util
import json
import os

import numpy as np
import pytest
from scripts import run

from mnist.datasets.image_set import MNIST
from mnist.models.weights import load_network
from mnist.serving.triton_repository import export_repository

pytest.importorskip("onnx", reason="onnx isn't installed")


@pytest.fixture(scope="module")
def network():
    return load_network(network="net")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "repository"
    out, _ = run("ServeMNIST.py", "--export-triton", folder)
    assert f"saved {folder}" in out and "weights/net.pth" in out
    return folder


@pytest.fixture(scope="module")
def read_config():
    """Function of a config.pbtxt, with Triton's own definition of it, as tritonclient brings it."""
    package = importlib.util.find_spec("tritonclient")
    if package is None:
        pytest.skip("tritonclient isn't installed")
    text_format = pytest.importorskip("google.protobuf.text_format")
    path = os.path.join(package.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # made for another protobuf
        pytest.skip(f"tritonclient's classes don't load with this protobuf: {error}")
    return lambda path: text_format.Parse(path.read_text(), module.ModelConfig())


def test_config_is_tritons(repository, read_config):
    config = read_config(repository / "net" / "config.pbtxt")
    assert config.name == "net" and config.max_batch_size == 64
    assert config.input[0].name == "image" and list(config.input[0].dims) == [28, 28]
    assert config.output[0].name == "log_probs" and list(config.output[0].dims) == [10]
    assert "TYPE_UINT8" in str(config.input[0]) and config.HasField("dynamic_batching")
    labels = repository / "net" / config.output[0].label_filename
    assert labels.read_text().split() == list("0123456789")


def test_graph_answers_what_the_clients_of_the_server_send(repository, network, digits):
    onnxruntime = pytest.importorskip("onnxruntime")
    import torch
    session = onnxruntime.InferenceSession(str(repository / "net" / "1" / "model.onnx"),
                                           providers=["CPUExecutionProvider"])
    image, = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 28, 28])
    with torch.no_grad():
        expected = network.net(torch.from_numpy(MNIST.normalise(digits))).numpy()
    for size in (1, 7, 144):
        answers, = session.run(["log_probs"], {"image": digits[:size, 0]})
        np.testing.assert_allclose(answers, expected[:size], atol=1e-3)


def test_tensorrt_engines_go_along_where_they_belong_to_these_weights(
        tmp_path, network, read_config, capsys):
    from mnist.files import digest
    from mnist.models.weights import weights_digest
    network = network._replace(path=str(tmp_path / "mine.pth"))
    record = {"weights_sha256": weights_digest(network.net), "tensorrt": "tensorrt",
              "tensorrt_version": "10.3.0", "gpu": "a GPU", "precision": "fp16",
              "batches": [1, 64], "engine_sha256": digest(b"plan")}
    for name, changes in (("mine-b1to64-fp16", {}), ("mine-b8", {"batches": [8, 8]}),
                          ("mine-rtx", {"tensorrt": "tensorrt_rtx"}),
                          ("mine-old", {"weights_sha256": "other"}),
                          ("mine-torn", {"engine_sha256": "other"}), ("mine-bare", None)):
        (tmp_path / f"{name}.rt").write_bytes(b"plan")
        if changes is not None:
            (tmp_path / f"{name}.rt.json").write_text(json.dumps({**record, **changes}))
    export_repository(tmp_path / "repository", {"net": network})
    _, err = capsys.readouterr()
    assert all(name in err for name in ("mine-rtx", "mine-old", "mine-torn", "mine-bare"))
    models = sorted(name for name in os.listdir(tmp_path / "repository") if "tensorrt" in name)
    assert models == ["net_tensorrt_fp16_b1to64", "net_tensorrt_fp16_b8"]
    for name, batch, dims in zip(models, (64, 0), ([1, 28, 28], [8, 1, 28, 28])):
        folder = tmp_path / "repository" / name
        config = read_config(folder / "config.pbtxt")
        assert (config.name, config.max_batch_size, list(config.input[0].dims)) == (
            name, batch, dims)
        assert (folder / "1" / "model.plan").read_bytes() == b"plan"


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tmp_path, network, monkeypatch):
    from mnist.serving import triton_repository
    _, err = run("ServeMNIST.py", "--export-triton", tmp_path.parent, status=2)
    assert "is there already" in err

    def fail(*arguments):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(triton_repository, "write_config", fail)
    with pytest.raises(OSError, match="No space left"):
        export_repository(tmp_path / "repository", {"net": network})
    assert os.listdir(tmp_path) == []
