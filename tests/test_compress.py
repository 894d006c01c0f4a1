"""Smaller networks: quantised, pruned, clustered; and the program that shows what each costs."""

import functools
import json
import os
import shutil
import signal
import time

import numpy as np
import onnx
import pytest
import torch
from scripts import read_until, refused, run, start

from mnist.datasets.image_set import MNIST
from mnist.engines import int8, registry
from mnist.engines.onnx_export import check_onnx
from mnist.engines.precision import judge_outputs
from mnist.errors import MNISTError, UnavailableError
from mnist.models.weights import SHIPPED, Network, load_network, save_weights
from mnist.training import compress
from mnist.training.recipe import Recipe
from MNISTdsource import calibration_images, load_split

SHIPPED_NET = os.path.join(SHIPPED, "net.pth")


@pytest.fixture(scope="module")
def shipped():
    return load_network(SHIPPED_NET)


@pytest.fixture(scope="module")
def graph(shipped, small_mnist):
    return int8.int8_graph(shipped._replace(path=None), calibration(small_mnist))


def calibration(folder):
    return functools.partial(calibration_images, MNIST, data_dir=folder)


def onnxruntime_answers(graph, images):
    import onnxruntime
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images.astype(np.float32)})[0]


# --- int8 -----------------------------------------------------------------------------------------


def test_the_int8_graph_is_what_every_runtime_takes(graph, shipped):
    model = onnx.load_model_from_string(graph)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert {node.domain for node in model.graph.node} == {""}
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor)
               for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _, scale, zero_point = node.input
            assert tensors[scale].shape == () and tensors[scale] > 0
            assert tensors[zero_point].dtype == np.int8 and tensors[zero_point] == 0
        if node.op_type in ("Conv", "Gemm"):
            assert tensors[node.input[2]].dtype == np.float32  # the bias
    assert len(graph) < 440000
    assert check_onnx(graph, shipped, "int8").startswith("ONNX checker")


@pytest.mark.mnist
def test_int8_on_real_digits_loses_two_answers_at_most(shipped, mnist_dir):
    images, labels = load_split("test", mnist_dir)
    reference = registry.reference_log_probs(shipped, images)
    answers = onnxruntime_answers(int8.int8_graph(shipped, calibration(mnist_dir)), images)
    right = (reference.argmax(1) == labels).sum()
    assert (answers.argmax(1) == labels).sum() >= right - 2
    assert judge_outputs(MNIST, answers, reference, "int8")[1] is None


def test_the_form_for_every_tensorrt_answers_the_same(graph, digits):
    form = int8.weights_in_float(graph)
    model = onnx.load_model_from_string(form)
    onnx.checker.check_model(model, full_check=True)
    held = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    assert held == {onnx.TensorProto.FLOAT}  # TensorRT 8 refuses weights of int8
    assert np.array_equal(onnxruntime_answers(form, digits), onnxruntime_answers(graph, digits))


@pytest.mark.parametrize("name", ["net", "cifar10"])
def test_the_form_for_onnx_runtime_on_x86_answers_the_same(name):
    with open(os.path.join(SHIPPED, name + "-int8.onnx"), "rb") as file:
        graph = file.read()
    form = int8.unsigned_activations(graph)
    onnx.checker.check_model(onnx.load_model_from_string(form), full_check=True)
    shape = load_network(os.path.join(SHIPPED, name + ".pth")).image_set.shape
    images = np.random.default_rng(0).integers(0, 256, (20,) + shape).astype(np.float32)
    np.testing.assert_allclose(onnxruntime_answers(form, images),
                               onnxruntime_answers(graph, images), atol=0.1)


