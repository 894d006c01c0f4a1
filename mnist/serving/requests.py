"""HTTP requests and responses, and what a request may be and take.

A body's size is limited, and that of all bodies together; it has to come within its time. Pages of
other sites can't use the server: there is no CORS, the Host header has to name this server (or an
address, which no other site's name can be made to mean: DNS rebinding), and where a browser says
from which page a request comes, that has to be on a host that may call this server.
"""

import asyncio
import ipaddress
import time
import urllib.parse
import zlib

import orjson

from mnist.serving.protocol import RequestError

BODY = 16 << 20  # bytes of one body, decompressed
BODIES = 128 << 20  # bytes of all bodies that are being received or answered
BODY_SECONDS = 10  # for a body to come, and one more for each RATE bytes
RATE = 10000
JSON, BINARY = b"application/json", b"application/octet-stream"
SECURITY = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"),
            (b"cross-origin-resource-policy", b"same-origin")]  # what a page may, the page says


class Request:
    """A request, its body not yet received.

    method, path  text, the path decoded
    query         {name: value}, text
    headers       {name in lower case: value}, bytes
    kind          what is counted for `/metrics`: "infer", "page", "other"
    """

    def __init__(self, scope, receive):
        self.method, self.path = scope["method"], scope["path"]
        query = scope["query_string"]
        self.query = dict(urllib.parse.parse_qsl(query.decode("latin-1"))) if query else {}
        self.headers = dict(scope["headers"])
        self.receive, self.room, self.kind = receive, 0, "other"


class Response:
    """What a request is answered with."""

    def __init__(self, body, content_type=JSON, status=200, headers=()):
        self.body, self.content_type = body, content_type
        self.status, self.headers = status, headers


def as_json(record):
    """A `Response` with a record as JSON."""
    return Response(orjson.dumps(record))


def refusal(error):
    """The `Response` that says what was wrong; of any other exception than RequestError 500."""
    if not isinstance(error, RequestError):
        error = RequestError(f"{type(error).__name__}: {error}", 500)
    headers = [(name.replace("_", "-").encode(), value.encode())
               for name, value in error.headers.items()]
    return Response(orjson.dumps({"error": str(error)}), JSON, error.status, headers)


# --- Who may ask ----------------------------------------------------------------------------------


class Gate:
    """Refuses, with 403, what a page of another site may have asked for.

    `names`: hosts besides addresses and localhost by which clients may call the server.
    """

    def __init__(self, names):
        self.names = {name.lower() for name in names} | {"localhost"}
        self.known = {}  # what was looked at already

    def check(self, headers):
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        if not self.may(b"//" + host):
            raise RequestError("the Host header doesn't name this server; where that name is its "
                               "own, start it with --allow-host NAME", 403)
        # A proxy may rewrite Host, or drop its port: hosts are compared, or the origin is allowed.
        if origin is not None and host_of(origin) != host_of(b"//" + host) \
                and not self.may(origin):
            raise RequestError("pages of other sites can't use this server; where that page is "
                               "its own, start it with --allow-host and the page's host", 403)

    def may(self, address):
        """Whether an address, as bytes, is of a host that may call the server."""
        if address not in self.known:
            if len(self.known) > 1000:
                self.known.clear()
            name = host_of(address)
            try:
                self.known[address] = name in self.names or bool(ipaddress.ip_address(name))
            except ValueError:
                self.known[address] = False
        return self.known[address]


def host_of(address):
    """The host in an address such as b"//example.org:80", in lower case; "" where there is none."""
    try:
        name = urllib.parse.urlsplit(address.decode("latin-1")).hostname or ""
    except ValueError:
        return ""
    return name[:-1] if name.endswith(".") else name


# --- Bodies ---------------------------------------------------------------------------------------


class Bodies:
    """Receives bodies within their limits; `reserved` bytes are held by requests right now."""

    def __init__(self):
        self.reserved = 0

    def reserve(self, request, size):
        """Make room for a body of so many bytes, or refuse it."""
        if size > BODY:
            raise RequestError(f"a body may have up to {BODY} bytes", 413)
        if self.reserved + size - request.room > BODIES:
            raise RequestError("too many large requests at once", 503, retry_after="1")
        self.reserved += size - request.room
        request.room = size

    async def read(self, request):
        """A request's body, decompressed. Raises RequestError, or ConnectionError where the client
        has gone."""
        length = request.headers.get(b"content-length", b"")
        if length.isdigit():
            self.reserve(request, int(length))
        inflate = decompressor(request.headers.get(b"content-encoding", b"identity").lower())
        message = await request.receive()
        if not message.get("more_body") and not inflate and message["type"] == "http.request":
            self.reserve(request, len(message["body"]))
            return message["body"]  # as almost always: it came at once
        chunks, size, deadline = [], 0, time.monotonic() + BODY_SECONDS
        while True:
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client has gone")
            chunk = message.get("body", b"")
            deadline += len(chunk) / RATE
            try:
                chunk = inflate.decompress(chunk, BODY + 1 - size) if inflate else chunk
            except zlib.error as error:
                raise RequestError(f"the compressed body is damaged: {error}") from error
            chunks.append(chunk)
            size += len(chunk)
            self.reserve(request, max(size, request.room))
            if not message.get("more_body"):
                break
            try:
                message = await asyncio.wait_for(request.receive(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                raise RequestError("the request took too long", 408) from None
        if inflate and (not inflate.eof or inflate.unused_data):
            raise RequestError("the compressed body is damaged")
        return b"".join(chunks)


def decompressor(encoding):
    """What decompresses a body of a Content-Encoding; None for one as it is."""
    if encoding in (b"gzip", b"x-gzip", b"deflate"):
        return zlib.decompressobj(15 if encoding == b"deflate" else 31)
    if encoding != b"identity":
        raise RequestError("a body may be compressed by gzip or deflate", 415,
                           accept_encoding="gzip, deflate")
    return None
