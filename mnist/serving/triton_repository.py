"""A model repository for Triton, whose clients see what they see here.

One folder for each network and precision, as ONNX that takes bytes like this server (uint8
(batch, C, H, W), or (batch, H, W) where C is 1), and one for each TensorRT engine that was built of
it, which takes what the engine takes. Sources: Triton's docs/user_guide/model_repository.md and
model_configuration.md. How it is served: docs/serving.md.
"""

import glob
import json
import os
import shutil

import numpy as np

from mnist.engines.int8 import network_graph
from mnist.engines.onnx_export import check_onnx
from mnist.errors import UnavailableError, package_missing, warn
from mnist.files import digest
from mnist.models.weights import weights_digest
from mnist.serving.protocol import wire_shape

MAX_BATCH = 64

CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: {max_batch}
input [ {{ name: "image" data_type: {datatype} dims: [ {dims} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {outputs} ]
  label_filename: "labels.txt" }} ]
{batching}
"""


def export_repository(folder, networks):
    """Write a repository of {name: `Network`} to a new or empty `folder`, which vanishes on any
    failure; prints what is in it.

    Raises UnavailableError where `folder` isn't empty or onnx isn't installed, MNISTError where a
    graph answers wrongly.
    """
    if os.path.isfile(folder) or os.path.isdir(folder) and os.listdir(folder):
        raise UnavailableError(f"--export-triton: {folder} is there already")
    missing = package_missing("onnx")
    if missing:
        raise UnavailableError(f"--export-triton: {missing}")
    try:
        for name, network in networks.items():
            export_graph(folder, name, network, "fp32")
            try:
                export_graph(folder, name + "_int8", network, "int8")
            except UnavailableError as error:
                warn(f"{name} is not exported in int8: {error}")
            export_engines(folder, name, network)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    print(f"saved {folder}; docs/serving.md says how Triton serves it")


def export_graph(folder, model, network, precision):
    """Write a network as ONNX. Raises UnavailableError where it can't be had in this precision."""
    graph = network_graph(network, precision)
    checked = check_onnx(graph, network, precision)
    write(folder, f"{model}/1/model.onnx", takes_bytes(graph, network.image_set))
    write_config(folder, model, network.image_set, "onnxruntime", MAX_BATCH, "TYPE_UINT8",
                 wire_shape(network.image_set))
    print(f"{model}: {network.origin}, ONNX, {precision}; {checked}")


def export_engines(folder, name, network):
    """Write the TensorRT engines that were built of a network."""
    for path, record, plan in built_engines(network):
        smallest, largest = record["batches"]
        model = f"{name}_tensorrt_{record['precision']}_b" + (
            str(largest) if smallest == largest else f"{smallest}to{largest}")
        write(folder, f"{model}/1/model.plan", plan)
        batch = (largest,) if smallest == largest else ()  # then it is part of its shape
        write_config(folder, model, network.image_set, "tensorrt", 0 if batch else largest,
                     "TYPE_FP32", batch + tuple(network.image_set.shape), batch)
        print(f"{model}: {path}, TensorRT {record['tensorrt_version']} for {record['gpu']}, "
              f"{record['precision']}")


def built_engines(network):
    """The TensorRT engines of a network that Triton can load: (path, record, the engine's bytes).
    """
    weights = weights_digest(network.net)
    for path in sorted(glob.glob(glob.escape(network.stem) + "*.rt")):
        try:
            with open(path + ".json", encoding="utf-8") as file:
                record = json.load(file)
            with open(path, "rb") as file:
                plan = file.read()
            wanted = {"weights_sha256": weights, "engine_sha256": digest(plan),
                      "tensorrt": "tensorrt"}  # Triton doesn't load engines of TensorRT-RTX
            wrong = [key for key in wanted if record[key] != wanted[key]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            wrong = [f"no readable record ({error})"]
        if wrong:
            warn(f"{path} is left out, by its record: {', '.join(wrong)}")
        else:
            yield path, record, plan


def takes_bytes(graph, image_set):
    """An ONNX file like `onnx_bytes` gives, with `image` as uint8 of the `wire_shape`."""
    import onnx
    from onnx import numpy_helper
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "image" else name for name in node.input]
    old = model.graph.input[0]
    batch = old.type.tensor_type.shape.dim[0].dim_param
    shape = wire_shape(image_set)
    old.CopyFrom(onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8,
                                                    [batch] + list(shape)))
    whole = numpy_helper.from_array(np.array((-1,) + tuple(image_set.shape), np.int64), "whole")
    model.graph.initializer.append(whole)
    for node in (onnx.helper.make_node("Reshape", ["numbers", "whole"], ["pixels"]),
                 onnx.helper.make_node("Cast", ["image"], ["numbers"], to=onnx.TensorProto.FLOAT)):
        model.graph.node.insert(0, node)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def write_config(folder, model, image_set, backend, max_batch, datatype, shape, batch=()):
    """Write a model's config.pbtxt and its labels."""
    write(folder, f"{model}/labels.txt", "".join(f"{name}\n" for name in image_set.classes))
    write(folder, f"{model}/config.pbtxt", CONFIG.format(
        name=model, backend=backend, max_batch=max_batch, datatype=datatype,
        dims=", ".join(map(str, shape)), output=image_set.output_name,
        outputs=", ".join(map(str, batch + (image_set.outputs,))),
        batching="dynamic_batching { default_queue_policy { max_queue_size: 4096 } }"
                 if max_batch else ""))


def write(folder, path, content):
    """Write text or bytes to a path in the repository."""
    path = os.path.join(folder, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
