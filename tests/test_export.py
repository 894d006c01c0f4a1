"""The ONNX export: one file, raw grey levels in, the same answers as torch, or nothing at all."""

import copy
import os
import sys

import onnx
import pytest

from mnist.engines.onnx_export import check_onnx, export_onnx, onnx_bytes
from mnist.errors import MNISTError, UnavailableError
from mnist.models.weights import Network


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


@pytest.mark.parametrize("precision, message, cause, words", [
    ("fp32", "Module onnx is not installed!", ImportError(), "pip install onnx"),  # torch 2.13
    ("fp16", "\"slow_conv2d_cpu\" not implemented for 'Half'", None, "float16")])  # torch 1.10
def test_what_torch_cannot_export_is_said(net, monkeypatch, precision, message, cause, words):
    def fail(*_, **__):
        raise RuntimeError(message) from cause

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(UnavailableError, match=words):
        onnx_bytes(Network(net), precision)
