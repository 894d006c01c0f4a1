"""int8: an ONNX graph quantised after training, made once and kept beside its weights.

    graph = network_graph(network, "int8", calibration)      an ONNX file's bytes

Static, symmetric, one scale a tensor, biases in float32; where the values of each layer reach is
found on a thousand training images (the calibration). ONNX Runtime, OpenVINO and TensorRT-RTX run
the very same file; docs/compression.md tells what else was tried. Uses onnx and onnxruntime.
"""

import json
import logging
import os
import tempfile

import numpy as np

from mnist.errors import MNISTError, UnavailableError, package_missing, warn
from mnist.files import ROOT, digest, save_json, write_atomically

# How it is made. What differs from it, or from the network, is made anew.
RECIPE = {"method": "static, symmetric int8 per tensor, float32 bias", "calibration": "MinMax",
          "format": 1}


def quantize_missing():
    """Why nothing can be quantised here, with the remedy; None where it can."""
    return (package_missing("onnx") or package_missing("onnxruntime")
            or (package_missing("onnxruntime.quantization")
                and "this onnxruntime comes without onnxruntime.quantization"))


def network_graph(network, precision, calibration=None):
    """The ONNX file's bytes of a network in any precision: see `onnx_bytes` and `int8_graph`."""
    from mnist.engines.onnx_export import onnx_bytes
    if precision == "int8":
        return int8_graph(network, calibration)
    return onnx_bytes(network, precision)


def int8_graph(network, calibration=None):
    """The ONNX file's bytes of a `Network` in int8, calibrated on training images.

    calibration: function that gives the images, uint8 (N, C, H, W), see
        `MNISTdsource.calibration_images`; None where there are none.

    It is kept beside the weights, as `stem`-int8.onnx with its record `stem`-int8.onnx.json, and
    taken from there while the network, RECIPE and the images are those recorded; where the images
    aren't available, what is kept is taken as it is. Raises UnavailableError where nothing is kept
    then.
    """
    from mnist.models.weights import weights_digest
    graph = network_graph(network, "fp32")
    wanted = dict(RECIPE, weights_sha256=weights_digest(network.net), graph_sha256=digest(graph))
    images, problem = None, "int8 is calibrated on training images, and none are given"
    if calibration:
        try:
            images = calibration()
            wanted.update(calibration_images=len(images), calibration_sha256=digest(images))
        except UnavailableError as error:
            problem = ("int8 is calibrated on training images, and there are none: "
                       + str(error).split("\n")[0])
    path = network.stem and network.stem + "-int8.onnx"
    kept = kept_graph(path, wanted)
    if kept:
        return kept
    if images is None:
        raise UnavailableError(problem)
    quantised = quantise(graph, images, network.image_set)
    if path:
        keep([(path, quantised)], dict(wanted, sha256=digest(quantised)), "the int8 graph is made")
    return quantised


def kept_graph(path, wanted):
    """The graph at `path`, or the shipped one of these weights, where its record says what is
    wanted; None otherwise."""
    if not path:
        return None
    # The shipped one was exported by another torch, whose graph needn't be the same to a byte, and
    # calibrated on MNIST's (or its set's) training images, whatever lies here.
    shipped = os.path.join(ROOT, "weights", os.path.basename(path))
    of_shipped = {key: value for key, value in wanted.items() if key not in (
        "graph_sha256", "calibration_images", "calibration_sha256")}
    return read_kept(path, wanted, "sha256")[0] or read_kept(shipped, of_shipped, "sha256")[0]


def keep(files, record, what):
    """Write files, pairs of path and bytes, and the record of the last one, without which that
    isn't used; a folder that can't be written to is a warning."""
    try:
        for path, content in files:
            with write_atomically(path) as file:
                file.write(content)
        save_json(path + ".json", record)
    except MNISTError as error:
        warn(f"{error}; {what} anew next time")


def read_kept(path, wanted, name_of_digest):
    """(the bytes of a file, None) where its record at `path`.json says what is wanted, else (None,
    the first thing that differs, as text)."""
    try:
        with open(path + ".json", encoding="utf-8") as file:
            record = dict(json.load(file))
        with open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError, TypeError):
        return None, f"no readable record {path}.json"
    # The digest ties the two files together, should a kill part them.
    for field, value in dict(wanted, **{name_of_digest: digest(content)}).items():
        if field not in record:
            return None, f"its record lacks {field}"
        if record[field] != value:
            return None, f"its {field} is {record[field]}, wanted is {value}"
    return content, None


def quantise(graph, images, image_set):
    """An ONNX file's bytes, turned to int8 with the ranges that its values have on `images`."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    batches = ({"image": images[start:start + 100].astype(np.float32)}
               for start in range(0, len(images), 100))

    class Batches(CalibrationDataReader):
        """The images, as the graph takes them."""

        def get_next(self):
            return next(batches, None)

    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("float.onnx", "int8.onnx")]
        with open(paths[0], "wb") as file:
            file.write(graph)
        logging.disable(logging.WARNING)  # it advises a preparation that this graph doesn't need
        quantize_static(paths[0], paths[1], Batches(), quant_format=QuantFormat.QDQ,
                        per_channel=False, activation_type=QuantType.QInt8,
                        weight_type=QuantType.QInt8,
                        calibrate_method=getattr(CalibrationMethod, RECIPE["calibration"]),
                        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True,
                                       "QuantizeBias": False})
        logging.disable(logging.NOTSET)
        return tidied(onnx.load(paths[1]), image_set).SerializeToString()


def tidied(model, image_set):
    """The onnx.ModelProto itself without imported operator sets that no node uses, which older
    runtimes refuse, without notes of shapes, and with its image set in its metadata."""
    import onnx

    from mnist.engines.onnx_export import properties
    used = {node.domain for node in model.graph.node}
    for opset in [opset for opset in model.opset_import if opset.domain not in used]:
        model.opset_import.remove(opset)
    del model.graph.value_info[:]
    if hasattr(model.graph, "metadata_props"):  # since onnx 1.16
        del model.graph.metadata_props[:]
    onnx.helper.set_model_props(model, properties(image_set))
    return model


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


def unsigned_activations(graph):
    """An int8 ONNX file's bytes whose activations go from 0 to 255 in place of -128 to 127: what
    ONNX Runtime's quick convolutions on x86 want (for signed ones it has them on ARM alone). The
    results are the same but for rounding."""
    import onnx
    from onnx import numpy_helper
    model = onnx.load_model_from_string(graph)
    tensors = model.graph.initializer
    weights = {tensor.name for tensor in tensors}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in weights:
            node.input[2] = "middle_level"
    tensors.append(numpy_helper.from_array(np.array(128, np.uint8), "middle_level"))
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in tensors if tensor.name not in used]:
        tensors.remove(tensor)
    return model.SerializeToString()
