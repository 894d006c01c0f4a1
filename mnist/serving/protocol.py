"""The Open Inference Protocol's messages, without any transport: bytes in, arrays out, bytes back.

Version 2 of the protocol, as Triton, KServe and MLServer speak it: JSON, and Triton's binary
tensors behind a JSON header. One input, `image`: UINT8 [-1, C, H, W], raw pixels (or [-1, H, W]
where C is 1), or FP32 of the same shape from 0 to 255, as the exported ONNX file takes it (rounded
to whole levels, since engines take bytes). One output, `log_probs` or `values`: FP32 [-1, K].

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md;
triton-inference-server/server, docs/protocol/extension_binary_data.md, extension_classification.md,
extension_model_configuration.md and extension_statistics.md.
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
BYTES = {"UINT8": 1, "FP32": 4}  # of a number
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
rows         how many images
data         the list of numbers, flat or nested; None where they follow in binary
binary_size  their bytes there; None where `data` has them
output       an `Output`
timeout      seconds that the request may wait for an engine, or None
"""

Output = collections.namedtuple("Output", "binary classes")
Output.__doc__ = """How the network's outputs are wanted.

binary   whether as a binary tensor
classes  how many of the likeliest classes, as text; 0 for the numbers themselves
"""


# --- A model's messages ---------------------------------------------------------------------------


