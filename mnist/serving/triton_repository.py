"""A model repository for Triton, whose clients see what they see here.

One folder for each network and precision, as ONNX that takes bytes like this server (uint8
(batch, C, H, W), or (batch, H, W) where C is 1), and one for each TensorRT engine that was built of
it, which takes what the engine takes. Sources: Triton's docs/user_guide/model_repository.md and
model_configuration.md.
"""

import glob
import json
import os
import shutil
import tempfile

import numpy as np

from mnist.engines.int8 import network_graph
from mnist.engines.onnx_export import check_onnx
from mnist.errors import MNISTError, UnavailableError, package_missing, warn
from mnist.files import digest
from mnist.models.weights import weights_digest
from mnist.serving.protocol import wire_shape

PRECISIONS = ("fp32", "int8")
MAX_BATCH = 64
MAX_WAITING = 4096  # requests in Triton's queue

CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: {max_batch}
input [ {{ name: "image" data_type: {datatype} dims: [ {dims} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {outputs} ]
  label_filename: "labels.txt" }} ]
{batching}model_warmup [ {{ name: "an image" {batch}inputs {{ key: "image"
  value {{ data_type: {datatype} dims: [ {dims} ] zero_data: true }} }} }} ]
"""
BATCHING = f"""\
dynamic_batching {{
  default_queue_policy {{ max_queue_size: {MAX_WAITING} }}
}}
"""

README = """\
# A model repository for Triton

Made by `ServeMNIST.py --export-triton`. In this folder:

{models}

Serve it (VERSION: a release of Triton that fits your driver, such as 24.12-py3; with an NVIDIA GPU
add `--gpus all`):

```
docker run --rm -p 8000:8000 -p 8001:8001 -p 8002:8002 -v "$PWD":/models:ro \\
  nvcr.io/nvidia/tritonserver:VERSION tritonserver --model-repository=/models
```

The clients of `ServeMNIST.py` work unchanged: same names, same shapes, same port. One image:

```
head -c {pixels} /dev/zero | curl -s --data-binary @- -H "Inference-Header-Content-Length: 0" \\
  http://127.0.0.1:8000/v2/models/{first}/infer | strings
```

On Kubernetes with KServe, this folder copied to a volume `mnist-models`:

```yaml
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: mnist
spec:
  predictor:
    model:
      modelFormat:
        name: onnx
      runtime: kserve-tritonserver
      protocolVersion: v2
      storageUri: pvc://mnist-models
```

A TensorRT engine loads only with the version of TensorRT and the kind of GPU that it was built
with, which config.pbtxt doesn't know: take the Triton whose TensorRT is that one.
"""


def export_repository(folder, networks):
    """Write a repository of {name: `Network`} to a new or empty `folder`, whole or not
    at all; prints what is in it.

    Raises UnavailableError where `folder` isn't empty or onnx isn't installed, MNISTError where a
    graph answers wrongly or can't be written.
    """
    folder = os.path.abspath(folder)
    if os.path.isdir(folder) and os.listdir(folder) or os.path.isfile(folder):
        raise UnavailableError(f"--export-triton: {folder} is there already")
    missing = package_missing("onnx")
    if missing:
        raise UnavailableError(f"--export-triton: {missing}")
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        whole = tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=os.path.dirname(folder))
    except OSError as error:
        raise MNISTError(f"can't write {folder}: {error.strerror}") from error
    try:
        lines = [line for name, network in networks.items()
                 for line in export_network(whole, name, network)]
        first, network = next(iter(networks.items()))
        write(whole, "README.md", README.format(
            models="\n".join("- " + line for line in lines), first=first,
            pixels=int(np.prod(network.image_set.shape))))
        os.chmod(whole, 0o755)  # mkdtemp makes it private; Triton runs as another user
        if os.path.isdir(folder):
            os.rmdir(folder)
        os.rename(whole, folder)
    except BaseException as error:
        shutil.rmtree(whole, ignore_errors=True)
        if isinstance(error, OSError):
            raise MNISTError(f"can't write {folder}: {error.strerror}") from error
        raise
    print("\n".join(lines + [f"saved {folder}; its README.md says how to serve it"]))


def export_network(folder, name, network):
    """Write all models of one network; gives a line about each."""
    image_set = network.image_set
    for precision in PRECISIONS:
        try:
            graph = network_graph(network, precision)
        except UnavailableError as error:
            if precision == "fp32":
                raise
            warn(f"{name} is not exported in {precision}: {error}")
            continue
        checked = check_onnx(graph, network, precision)
        model = name if precision == "fp32" else f"{name}_{precision}"
        write(folder, f"{model}/1/model.onnx", takes_bytes(graph, image_set))
        write_config(folder, model, image_set, "onnxruntime", MAX_BATCH, "TYPE_UINT8",
                     wire_shape(image_set))
        yield f"`{model}`: {network.origin}, ONNX, {precision}; {checked}"
    for path, record in built_engines(network):
        smallest, largest = record["batches"]
        model = f"{name}_tensorrt_{record['precision']}_b" + (
            str(largest) if smallest == largest else f"{smallest}to{largest}")
        with open(path, "rb") as file:
            write(folder, f"{model}/1/model.plan", file.read())
        batch = (largest,) if smallest == largest else ()  # then it is part of its shape
        write_config(folder, model, image_set, "tensorrt", 0 if batch else largest, "TYPE_FP32",
                     batch + tuple(image_set.shape), batch)
        yield (f"`{model}`: {os.path.basename(path)}, TensorRT {record['tensorrt_version']} for "
               f"{record['gpu']}, {record['precision']}")


def built_engines(network):
    """The TensorRT engines of a network that Triton can load: pairs of path and record."""
    weights = weights_digest(network.net)
    for path in sorted(glob.glob(glob.escape(network.stem) + "*.rt")):
        try:
            with open(path + ".json", encoding="utf-8") as file:
                record = json.load(file)
            with open(path, "rb") as file:
                intact = record["engine_sha256"] == digest(file.read())
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(f"{path} is left out: no readable record ({error})")
            continue
        if record["weights_sha256"] != weights or not intact:
            warn(f"{path} is left out: it wasn't made of these weights")
        elif record["tensorrt"] != "tensorrt":
            warn(f"{path} is left out: Triton doesn't load engines of {record['tensorrt']}")
        else:
            yield path, record


def takes_bytes(graph, image_set):
    """An ONNX file like `network_graph` gives, with `image` as uint8 of the `wire_shape`."""
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
        batching=BATCHING if max_batch else "", batch="batch_size: 1 " if max_batch else ""))


def write(folder, path, content):
    """Write text or bytes to a path in the folder that is being made."""
    path = os.path.join(folder, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