def test_the_int8_file_is_kept_and_made_anew_when_it_must(tmp_path, net, small_mnist, monkeypatch):
    network, few = Network(net, path=str(tmp_path / "net.pth")), np.zeros((8, 1, 28, 28), np.uint8)
    first = int8.int8_graph(network, calibration(small_mnist))
    assert sorted(os.listdir(tmp_path)) == ["net-int8.onnx", "net-int8.onnx.json"]
    assert int8.int8_graph(network, calibration("/no/such/folder")) == first  # it is kept
    assert int8.int8_graph(network) == first
    assert int8.int8_graph(network, lambda: few) != first  # other images to calibrate on
    assert int8.int8_graph(network, calibration(small_mnist)) == first
    net.fc2.bias.data[0] += 1
    assert int8.int8_graph(network, calibration(small_mnist)) != first  # other weights
    monkeypatch.setitem(int8.RECIPE, "calibration", "Entropy")
    with pytest.raises(UnavailableError):  # another recipe
        int8.int8_graph(network, calibration("/no/such/folder"))
    monkeypatch.undo()
    (tmp_path / "net-int8.onnx").write_bytes(b"damaged")
    assert len(int8.int8_graph(network, calibration(small_mnist))) > 400000


def test_a_shipped_int8_file_serves_every_exporter(tmp_path, net, small_mnist, monkeypatch):
    (tmp_path / "weights").mkdir()
    shipped = Network(net, path=str(tmp_path / "weights" / "net.pth"))
    mine = shipped._replace(path=str(tmp_path / "net.pth"))
    first = int8.int8_graph(shipped, calibration(small_mnist))
    monkeypatch.setattr(int8, "ROOT", str(tmp_path))
    path = tmp_path / "weights" / "net-int8.onnx.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(dict(record, graph_sha256="of another torch")))
    assert int8.int8_graph(mine) == first
    path.write_text(json.dumps(dict(record, weights_sha256="of another network")))
    with pytest.raises(UnavailableError):
        int8.int8_graph(mine)


def test_without_training_images_int8_says_so(net):
    with pytest.raises(UnavailableError, match="int8 is calibrated on training images, and there"):
        registry.open_engine("onnxruntime", Network(net), "cpu", "int8",
                             calibration=calibration("/no/such/folder"))


# --- Pruning and clustering -----------------------------------------------------------------------


def test_a_pruner_ends_at_its_sparsity_and_stays_there(net):
    pruner = compress.Pruner(net, 0.9, steps=400)
    zeros = []
    for step in range(400):
        for weight in compress.weights_of(net).values():
            weight.data.add_(1e-4)  # what an optimiser would do to zeros, too
        pruner()
        if step % 50 == 0:
            zeros.append(sum(int((w == 0).sum()) for w in compress.weights_of(net).values()))
    whole = sum(weight.numel() for weight in compress.weights_of(net).values())
    assert zeros == sorted(zeros) and zeros[0] == 0
    assert not any(torch.signbit(w[w == 0]).any() for w in compress.weights_of(net).values())
    assert abs(zeros[-1] / whole - 0.9) < 0.001
    assert compress.count_non_zero(net) == pytest.approx(0.1 * whole + 580, abs=0.001 * whole)


@pytest.mark.parametrize("steps", [1, 2, 49, 101])
def test_a_short_training_gets_to_the_sparsity_too(net, steps):
    pruner = compress.Pruner(net, 0.5, steps)
    for _ in range(steps):
        pruner()
    assert compress.count_non_zero(net) == pytest.approx(431080 / 2, abs=600)


def test_clusters_are_shared_and_zeros_stay(net):
    with torch.no_grad():
        net.fc1.weight[net.fc1.weight.abs() < 0.01] = 0
    zeros = (net.fc1.weight == 0)
    clustered = compress.share_values(net, 16)
    share = compress.Sharer(clustered)
    for weight in compress.weights_of(clustered).values():
        weight.data.add_(torch.rand_like(weight), alpha=1e-3)  # what an optimiser would do
    share()
    assert all(len(weight.unique()) <= 16 for weight in compress.weights_of(clustered).values())
    assert torch.equal(clustered.fc1.weight == 0, zeros)
    assert len(net.fc1.weight.unique()) > 1000  # the original is left alone
    limit = 431080 / 2 + 4 * 580 + 4 * 64
    assert compress.ideal_bytes(clustered) < limit < compress.ideal_bytes(net)