class Protocol:
    """What a model takes and gives: requests read, responses written, metadata.

    name, platform  as clients are told
    image_set       the `mnist.datasets.image_set.ImageSet` of its network
    """

    def __init__(self, name, platform, image_set, max_batch):
        self.name, self.platform, self.max_batch = name, platform, max_batch
        self.shape, self.classes = tuple(image_set.shape), image_set.classes
        self.pixels = int(np.prod(self.shape))
        self.output = image_set.output_name
        self.has_classes = image_set.task == "classification"
        self.wire_shape = wire_shape(image_set)
        self.parse_cached = functools.lru_cache(HEADER_CACHE)(self.parse_header)
        self.response_header = functools.lru_cache(HEADER_CACHE)(self.make_response_header)

    # --- Requests ---------------------------------------------------------------------------------

    def read_request(self, body, header_length=None):
        """A request's `Header` and its images, uint8 (rows, C, H, W), from the bytes of its body.

        `header_length`: the bytes of JSON that begin it, where binary tensors follow; 0 where
        nothing but the images is there; None where all is JSON. Raises RequestError for what isn't
        a request.
        """
        if header_length is None:
            header = self.parse_header(body)
        elif header_length > len(body):
            raise RequestError(f"the header is said to have {header_length} bytes, the whole "
                               f"request has {len(body)}")
        elif header_length == 0:
            header = self.raw_header(len(body))
        elif header_length <= LONGEST_CACHED:
            header = self.parse_cached(bytes(body[:header_length]))
        else:
            header = self.parse_header(body[:header_length])
        if header.binary_size is None:
            if header_length is not None and header_length < len(body):
                raise RequestError(f"unexpected additional input data: {len(body) - header_length} "
                                   "bytes")
            return header, self.images_from_numbers(header)
        return header, self.images_from_bytes(header, body, header_length or 0)

    def raw_header(self, size):
        """The header that a request without one stands for: `size` bytes of images, nothing else.
        """
        rows, rest = divmod(size, self.pixels)
        if rest or not rows:
            raise RequestError(f"without a JSON header the body is images of {self.pixels} bytes; "
                               f"it has {size}")
        return Header(None, "UINT8", rows, None, size, Output(True, 0), None)

    def parse_header(self, text):
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
        if datatype not in BYTES:
            raise RequestError(f"image is UINT8 or FP32, not {datatype}")
        rows = self.rows_of(field(tensor, "shape", list, "image"))
        identity = field(request, "id", str, "the request", None)
        parameters = field(request, "parameters", dict, "the request", {})
        timeout = field(parameters, "timeout", int, "parameters", 0)
        size = field(field(tensor, "parameters", dict, "image", {}), "binary_data_size", int,
                     "image's parameters", None)
        data = field(tensor, "data", list, "image", None)
        if (size is None) == (data is None):
            raise RequestError("image needs its numbers either as data or in binary, with "
                               "binary_data_size")
        return Header(identity, datatype, rows, data, size, self.wanted_output(request, parameters),
                      timeout / 1e6 if timeout > 0 else None)

    def rows_of(self, shape):
        """How many images a tensor of this shape holds. Raises RequestError for any other."""
        sizes = tuple(shape[1:])
        if (sizes not in (self.shape, self.wire_shape)
                or not all(type(size) is int for size in shape) or shape[0] < 1):
            wanted = ", ".join(map(str, self.wire_shape))
            raise RequestError(f"image has the shape {shape}; this model takes [N, {wanted}], N "
                               "images, 1 at least")
        return shape[0]

    def wanted_output(self, request, parameters):
        """The `Output` that a request asks for."""
        binary = field(parameters, "binary_data_output", bool, "parameters", False)
        outputs = field(request, "outputs", list, "the request", [])
        if not outputs:
            return Output(binary, 0)
        if len(outputs) > 1:
            raise RequestError(f"this model has one output, {self.output}")
        name = field(outputs[0], "name", str, "the output")
        if name != self.output:
            raise RequestError(f"unexpected inference output {name!r}; this model has "
                               f"{self.output}")
        wishes = field(outputs[0], "parameters", dict, self.output, {})
        if "shared_memory_region" in wishes:
            raise RequestError("there is no shared memory here")
        where = f"{self.output}' parameters"
        classes = field(wishes, "classification", int, where, 0)
        if classes < 0 or classes and not self.has_classes:
            raise RequestError("classification takes a positive number, of a classifier")
        return Output(field(wishes, "binary_data", bool, where, binary),
                      min(classes, len(self.classes)))

    def images_from_bytes(self, header, body, start):
        """The images that follow the JSON in binary."""
        expected = header.rows * self.pixels * BYTES[header.datatype]
        if header.binary_size != expected:
            raise RequestError(f"{header.rows} images as {header.datatype} have {expected} bytes, "
                               f"not binary_data_size {header.binary_size}")
        there = len(body) - start
        if there != expected:
            raise RequestError(
                f"expecting {expected - there} additional bytes" if there < expected
                else f"unexpected additional input data: {there - expected} bytes")
        shape = (header.rows,) + self.shape
        if header.datatype == "UINT8":
            return np.frombuffer(body, np.uint8, expected, start).reshape(shape)
        return whole_levels(np.frombuffer(body, "<f4", expected // 4, start)).reshape(shape)

    def images_from_numbers(self, header):
        """The images among the JSON, as a flat list or nested like their shape."""
        numbers = header.data
        while numbers and type(numbers[0]) is list:
            if not all(type(part) is list for part in numbers):
                raise RequestError("data is nested unevenly")
            numbers = list(itertools.chain.from_iterable(numbers))
        if len(numbers) != header.rows * self.pixels:
            raise RequestError(f"{header.rows} images have {header.rows * self.pixels} numbers, "
                               f"data has {len(numbers)}")
        shape = (header.rows,) + self.shape
        if header.datatype == "UINT8":
            try:
                return np.frombuffer(bytes(numbers), np.uint8).reshape(shape)
            except (TypeError, ValueError) as error:
                raise RequestError("UINT8 takes whole numbers from 0 to 255") from error
        try:
            return whole_levels(np.array(numbers)).reshape(shape)
        except ValueError as error:  # lists among the numbers
            raise RequestError("FP32 takes numbers from 0 to 255") from error

    # --- Responses --------------------------------------------------------------------------------

    def write_response(self, header, outputs):
        """A response's bytes, and the length of its JSON where binary tensors follow (else None).

        `outputs` float32 (rows, K); `header` is the request's.
        """
        rows = len(outputs)
        if header.output.binary:
            if header.output.classes:
                tensor = b"".join(struct.pack("<I", len(text)) + text
                                  for text in self.classes_of(outputs, header.output.classes))
            else:
                tensor = outputs.astype("<f4", copy=False).tobytes()
            head = self.response_header(header.id, rows, header.output, len(tensor))
            return head + tensor, len(head)
        if header.output.classes:
            data = [text.decode() for text in self.classes_of(outputs, header.output.classes)]
        else:
            data = np.ascontiguousarray(outputs, np.float32).reshape(-1)
        response = self.response_frame(header.id, rows, header.output)
        response["outputs"][0]["data"] = data
        return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY), None

    def response_frame(self, identity, rows, output):
        """A response as a dictionary, without its numbers."""
        tensor = {"name": self.output, "datatype": "BYTES" if output.classes else "FP32",
                  "shape": [rows, output.classes or len(self.classes)]}
        response = {"model_name": self.name, "model_version": MODEL_VERSION, "outputs": [tensor]}
        if identity is not None:
            response["id"] = identity
        return response

    def make_response_header(self, identity, rows, output, size):
        """The JSON of a response with a binary tensor of `size` bytes."""
        response = self.response_frame(identity, rows, output)
        response["outputs"][0]["parameters"] = {"binary_data_size": size}
        return orjson.dumps(response)

    def classes_of(self, log_probs, number):
        """The `number` likeliest classes of each row, likeliest first: bytes "value:index:label".
        """
        return [f"{row[index]:f}:{index}:{self.classes[index]}".encode() for row in log_probs
                for index in np.argsort(-row, kind="stable")[:number]]

    # --- Metadata ---------------------------------------------------------------------------------

    def metadata(self):
        """The answer to GET /v2/models/NAME."""
        return {"name": self.name, "versions": [MODEL_VERSION], "platform": self.platform,
                "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *self.wire_shape]}],
                "outputs": [{"name": self.output, "datatype": "FP32",
                             "shape": [-1, len(self.classes)]}]}

    def config(self):
        """The answer to GET /v2/models/NAME/config, Triton's model configuration as JSON."""
        return {"name": self.name, "platform": self.platform, "max_batch_size": self.max_batch,
                "version_policy": {"latest": {"num_versions": 1}},
                "input": [{"name": "image", "data_type": "TYPE_UINT8",
                           "dims": list(self.wire_shape)}],
                "output": [{"name": self.output, "data_type": "TYPE_FP32",
                            "dims": [len(self.classes)], "label_filename": ""}],
                "dynamic_batching": {"max_queue_delay_microseconds": 0}}


def wire_shape(image_set):
    """The shape of one image as clients are told: where it has one channel, without that axis,
    which they may send all the same."""
    channels, height, width = image_set.shape
    return (height, width) if channels == 1 else (channels, height, width)


def server_metadata():
    """The answer to GET /v2."""
    return {"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": EXTENSIONS}


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


def whole_levels(numbers):
    """Numbers from 0 to 255, (N,), rounded to uint8. Raises RequestError for others, and for what
    has been scaled to 0…1, which would be read as black."""
    if numbers.dtype.kind not in "iuf" or not (numbers.min() >= 0 and numbers.max() <= 255):
        raise RequestError("FP32 takes numbers from 0 to 255")  # NaN is none of them
    levels = np.rint(numbers)
    if numbers.max() <= 1 and (levels != numbers).any():
        raise RequestError("FP32 takes numbers from 0 to 255; these go from 0 to 1: multiply them "
                           "by 255")
    return levels.astype(np.uint8)
