"""The ONNX export: one file, raw grey levels in, the same answers as torch, or nothing at all."""

import copy
import io
import os
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mnist.datasets.image_set import MNIST
from mnist.engines.onnx_export import check_onnx, export_onnx, onnx_bytes
from mnist.errors import MNISTError, UnavailableError
from mnist.models.weights import Network


def answers(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images.astype(np.float32)})[0]


def expected(net, images):
    with torch.no_grad():
        return net(torch.from_numpy(MNIST.normalise(images))).numpy()


@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_graph_is_what_every_tensorrt_reads(net, tmp_path, precision):
    checked = export_onnx(Network(net), tmp_path / "net.onnx", precision)
    assert "ONNX checker" in checked and "ONNX Runtime" in checked
    assert os.listdir(tmp_path) == ["net.onnx"]  # no .onnx.data beside it
    model = onnx.load(tmp_path / "net.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    float32 = onnx.TensorProto.FLOAT
    for tensors, name, shape in ((model.graph.input, "image", ["batch", 1, 28, 28]),
                                 (model.graph.output, "log_probs", ["batch", 10])):
        tensor, = tensors
        assert (tensor.name, tensor.type.tensor_type.elem_type) == (name, float32)
        assert [axis.dim_param or axis.dim_value
                for axis in tensor.type.tensor_type.shape.dim] == shape
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert "(batch, 1, 28, 28), grey levels, 0 to 255" in said["input"]
    held = {weight.data_type for weight in model.graph.initializer}
    assert held == {float32 if precision == "fp32" else onnx.TensorProto.FLOAT16}
    casts = [node.op_type for node in model.graph.node].count("Cast")
    assert casts == (0 if precision == "fp32" else 2)


@pytest.mark.usefixtures("half_precision")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_answers_are_those_of_torch(net, digits, tmp_path, precision, batch):
    export_onnx(Network(net), tmp_path / "net.onnx", precision)
    difference = np.abs(answers(tmp_path / "net.onnx", digits[:batch])
                        - expected(net, digits[:batch])).max()
    assert difference < (1e-4 if precision == "fp32" else 0.1)
    assert (difference > 1e-4) == (precision == "fp16")  # fp16 really rounds


def test_a_graph_that_answers_otherwise_leaves_nothing_behind(net, tmp_path, monkeypatch):
    other = copy.deepcopy(net)
    other.conv1.bias.data[7] += 0.5
    graph = onnx_bytes(Network(other))
    monkeypatch.setattr("mnist.engines.onnx_export.onnx_bytes", lambda *_: graph)
    with pytest.raises(MNISTError, match="gives other log-probabilities than torch: by"):
        export_onnx(Network(net), tmp_path / "net.onnx")
    assert os.listdir(tmp_path) == []


def test_a_graph_that_is_no_onnx_leaves_the_old_file(net, tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"old")
    model = onnx.load_model_from_string(onnx_bytes(Network(net)))
    del model.graph.initializer[0]
    graph = model.SerializeToString()
    monkeypatch.setattr("mnist.engines.onnx_export.onnx_bytes", lambda *_: graph)
    with pytest.raises(MNISTError, match="the exported ONNX graph is invalid"):
        export_onnx(Network(net), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == b"old"


def test_nan_is_a_difference(net):
    graph = onnx_bytes(Network(net))
    net.fc2.bias.data[3] = float("nan")
    with pytest.raises(MNISTError, match="nan"):
        check_onnx(graph, Network(net), "fp32")


def test_without_onnx_and_onnxruntime_it_says_unchecked(net, monkeypatch):
    graph = onnx_bytes(Network(net))
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert check_onnx(graph, Network(net), "fp32").startswith("not checked")


def test_a_torch_that_needs_onnx_says_so(net, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)

    def old_or_new_export(*_, **__):  # what torch 2.13 does; torch 1.10 doesn't need onnx
        try:
            import onnx  # noqa: F401
        except ImportError as error:
            raise RuntimeError("Module onnx is not installed!") from error

    monkeypatch.setattr("torch.onnx.export", old_or_new_export)
    with pytest.raises(UnavailableError, match="pip install onnx"):
        onnx_bytes(Network(net))


def test_a_torch_without_float16_on_the_cpu_says_so(net, monkeypatch):
    def export_of_torch_1_10(net, *_, **__):
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr("torch.onnx.export", export_of_torch_1_10)
    with pytest.raises(UnavailableError, match="float16"):
        onnx_bytes(Network(net), "fp16")


def test_the_older_exporter_is_asked_for_only_where_there_are_two(net, monkeypatch):
    def export_of_torch_1_10(model, args, f, input_names=None, output_names=None,
                             opset_version=None, dynamic_axes=None):
        assert isinstance(f, io.BytesIO) and opset_version == 13
        graph = onnx.helper.make_graph([], "exported", [], [])
        f.write(onnx.helper.make_model(graph).SerializeToString())

    monkeypatch.setattr("torch.onnx.export", export_of_torch_1_10)
    assert onnx.load_model_from_string(onnx_bytes(Network(net))).graph.name == "exported"