def test_more_clusters_than_weights_is_refused(net):
    with pytest.raises(UnavailableError, match="--clusters 501: conv1.weight has only 500 weights"):
        compress.share_values(net, 501)


def test_a_fine_tuning_that_diverges_is_an_error(net):
    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8), torch.arange(64) % 10
    with pytest.raises(MNISTError, match="diverged; a smaller --lr"):
        compress.prune(Network(net), 0.5, Recipe(epochs=2, batch_size=16, lr=1e9), images)


def test_k_means_finds_the_clusters():
    values = np.concatenate([np.full(10, -1.0), np.full(5, 0.5), np.full(7, 3.0)])
    assert np.allclose(compress.k_means(values.astype(np.float32), 3), [-1, 0.5, 3])


def test_ideal_coding_of_two_equal_values_takes_a_bit():
    net = torch.nn.Linear(8, 4, bias=False)
    net.weight.data = torch.tensor([1.0, 2.0]).repeat(16).reshape(4, 8)
    assert compress.ideal_bytes(torch.nn.Sequential(net)) == 32 / 8 + 2 * 4


# --- The program ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_run(tmp_path, small_mnist):
    shutil.copy(SHIPPED_NET, tmp_path / "mine.pth")
    out, err = run("CompressMNIST.py", "--weights", tmp_path / "mine.pth", "--data-dir",
                   small_mnist, "--output-dir", tmp_path, "--method", "int8", "pruned",
                   "pruned+clustered", "--epochs", "1", "--threads", "1", "--json",
                   tmp_path / "record.json", "--plot", tmp_path / "plot.png")
    record = json.loads((tmp_path / "record.json").read_text())
    rows = {row["method"]: row for row in record["rows"]}
    assert list(rows) == ["original", "int8", "pruned", "pruned+clustered"]
    assert rows["original"]["changed"] == 0 and rows["int8"]["onnx_bytes"] < 440000
    assert rows["pruned+clustered"]["ideal_bytes"] < rows["pruned"]["ideal_bytes"]
    assert all(row["times"] for row in rows.values())
    assert {"mine-int8.onnx", "mine-pruned.pth", "mine-pruned-clustered.pth", "plot.png"} <= set(
        os.listdir(tmp_path))
    assert max(map(len, out.split("\n")[2:])) <= 110 and "What may be misread" in out
    pruned = load_network(str(tmp_path / "mine-pruned.pth")).net  # every program takes it
    assert 0.85 < 1 - compress.count_non_zero(pruned) / 431080 < 0.91


def test_ctrl_c_keeps_what_is_finished(tmp_path, small_mnist, net):
    save_weights(net, str(tmp_path / "mine.pth"))
    with start("CompressMNIST.py", "--weights", tmp_path / "mine.pth", "--data-dir", small_mnist,
               "--output-dir", tmp_path, "--method", "int8", "pruned", "--epochs", "1000",
               "--threads", "1") as process:
        read_until(process, "int8: ", "stderr")
        time.sleep(2)  # into the training
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "\nint8 " in out and "\npruned" not in out and (tmp_path / "mine-int8.onnx").exists()


@pytest.mark.parametrize("flags, words", [
    (["--sparsity", "1"], "must be between 0 and 1"),
    (["--clusters", "1"], "must be 2 to 256"),
    (["--output-dir", "/no/such/folder"], "there is no folder"),
    (["--data-dir", "/no/such/folder"], "/no/such/folder"),
])
def test_what_cannot_be_is_one_clear_line(flags, words):
    _, err = refused("CompressMNIST.py", *flags)
    assert words in err
