"""The Open Inference Protocol's messages, without any transport: bytes in, arrays out, bytes back.

Version 2 of the protocol, as Triton, KServe and MLServer speak it: JSON, and Triton's binary
tensors behind a JSON header. One input, `image`: UINT8 [-1, 28, 28], raw grey levels, or FP32
[-1, 1, 28, 28] from 0 to 255, as the exported ONNX file takes it (rounded to whole grey levels,
since engines take bytes). One output, `log_probs`: FP32 [-1, 10].

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md;
triton-inference-server/server, docs/protocol/extension_binary_data.md, extension_classification.md,
extension_model_configuration.md and extension_statistics.md. Knows numpy and orjson.
"""

import collections
import functools
import itertools
import struct

import numpy as np
import orjson

SERVER_NAME = "mnist"
SERVER_VERSION = "2"
MODEL_VERSION = "1"
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "statistics"]
SHAPES = {"UINT8": (28, 28), "FP32": (1, 28, 28)}  # of one digit
DIGIT_BYTES = {"UINT8": 784, "FP32": 4 * 784}
HEADER_CACHE = 512  # JSON headers kept parsed
LONGEST_CACHED = 1024  # bytes of a header that is kept


class RequestError(Exception):
    """A request that can't be answered, with the HTTP status that says so."""

    def __init__(self, text, status=400, **headers):
        super().__init__(text)
        self.status = status
        self.headers = headers


Header = collections.namedtuple("Header", "id datatype rows data binary_size output timeout")
Header.__doc__ = """What the JSON of a request asks for.

id           text, or None
datatype     "UINT8" or "FP32"
rows         how many digits
data         the list of numbers, flat or nested; None where they follow in binary
binary_size  their bytes there; None where `data` has them
output       an `Output`
timeout      seconds that the request may wait for an engine, or None
"""

Output = collections.namedtuple("Output", "binary classes")
Output.__doc__ = """How `log_probs` is wanted.

binary   whether as a binary tensor
classes  how many of the likeliest digits, as text; 0 for the log-probabilities
"""


# --- Requests -------------------------------------------------------------------------------------


def read_request(body, header_length=None):
    """A request's `Header` and its digits, uint8 (rows, 28, 28), from the bytes of its body.

    `header_length`: the bytes of JSON that begin it, where binary tensors follow; 0 where nothing
    but the digits is there; None where all is JSON. Raises RequestError for what isn't a request.
    """
    if header_length is None:
        header = parse_header(body)
    elif header_length > len(body):
        raise RequestError(f"the header is said to have {header_length} bytes, the whole request "
                           f"has {len(body)}")
    elif header_length == 0:
        header = raw_header(len(body))
    elif header_length <= LONGEST_CACHED:
        header = parse_cached(bytes(body[:header_length]))
    else:
        header = parse_header(body[:header_length])
    if header.binary_size is None:
        if header_length is not None and header_length < len(body):
            raise RequestError(f"unexpected additional input data: {len(body) - header_length} "
                               "bytes")
        return header, digits_from_numbers(header)
    return header, digits_from_bytes(header, body, header_length or 0)


def raw_header(size):
    """The header that a request without one stands for: `size` bytes of digits, nothing else."""
    rows, rest = divmod(size, DIGIT_BYTES["UINT8"])
    if rest or not rows:
        raise RequestError(f"without a JSON header the body is digits of 784 bytes; it has {size}")
    return Header(None, "UINT8", rows, None, size, Output(True, 0), None)


