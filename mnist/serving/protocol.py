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
import struct

import numpy as np
import orjson

MODEL_VERSION = "1"
SERVER = {"name": "mnist", "version": "2", "extensions": [
    "binary_tensor_data", "classification", "model_configuration", "statistics"]}
DTYPES = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype("<f4")}
HEADER_CACHE = 512  # JSON headers kept parsed
LONGEST_CACHED = 1024  # bytes of a header that is kept


class RequestError(Exception):
    """A request that can't be answered, with the HTTP status that says so."""

    def __init__(self, text, status=400, **headers):
        super().__init__(text)
        self.status = status
        self.headers = headers


Header = collections.namedtuple("Header", "id datatype rows data binary classes timeout")
Header.__doc__ = """What the JSON of a request asks for.

id        text, or None
datatype  "UINT8" or "FP32"
rows      how many images
data      the list of numbers, flat or nested; None where they follow in binary
binary    whether the answer is wanted as a binary tensor
classes   how many of the likeliest classes are wanted, as text; 0 for the outputs themselves
timeout   seconds that the request may take, or None
"""


# --- A model's messages ---------------------------------------------------------------------------


class Protocol:
    """What a model takes and gives: requests read, responses written, metadata.

    image_set  the `mnist.datasets.image_set.ImageSet` of its network
    """

    def __init__(self, name, image_set, max_batch):
        self.name, self.max_batch = name, max_batch
        self.shape, self.wire_shape = tuple(image_set.shape), wire_shape(image_set)
        self.pixels = int(np.prod(self.shape))
        self.classes, self.output = image_set.classes, image_set.output_name
        self.has_classes = image_set.task == "classification"
        self.parse_cached = functools.lru_cache(HEADER_CACHE)(self.parse_header)

    # --- Requests ---------------------------------------------------------------------------------

    def read_request(self, body, header_length=None):
        """A request's `Header` and its images, uint8 (rows, C, H, W), from the bytes of its body.

        `header_length`: the bytes of JSON that begin it, where binary tensors follow; 0 where
        nothing but the images is there; None where all is JSON. Raises RequestError for what isn't
        a request.
        """
        if header_length == 0:
            text, rows = b"", max(1, len(body) // self.pixels)
            header = Header(None, "UINT8", rows, None, True, 0, None)
        else:
            text = body[:header_length]
            header = (self.parse_cached if len(text) <= LONGEST_CACHED else self.parse_header)(text)
        dtype, count = DTYPES[header.datatype], header.rows * self.pixels
        expected, there = count * dtype.itemsize * (header.data is None), len(body) - len(text)
        if there != expected:
            raise RequestError(f"{header.rows} images as {header.datatype}: {expected} bytes "
                               f"should follow the JSON, {there} are there")
        if header.data is None:
            numbers = np.frombuffer(body, dtype, count, len(text))
        else:
            numbers = flat_array(header.data)
        if numbers.size != count:
            raise RequestError(f"{header.rows} images have {count} numbers, data has "
                               f"{numbers.size}")
        levels = whole_levels(numbers, header.datatype)
        return header, levels.reshape((header.rows,) + self.shape)

    def parse_header(self, text):
        """The `Header` in the JSON of a request. Raises RequestError where it isn't one."""
        try:
            request = orjson.loads(text)
        except ValueError as error:
            raise RequestError(f"not JSON: {error}") from error
        tensor = only_tensor(request, "inputs", "image")
        datatype = field(tensor, "datatype", str)
        if datatype not in DTYPES:
            raise RequestError(f"image is UINT8 or FP32, not {datatype}")
        rows = self.rows_of(field(tensor, "shape", list))
        data = field(tensor, "data", list, None)
        size = field(field(tensor, "parameters", dict, {}), "binary_data_size", int, None)
        if (size is None) == (data is None):
            raise RequestError("image needs its numbers either as data or in binary, with "
                               "binary_data_size")
        parameters = field(request, "parameters", dict, {})
        timeout = field(parameters, "timeout", int, 0)
        return Header(field(request, "id", str, None), datatype, rows, data,
                      *self.wanted_output(request, parameters),
                      timeout=timeout / 1e6 if timeout > 0 else None)

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
        """(binary, classes) of the `Header`: how a request wants its output."""
        binary = field(parameters, "binary_data_output", bool, False)
        if not field(request, "outputs", list, []):
            return binary, 0
        wishes = field(only_tensor(request, "outputs", self.output), "parameters", dict, {})
        classes = field(wishes, "classification", int, 0)
        if classes < 0 or classes and not self.has_classes:
            raise RequestError("classification takes a positive number, of a classifier")
        return field(wishes, "binary_data", bool, binary), min(classes, len(self.classes))

    # --- Responses --------------------------------------------------------------------------------

    def write_response(self, header, outputs):
        """A response's bytes, and the length of its JSON where binary tensors follow (else None).

        `outputs` float32 (rows, K); `header` is the request's.
        """
        rows = len(outputs)
        texts = self.likeliest(outputs, header.classes) if header.classes else None
        if header.binary:
            tensor = outputs.astype("<f4", copy=False).tobytes() if texts is None else b"".join(
                struct.pack("<I", len(text)) + text for text in map(str.encode, texts))
            head = self.response(header, rows, parameters={"binary_data_size": len(tensor)})
            return head + tensor, len(head)
        data = np.ascontiguousarray(outputs, np.float32).reshape(-1) if texts is None else texts
        return self.response(header, rows, data=data), None

    def response(self, header, rows, **content):
        """The JSON of a response."""
        tensor = {"name": self.output, "datatype": "BYTES" if header.classes else "FP32",
                  "shape": [rows, header.classes or len(self.classes)], **content}
        response = {"model_name": self.name, "model_version": MODEL_VERSION, "outputs": [tensor]}
        if header.id is not None:
            response["id"] = header.id
        return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)

    def likeliest(self, log_probs, number):
        """The `number` likeliest classes of each row, likeliest first: texts "value:index:label".
        """
        return [f"{row[index]:f}:{index}:{self.classes[index]}" for row in log_probs
                for index in np.argsort(-row, kind="stable")[:number]]

    # --- Metadata ---------------------------------------------------------------------------------

    def metadata(self, platform):
        """The answer to GET /v2/models/NAME."""
        return {"name": self.name, "versions": [MODEL_VERSION], "platform": platform,
                "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *self.wire_shape]}],
                "outputs": [{"name": self.output, "datatype": "FP32",
                             "shape": [-1, len(self.classes)]}]}

    def config(self, platform):
        """The answer to GET /v2/models/NAME/config, Triton's model configuration as JSON."""
        return {"name": self.name, "platform": platform, "max_batch_size": self.max_batch,
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


NEEDED = object()


def field(record, key, kind, default=NEEDED):
    """`record[key]`, checked to be of a kind; `default` where it isn't there or null."""
    if type(record) is not dict:
        raise RequestError(f"{key} is looked for in what is no JSON object")
    value = record.get(key)
    if value is None and default is not NEEDED:
        return default
    if type(value) is not kind:
        raise RequestError(f"{key} is missing" if value is None else
                           f"{key} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def only_tensor(request, key, name):
    """The one tensor among a request's "inputs" or "outputs"."""
    tensors = field(request, key, list)
    if len(tensors) != 1 or field(tensors[0], "name", str) != name:
        raise RequestError(f"{key}: this model has one, {name}")
    return tensors[0]


def flat_array(data):
    """The numbers of a list, flat or nested, as an array (N,)."""
    try:
        return np.frombuffer(bytes(data), np.uint8)  # by far the quickest, where it is flat
    except (TypeError, ValueError):
        pass
    try:
        return np.array(data, np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise RequestError("data is a list of numbers, flat or nested evenly") from error


def whole_levels(numbers, datatype):
    """Numbers from 0 to 255, (N,), rounded to uint8. Raises RequestError for others, and for what
    has been scaled to 0…1, which would be read as black."""
    if numbers.dtype == np.uint8:
        return numbers
    levels = np.rint(numbers)
    fractions = (levels != numbers).any()
    whole = datatype == "UINT8"
    inside = numbers.min() >= 0 and numbers.max() <= 255  # NaN isn't
    if not inside or whole and fractions:
        raise RequestError(f"{datatype} takes {'whole ' * whole}numbers from 0 to 255")
    if fractions and numbers.max() <= 1:
        raise RequestError("FP32 takes numbers from 0 to 255; these go from 0 to 1: multiply them "
                           "by 255")
    return levels.astype(np.uint8)
