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
def repository(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("triton") / "repository"
    export_repository(folder, {"net": network})
    return folder


@pytest.fixture(scope="module")
def model_config():
    """Triton's own definition of config.pbtxt, as tritonclient brings it."""
    package = importlib.util.find_spec("tritonclient")
    if package is None:
        pytest.skip("tritonclient isn't installed")
    pytest.importorskip("google.protobuf", reason="protobuf isn't installed")
    path = os.path.join(package.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # made for another protobuf
        pytest.skip(f"tritonclient's classes don't load with this protobuf: {error}")
    return module


def read_config(model_config, path):
    from google.protobuf import text_format
    return text_format.Parse(path.read_text(), model_config.ModelConfig())


def test_config_is_tritons(repository, model_config):
    config = read_config(model_config, repository / "net" / "config.pbtxt")
    assert config.name == "net" and config.max_batch_size == 64
    assert config.input[0].name == "image" and list(config.input[0].dims) == [28, 28]
    assert config.input[0].data_type == model_config.TYPE_UINT8
    assert config.output[0].name == "log_probs" and list(config.output[0].dims) == [10]
    assert config.HasField("dynamic_batching")
    labels = repository / "net" / config.output[0].label_filename
    assert labels.read_text().split() == list("0123456789")
    assert (repository / "net" / "1" / "model.onnx").is_file()


def test_graph_answers_what_the_clients_send(repository, network, digits):
    onnxruntime = pytest.importorskip("onnxruntime")
    import torch
    session = onnxruntime.InferenceSession(str(repository / "net" / "1" / "model.onnx"),
                                           providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network.net(torch.from_numpy(MNIST.normalise(digits))).numpy()
    for size in (1, 7, 144):
        answers, = session.run(["log_probs"], {"image": digits[:size, 0]})
        np.testing.assert_allclose(answers, expected[:size], atol=1e-3)


def test_graph_has_the_shapes_that_the_server_announces(repository, server):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(repository / "net" / "1" / "model.onnx")).graph
    metadata = server.get("/v2/models/net")
    for value, tensor in ((graph.input[0], metadata["inputs"][0]),
                          (graph.output[0], metadata["outputs"][0])):
        kind = value.type.tensor_type
        shape = [dim.dim_value or -1 for dim in kind.shape.dim]
        assert (value.name, shape) == (tensor["name"], tensor["shape"])
        assert {"UINT8": onnx.TensorProto.UINT8, "FP32": onnx.TensorProto.FLOAT}[
            tensor["datatype"]] == kind.elem_type


def test_tensorrt_engines_go_along_where_they_belong_to_these_weights(
        tmp_path, network, model_config, capsys):
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
        config = read_config(model_config, folder / "config.pbtxt")
        assert (config.name, config.max_batch_size, list(config.input[0].dims)) == (
            name, batch, dims)
        assert (folder / "1" / "model.plan").read_bytes() == b"plan"


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tmp_path, network, monkeypatch):
    from mnist.serving import triton_repository
    _, err = run("ServeMNIST.py", "--export-triton", tmp_path.parent, status=2)
    assert "is there already" in err

    def fail(graph, image_set):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(triton_repository, "takes_bytes", fail)
    with pytest.raises(triton_repository.MNISTError, match="No space left"):
        export_repository(tmp_path / "repository", {"net": network})
    assert os.listdir(tmp_path) == []


def test_the_program_exports(tmp_path):
    out, _ = run("ServeMNIST.py", "--export-triton", tmp_path / "repository")
    assert "saved" in out and "weights/net.pth" in out
    readme = (tmp_path / "repository" / "README.md").read_text()
    assert "docker run" in readme and "kind: InferenceService" in readme