def parse_header(text):
    """The `Header` in the JSON of a request. Raises RequestError where it isn't one."""
    try:
        request = orjson.loads(text)
    except ValueError as error:
        raise RequestError(f"not JSON: {error}") from error
    inputs = field(request, "inputs", list, "the request")
    if len(inputs) != 1:
        raise RequestError(f"this model has one input, image; the request has {len(inputs)}")
    tensor = inputs[0]
    name = field(tensor, "name", str, "the input")
    if name != "image":
        raise RequestError(f"unexpected inference input {name!r}; this model has image")
    datatype = field(tensor, "datatype", str, "image")
    if datatype not in SHAPES:
        raise RequestError(f"image is UINT8 or FP32, not {datatype}")
    shape = field(tensor, "shape", list, "image")
    rows = shape[0] if shape else None
    if (type(rows) is not int or rows < 1 or tuple(shape[1:]) != SHAPES[datatype]
            or not all(type(size) is int for size in shape)):
        raise RequestError(f"image as {datatype} has the shape "
                           f"{[-1, *SHAPES[datatype]]}, not {shape}, and at least one digit")
    identity = field(request, "id", str, "the request", None)
    parameters = field(request, "parameters", dict, "the request", {})
    timeout = field(parameters, "timeout", int, "parameters", 0)
    size = field(field(tensor, "parameters", dict, "image", {}), "binary_data_size", int,
                 "image's parameters", None)
    data = field(tensor, "data", list, "image", None)
    if (size is None) == (data is None):
        raise RequestError("image needs its numbers either as data or in binary, with "
                           "binary_data_size")
    return Header(identity, datatype, rows, data, size, wanted_output(request, parameters),
                  timeout / 1e6 if timeout > 0 else None)


parse_cached = functools.lru_cache(HEADER_CACHE)(parse_header)


NEEDED = object()


