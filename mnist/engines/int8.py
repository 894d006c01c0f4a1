"""int8: a network's ONNX graph quantised after training, made once and kept beside its weights.

    graph = network_graph(net, "int8", stem)      an ONNX file's bytes

Static, symmetric, one scale a tensor, biases in float32; where the values of each layer reach is
found on a thousand training digits (the calibration). ONNX Runtime, OpenVINO and TensorRT-RTX run
the very same file; docs/compression.md tells what else was tried. Uses onnx and onnxruntime.
"""

import contextlib
import json
import logging
import os
import tempfile

import numpy as np

from mnist.errors import MNISTError, UnavailableError, package_missing, warn
from mnist.files import ROOT, digest, save_json, write_atomically
from MNISTdsource import load_digits

# How it is made. What differs from it, or from the network, is made anew.
RECIPE = {"method": "static, symmetric int8 per tensor, float32 bias", "calibration": "MinMax",
          "training_digits": 1000, "format": 1}


def quantize_missing():
    """Why nothing can be quantised here, with the remedy; None where it can."""
    return (package_missing("onnx") or package_missing("onnxruntime")
            or (package_missing("onnxruntime.quantization")
                and "this onnxruntime comes without onnxruntime.quantization"))


def network_graph(net, precision, stem=None, data_dir=None):
    """The ONNX file's bytes of a network in any precision: see `onnx_bytes` and `int8_graph`."""
    from mnist.engines.onnx_export import onnx_bytes
    return int8_graph(net, stem, data_dir) if precision == "int8" else onnx_bytes(net, precision)


def int8_graph(net, stem=None, data_dir=None):
    """The ONNX file's bytes of `net` in int8, calibrated on MNIST's training digits.

    It is kept as `stem`-int8.onnx with its record `stem`-int8.onnx.json, taken from there while the
    network and RECIPE are those recorded, and made anew otherwise; `stem` None keeps nothing.
    `data_dir`: where MNIST is, as for `load_digits`. Raises UnavailableError where there are no
    training digits.
    """
    from mnist.models.weights import weights_digest
    graph = network_graph(net, "fp32")
    wanted = dict(RECIPE, weights_sha256=weights_digest(net), graph_sha256=digest(graph))
    kept = read_kept(stem and stem + "-int8.onnx", wanted)
    if kept:
        return kept
    quantised = quantise(graph, calibration_digits(data_dir))
    if stem:
        try:
            with write_atomically(stem + "-int8.onnx") as file:
                file.write(quantised)
            save_json(stem + "-int8.onnx.json",
                      dict(wanted, sha256=digest(quantised)))
        except MNISTError as error:
            warn(f"{error}; the int8 graph is made anew next time")
    return quantised


def read_kept(path, wanted):
    """The graph at `path`, or the shipped one of these weights, where its record says what is
    wanted; None otherwise."""
    if not path:
        return None
    # The shipped one was exported by another torch, whose graph needn't be the same to a byte.
    shipped = os.path.join(ROOT, "weights", os.path.basename(path))
    for place, free in ((path, ()), (shipped, ("graph_sha256",))):
        with contextlib.suppress(OSError, ValueError, TypeError):
            with open(place + ".json", encoding="utf-8") as file:
                record = dict(json.load(file))
            with open(place, "rb") as file:
                graph = file.read()
            expected = dict(wanted, sha256=digest(graph))
            if all(record.get(key) == expected[key] for key in expected if key not in free):
                return graph
    return None


def calibration_digits(data_dir=None):
    """The training digits that int8 is calibrated on, uint8 (N, 28, 28), the same every time.

    Raises UnavailableError where there are none.
    """
    try:
        images, _, _ = load_digits("train", "mnist", data_dir)
    except MNISTError as error:
        raise UnavailableError("int8 is calibrated on training digits, and there are none: "
                               + str(error).split("\n")[0]) from error
    return images[np.random.RandomState(0).permutation(len(images))[:RECIPE["training_digits"]]]


def quantise(graph, digits):
    """An ONNX file's bytes, turned to int8 with the ranges that its values have on `digits`."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Digits(CalibrationDataReader):
        """The digits in batches, grey levels as the graph takes them."""

        def __init__(self):
            self.batches = iter([digits[start:start + 100] for start in range(0, len(digits), 100)])

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch[:, None].astype(np.float32)}

    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("float.onnx", "int8.onnx")]
        with open(paths[0], "wb") as file:
            file.write(graph)
        with quiet_logging():  # it advises a preparation that this graph doesn't need
            quantize_static(paths[0], paths[1], Digits(), quant_format=QuantFormat.QDQ,
                            per_channel=False, activation_type=QuantType.QInt8,
                            weight_type=QuantType.QInt8,
                            calibrate_method=getattr(CalibrationMethod, RECIPE["calibration"]),
                            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True,
                                           "QuantizeBias": False})
        return shortened(onnx.load(paths[1])).SerializeToString()


@contextlib.contextmanager
def quiet_logging():
    """Let Python's root logger say errors only."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def shortened(model):
    """The onnx.ModelProto itself, answering the same with fewer bytes and asking for less.

    Names, a third of a small network's file, become short, equal tensors one, notes of shapes are
    dropped, and so are imported operator sets that no node uses: older runtimes refuse those.
    """
    graph = model.graph
    del graph.value_info[:], model.metadata_props[:]
    used = {node.domain for node in graph.node}
    for opset in [opset for opset in model.opset_import if opset.domain not in used]:
        model.opset_import.remove(opset)
    fixed = {"": "", graph.input[0].name: "image", graph.output[0].name: "log_probs"}
    names, contents = dict(fixed), {}

    def short(name):
        return names.setdefault(name, to_letters(len(names) - len(fixed)))

    for tensor in list(graph.initializer):
        name, tensor.name = tensor.name, ""
        content = tensor.SerializeToString()
        if content in contents:
            names[name] = contents[content]
            graph.initializer.remove(tensor)
        else:
            tensor.name = contents[content] = short(name)
    for node in graph.node:
        node.name = node.doc_string = ""
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    return model


def to_letters(number):
    """0, 1, 2… as a, b, … z, ba, bb…"""
    rest, digit = divmod(number, 26)
    return (to_letters(rest) if rest else "") + "abcdefghijklmnopqrstuvwxyz"[digit]


def weights_in_float(graph):
    """An int8 ONNX file's bytes in the form that every TensorRT reads: 8 refuses tensors of int8,
    so each is kept in float32 and quantised in the graph; the results are the same."""
    import onnx
    from onnx import numpy_helper
    model = onnx.load_model_from_string(graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            name, scale, zero_point = node.input
            steps = numpy_helper.to_array(tensors[name])
            values = steps.astype(np.float32) * numpy_helper.to_array(tensors[scale])
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))
            nodes.append(onnx.helper.make_node("QuantizeLinear", [name, scale, zero_point],
                                               [name + "_int8"]))
            node.input[0] = name + "_int8"
        nodes.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model.SerializeToString()
