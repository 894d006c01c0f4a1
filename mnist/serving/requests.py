"""HTTP requests and responses, and what a request may be and take.

A body's size is limited, and that of all bodies together; it has to come within its time. Pages of
other sites can't use the server: there is no CORS, the Host header has to name this server (or an
address, which no other site's name can be made to mean: DNS rebinding), and where a browser says
from which page a request comes, that has to be on a host that may call this server.
"""

import asyncio
import functools
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
WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}  # as zlib has them
JSON = b"application/json"
SECURITY = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"),
            (b"cross-origin-resource-policy", b"same-origin")]  # what a page may, the page says

current_task = getattr(asyncio, "current_task", None) or asyncio.Task.current_task  # Python 3.6


class Request:
    """A request, its body not yet received.

    method, path  text, the path decoded
    query         as it stands in the address, bytes
    headers       {name in lower case: value}, bytes
    body          bytes, once it was received
    room          how many bytes are reserved for it
    """

    def __init__(self, scope, receive):
        self.method, self.path = scope["method"], scope["path"]
        self.query, self.headers = scope["query_string"], dict(scope["headers"])
        self.receive, self.body, self.room = receive, b"", 0


class Response:
    """What a request is answered with."""

    def __init__(self, body, content_type=JSON, status=200, headers=()):
        self.body, self.status = body, status
        self.headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)),
                        *SECURITY, *headers]


def as_json(record):
    """A `Response` with a record as JSON."""
    return Response(orjson.dumps(record))


def refusal(error):
    """The `Response` that says what was wrong, a RequestError."""
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
        self.may = functools.lru_cache(1000)(self.may)

    def check(self, headers):
        """Raises RequestError where Host, or Origin where there is one, isn't of this server."""
        if not self.may(b"//" + headers.get(b"host", b"")):
            raise RequestError("the Host header doesn't name this server; where that name is its "
                               "own, start it with --allow-host NAME", 403)
        if not self.may(headers.get(b"origin", b"//localhost")):
            raise RequestError("pages of other sites can't use this server; where that page is "
                               "its own, start it with --allow-host and the page's host", 403)

    def may(self, address):
        """Whether an address such as b"//example.org:80" is of a host that may call the server."""
        try:
            name = (urllib.parse.urlsplit(address.decode("latin-1")).hostname or "").rstrip(".")
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


# --- Bodies ---------------------------------------------------------------------------------------


class Bodies:
    """Receives bodies within their limits; `reserved` bytes are held by requests right now."""

    def __init__(self):
        self.reserved = 0
        self.coming = {}  # the tasks that wait for a part of a body, and until when

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
        chunks, size, more, deadline = [], 0, True, time.monotonic() + BODY_SECONDS
        while more:
            message = await self.receive_until(deadline, request.receive)
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client has gone")
            chunk, more = message.get("body", b""), message.get("more_body")
            deadline += len(chunk) / RATE
            try:
                chunk = inflate.decompress(chunk, BODY + 1 - size) if inflate else chunk
            except zlib.error as error:
                raise RequestError(f"the compressed body is damaged: {error}") from error
            chunks.append(chunk)
            size += len(chunk)
            self.reserve(request, max(size, request.room))
        if inflate and (not inflate.eof or inflate.unused_data):
            raise RequestError("the compressed body is damaged")
        return b"".join(chunks)

    async def receive_until(self, deadline, receive):
        """What comes next of a body. Raises RequestError where that is too late."""
        task = current_task()
        self.coming[task] = deadline
        try:
            return await receive()
        except asyncio.CancelledError:
            raise RequestError("the request took too long", 408) from None
        finally:
            del self.coming[task]

    async def watch(self):
        """End the wait for what is late: a timer for each request would take longer."""
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for task in [task for task, deadline in self.coming.items() if deadline < now]:
                task.cancel()


def decompressor(encoding):
    """What decompresses a body of a Content-Encoding; None for one as it is."""
    if encoding == b"identity":
        return None
    if encoding not in WINDOW_BITS:
        raise RequestError("a body may be compressed by gzip or deflate", 415,
                           accept_encoding="gzip, deflate")
    return zlib.decompressobj(WINDOW_BITS[encoding])