def field(record, key, kind, where, default=NEEDED):
    """`record[key]`, checked to be of a kind; `default` where it isn't there or null."""
    if type(record) is not dict:
        raise RequestError(f"{where} is not a JSON object")
    value = record.get(key)
    if value is None and default is not NEEDED:
        return default
    if type(value) is not kind:
        raise RequestError(f"{where} has no {key}" if value is None else
                           f"{key} of {where} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def wanted_output(request, parameters):
    """The `Output` that a request asks for."""
    binary = field(parameters, "binary_data_output", bool, "parameters", False)
    outputs = field(request, "outputs", list, "the request", [])
    if not outputs:
        return Output(binary, 0)
    if len(outputs) > 1:
        raise RequestError("this model has one output, log_probs")
    name = field(outputs[0], "name", str, "the output")
    if name != "log_probs":
        raise RequestError(f"unexpected inference output {name!r}; this model has log_probs")
    wishes = field(outputs[0], "parameters", dict, "log_probs", {})
    if "shared_memory_region" in wishes:
        raise RequestError("there is no shared memory here")
    classes = field(wishes, "classification", int, "log_probs' parameters", 0)
    if not 0 <= classes:
        raise RequestError("classification takes a positive number")
    return Output(field(wishes, "binary_data", bool, "log_probs' parameters", binary),
                  min(classes, 10))


def digits_from_bytes(header, body, start):
    """The digits that follow the JSON in binary."""
    expected = header.rows * DIGIT_BYTES[header.datatype]
    if header.binary_size != expected:
        raise RequestError(f"{header.rows} digits as {header.datatype} have {expected} bytes, "
                           f"not binary_data_size {header.binary_size}")
    there = len(body) - start
    if there != expected:
        raise RequestError(f"expecting {expected - there} additional bytes" if there < expected
                           else f"unexpected additional input data: {there - expected} bytes")
    if header.datatype == "UINT8":
        return np.frombuffer(body, np.uint8, expected, start).reshape(header.rows, 28, 28)
    return grey_levels(np.frombuffer(body, "<f4", expected // 4, start), header.rows)


def digits_from_numbers(header):
    """The digits among the JSON, as a flat list or nested like the shape says."""
    shape = (header.rows,) + SHAPES[header.datatype]
    numbers = header.data
    if numbers and type(numbers[0]) is list:
        numbers = [numbers]
        for size in shape:
            if not all(type(part) is list and len(part) == size for part in numbers):
                raise RequestError(f"data isn't nested as the shape {list(shape)} says")
            numbers = list(itertools.chain.from_iterable(numbers))
    if len(numbers) != header.rows * 784:
        raise RequestError(f"the shape {list(shape)} has {header.rows * 784} numbers, data has "
                           f"{len(numbers)}")
    if header.datatype == "UINT8":
        try:
            return np.frombuffer(bytes(numbers), np.uint8).reshape(header.rows, 28, 28)
        except (TypeError, ValueError) as error:
            raise RequestError("UINT8 takes whole numbers from 0 to 255") from error
    try:
        return grey_levels(np.array(numbers), header.rows)
    except ValueError as error:  # lists among the numbers
        raise RequestError("FP32 takes numbers from 0 to 255") from error


def grey_levels(numbers, rows):
    """Numbers from 0 to 255, rounded: uint8 (rows, 28, 28)."""
    if numbers.dtype.kind not in "iuf" or not (numbers.min() >= 0 and numbers.max() <= 255):
        raise RequestError("FP32 takes numbers from 0 to 255")  # NaN is none of them
    return np.rint(numbers).astype(np.uint8).reshape(rows, 28, 28)


# --- Responses ------------------------------------------------------------------------------------


def write_response(model, header, log_probs):
    """A response's bytes, and the length of its JSON where binary tensors follow (else None).

    `log_probs` float32 (rows, 10); `header` is the request's.
    """
    rows = len(log_probs)
    if header.output.binary:
        if header.output.classes:
            tensor = b"".join(struct.pack("<I", len(text)) + text
                              for text in classes_of(log_probs, header.output.classes))
        else:
            tensor = log_probs.astype("<f4", copy=False).tobytes()
        head = response_header(model, header.id, rows, header.output, len(tensor))
        return head + tensor, len(head)
    if header.output.classes:
        data = [text.decode() for text in classes_of(log_probs, header.output.classes)]
    else:
        data = np.ascontiguousarray(log_probs, np.float32).reshape(-1)
    response = response_frame(model, header.id, rows, header.output)
    response["outputs"][0]["data"] = data
    return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY), None


def response_frame(model, identity, rows, output):
    """A response as a dictionary, without its numbers."""
    tensor = {"name": "log_probs", "datatype": "BYTES" if output.classes else "FP32",
              "shape": [rows, output.classes or 10]}
    response = {"model_name": model, "model_version": MODEL_VERSION, "outputs": [tensor]}
    if identity is not None:
        response["id"] = identity
    return response


@functools.lru_cache(HEADER_CACHE)
def response_header(model, identity, rows, output, size):
    """The JSON of a response with a binary tensor of `size` bytes."""
    response = response_frame(model, identity, rows, output)
    response["outputs"][0]["parameters"] = {"binary_data_size": size}
    return orjson.dumps(response)


def classes_of(log_probs, number):
    """The `number` likeliest digits of each row, likeliest first: bytes "value:index:label"."""
    return [f"{row[digit]:f}:{digit}:{digit}".encode() for row in log_probs
            for digit in np.argsort(-row, kind="stable")[:number]]


# --- Metadata -------------------------------------------------------------------------------------


def server_metadata():
    """The answer to GET /v2."""
    return {"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": EXTENSIONS}


def model_metadata(name, platform):
    """The answer to GET /v2/models/NAME."""
    return {"name": name, "versions": [MODEL_VERSION], "platform": platform,
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}],
            "outputs": [{"name": "log_probs", "datatype": "FP32", "shape": [-1, 10]}]}


def model_config(name, platform, max_batch):
    """The answer to GET /v2/models/NAME/config, Triton's model configuration as JSON."""
    return {"name": name, "platform": platform, "max_batch_size": max_batch,
            "version_policy": {"latest": {"num_versions": 1}},
            "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [28, 28]}],
            "output": [{"name": "log_probs", "data_type": "TYPE_FP32", "dims": [10],
                        "label_filename": ""}],
            "dynamic_batching": {"max_queue_delay_microseconds": 0}}
