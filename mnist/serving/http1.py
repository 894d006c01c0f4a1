"""A small HTTP/1.1 server for short requests and short answers, all of it bounded.

httptools (Node.js' parser) reads, asyncio carries. A request is given to the application whole, its
body decompressed; the application answers it at once or later, by `Request.answer`. Requests of one
connection are answered one after the other. What keeps a stranger from using it up: `Limits`.

Pages of other sites can't use it: there is no CORS, the Host header has to name this server (or
an address, which no other site's name can be made to mean: DNS rebinding), and where a browser says
from which page a request comes, that has to be one of this server's.
"""

import asyncio
import collections
import email.utils
import http
import ipaddress
import os
import socket
import time
import urllib.parse
import zlib

import httptools
import orjson

from mnist.errors import UnavailableError
from mnist.serving.protocol import RequestError

Limits = collections.namedtuple("Limits", "connections head body bodies grace rate idle")
Limits.__doc__ = """What a server takes, beyond which it answers 4xx or 503.

connections  open ones
head         bytes of a request's line and headers
body         bytes of one body, decompressed
bodies       bytes of all bodies that are being received or answered
grace, rate  a request has to be there, and an answer fetched, in `grace` seconds and one more for
             each `rate` bytes
idle         seconds that a connection may stay open without a request
"""
LIMITS = Limits(connections=1000, head=16 << 10, body=16 << 20, bodies=128 << 20, grace=10,
                rate=10000, idle=75)

LINGER = 1.0  # seconds in which a connection's last words are still read
PIPELINE = 16  # requests of a connection that may wait for their turn while more is read
JSON, TEXT = b"application/json", b"text/plain; charset=utf-8"
BINARY, HTML = b"application/octet-stream", b"text/html; charset=utf-8"
# For every answer. What a page may do is said with the page.
SECURITY = (b"X-Content-Type-Options: nosniff\r\nCross-Origin-Resource-Policy: same-origin\r\n"
            b"Cache-Control: no-store\r\n")
STATUS_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode())
                for status in http.HTTPStatus}
HEADERS_ONCE = (b"host", b"origin", b"content-encoding", b"inference-header-content-length")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SWEEP = 0.5  # seconds between looks for connections that are overdue
NO_UPGRADE = RequestError("this server speaks HTTP/1.1 alone")
TOO_LONG = RequestError("the headers are too long", 431)


class Request:
    """A request. The application gets it whole, once it is its turn on its connection.

    method   text, such as "GET"
    path     text, decoded, without the query
    query    {name: value}, text
    headers  {name in lower case: value}, bytes
    body     bytes, decompressed
    kind     what the application may note here, for `HttpServer.on_answer`
    on_gone  what the application may set: called where the client has gone before the answer
    """

    __slots__ = ("connection", "method", "path", "query", "headers", "body", "kind", "on_gone",
                 "error", "keep_alive", "arrived", "url", "chunks", "size", "room", "inflate")

    def __init__(self, connection):
        self.connection = connection
        self.method = self.path = "-"
        self.headers = {}
        self.kind = "other"
        self.url = self.body = b""
        self.chunks = []
        self.size = 0  # bytes of body that have come
        self.room = 0  # bytes of body that have been reserved
        self.keep_alive = False
        self.on_gone = self.error = self.inflate = None

    def answer(self, body, content_type=JSON, status=200, headers=()):
        """Send the answer. `headers`: more of them, pairs of bytes."""
        self.connection.send_answer(self, body, content_type, status, headers)

    def answer_json(self, record):
        """Send `record` as JSON."""
        self.answer(orjson.dumps(record))

    def refuse(self, error):
        """Answer with an error: a RequestError's own status, or 500 for any other exception."""
        if not isinstance(error, RequestError):
            error = RequestError(f"{type(error).__name__}: {error}", 500)
        headers = [(name.replace("_", "-").title().encode(), value.encode())
                   for name, value in error.headers.items()]
        self.answer(orjson.dumps({"error": str(error)}), JSON, error.status, headers)


class Connection(asyncio.Protocol):
    """One client's connection; `server` is an `HttpServer`."""

    def __init__(self, server):
        self.server, self.limits = server, server.limits
        self.parser = httptools.HttpRequestParser(self)
        self.transport = None
        self.incoming = None  # the request that is being received
        self.head = 0  # bytes of its line and headers
        self.received = 0  # bytes of it that came after its first packet
        self.waiting = collections.deque()  # whole requests
        self.current = None  # the one that is being answered
        self.closing = False  # nothing more is read
        self.finished = False  # the last answer has been sent
        self.writable = True
        self.unsent = 0  # bytes of an answer that the client doesn't fetch, reserved
        self.since = time.monotonic()  # when what it does now began

    # Called by asyncio

    def connection_made(self, transport):
        self.transport = transport
        self.server.connections.add(self)
        if len(self.server.connections) > self.limits.connections:
            self.break_off(RequestError("too many connections", 503, retry_after="1"))

    def connection_lost(self, error):
        self.server.connections.discard(self)
        self.closing = True
        current, self.current = self.current, None
        for request in (current, self.incoming, *self.waiting):
            if request:
                self.server.reserved -= request.room
        self.server.reserved -= self.unsent
        self.waiting.clear()
        if current and current.on_gone:
            current.on_gone()

    def pause_writing(self):
        self.writable = False

    def resume_writing(self):
        self.writable = True
        self.server.reserved -= self.unsent
        self.unsent = 0
        self.since = time.monotonic()
        self.next_request()

    def data_received(self, data):
        if self.closing:
            return
        if self.incoming:
            self.received += len(data)
        try:
            self.parser.feed_data(data)
            if self.incoming and not self.head and self.received > self.limits.head:
                raise TOO_LONG
        except RequestError as error:
            self.break_off(error)
        except httptools.HttpParserUpgrade:
            self.break_off(NO_UPGRADE)
        except httptools.HttpParserError as error:  # it wraps what our own callbacks raise
            cause = error.__context__
            self.break_off(cause if isinstance(cause, RequestError) else
                           RequestError(f"not HTTP: {error}"))

    # Called by the parser

    def on_message_begin(self):
        self.incoming = Request(self)
        self.received = 0
        self.since = time.monotonic()

    def on_url(self, url):
        self.incoming.url += url

    def on_header(self, name, value):
        headers, name = self.incoming.headers, name.lower()
        if name in headers and name in HEADERS_ONCE:
            raise RequestError(f"more than one header {name.decode('latin-1')}")
        headers[name] = value

    def on_headers_complete(self):
        request = self.incoming
        headers = request.headers
        self.head = len(request.url) + sum(map(len, headers)) + sum(map(len, headers.values()))
        if self.head > self.limits.head:
            raise TOO_LONG
        if self.parser.should_upgrade():
            raise NO_UPGRADE
        request.method = self.parser.get_method().decode("latin-1")
        self.server.check_origin(headers, self.parser.get_http_version())
        length = headers.get(b"content-length")
        if length is not None:
            self.reserve(request, int(length))
        encoding = headers.get(b"content-encoding", b"identity").lower()
        if encoding in (b"gzip", b"deflate"):
            request.inflate = zlib.decompressobj(31 if encoding == b"gzip" else 15)
        elif encoding != b"identity":
            raise RequestError("a body may be compressed by gzip or deflate", 415,
                               accept_encoding="gzip, deflate")
        if headers.get(b"expect", b"").lower() == b"100-continue" and not self.current:
            self.transport.write(CONTINUE)

    def reserve(self, request, size):
        """Make room for a body of so many bytes, or refuse it."""
        if size > self.limits.body:
            raise RequestError(f"a body may have up to {self.limits.body} bytes", 413)
        if self.server.reserved + size - request.room > self.limits.bodies:
            raise RequestError("too many large requests at once", 503, retry_after="1")
        self.server.reserved += size - request.room
        request.room = size

    def on_body(self, data):
        request = self.incoming
        if request.inflate:
            try:
                data = request.inflate.decompress(data, self.limits.body + 1 - request.size)
            except zlib.error as error:
                raise RequestError(f"the compressed body is damaged: {error}") from error
        request.size += len(data)
        if request.size > request.room:  # of no announced length, or compressed
            self.reserve(request, request.size)
        request.chunks.append(data)

    def on_message_complete(self):
        request = self.incoming
        if request.inflate and (not request.inflate.eof or request.inflate.unused_data):
            raise RequestError("the compressed body is damaged")
        path, _, query = request.url.partition(b"?")
        request.path = path.decode("latin-1")
        if "%" in request.path:
            request.path = urllib.parse.unquote(request.path)
        request.query = dict(urllib.parse.parse_qsl(query.decode("latin-1"))) if query else {}
        request.body = (request.chunks[0] if len(request.chunks) == 1 else
                        b"".join(request.chunks))
        request.chunks = None
        request.keep_alive = (self.parser.should_keep_alive()
                              and self.parser.get_http_version() == "1.1")
        self.enqueue()

    # Answers

    def break_off(self, error):
        """Answer, when it is its turn, that nothing more can be read, and close."""
        self.closing = True
        if not self.incoming:
            self.incoming = Request(self)
        self.incoming.error = error
        self.incoming.chunks = None
        self.enqueue()

    def enqueue(self):
        """The incoming request is as whole as it will be."""
        request, self.incoming, self.head = self.incoming, None, 0
        if self.finished:  # it came in one packet with the last one that is answered
            self.server.reserved -= request.room
            return
        self.waiting.append(request)
        if len(self.waiting) == PIPELINE + 1:
            self.transport.pause_reading()
        self.next_request()

    def next_request(self):
        """Give the next request to the application, if it is its turn."""
        if not self.waiting or self.current or not self.writable:
            return
        self.current = request = self.waiting.popleft()
        request.arrived = time.perf_counter()
        if request.error:
            request.refuse(request.error)
        else:
            self.server.application(request)
        if len(self.waiting) == PIPELINE and not self.closing:
            self.transport.resume_reading()

    def send_answer(self, request, body, content_type, status, headers):
        """Send the answer to the current request."""
        if self.current is not request:
            return  # its client has gone
        self.current = None
        self.server.reserved -= request.room
        last = not request.keep_alive or self.server.stopping or self.closing
        last = last and not self.waiting
        parts = [STATUS_LINES[status], self.server.date, SECURITY, b"Content-Type: ", content_type,
                 b"\r\nContent-Length: %d\r\n" % len(body)]
        parts.extend(b"%s: %s\r\n" % pair for pair in headers)
        parts.append(b"Connection: close\r\n\r\n" if last else b"\r\n")
        if request.method != "HEAD":
            parts.append(body)
        self.transport.write(b"".join(parts))
        self.server.on_answer(request, status, len(body))
        self.since = time.monotonic()
        if not self.writable:
            self.unsent = self.transport.get_write_buffer_size()
            self.server.reserved += self.unsent
        if last:
            # What the client still sends is read and thrown away for a moment: closing at once
            # could make its system throw away the answer.
            self.closing = self.finished = True
            if not self.transport.is_closing():
                self.transport.write_eof()
        elif self.waiting:
            self.server.loop.call_soon(self.next_request)

    def overdue(self, now, stopping):
        """Whether the client has taken too long over what it does; `stopping`: since when."""
        passed = now - self.since
        if self.current:
            return False  # it waits for us
        if self.unsent:
            return passed > self.limits.grace + self.unsent / self.limits.rate
        if self.closing:
            return passed > LINGER
        if self.incoming:
            return passed > self.limits.grace + self.received / self.limits.rate
        return passed > self.limits.idle or (stopping and min(passed, now - stopping) > LINGER)

    def end(self):
        """End an overdue connection."""
        if self.incoming and not self.closing:
            self.break_off(RequestError("the request took too long", 408))
        else:
            self.transport.abort()


class HttpServer:
    """Carries requests to `application(request)`, which answers each, at once or later.

    `names`: hosts besides addresses and localhost by which clients may call this server.
    `on_answer(request, status, bytes)` is called after each answer, also those to what never
    became a request.
    """

    def __init__(self, application, names=(), limits=LIMITS, on_answer=lambda *_: None):
        self.application, self.limits, self.on_answer = application, limits, on_answer
        self.names = {name.lower() for name in names} | {"localhost"}
        self.loop = asyncio.get_event_loop()
        self.connections = set()
        self.reserved = 0  # bytes of bodies and answers
        self.stopping = None  # since when
        self.listener = None
        self.hosts = {}  # Host header: whether it names us

    async def start(self, sock):
        """Listen on a bound socket."""
        self.listener = await self.loop.create_server(lambda: Connection(self), sock=sock,
                                                      backlog=1024)
        self.sweep()

    def sweep(self):
        """End connections that are overdue, twice a second; refresh the Date header."""
        self.date = b"Date: %s\r\n" % email.utils.formatdate(usegmt=True).encode()
        now = time.monotonic()
        for connection in [c for c in self.connections if c.overdue(now, self.stopping)]:
            connection.end()
        self.sweeping = self.loop.call_later(SWEEP, self.sweep)

    async def stop(self, seconds):
        """Take no new connections, answer what has come, close; after `seconds` in any case."""
        self.stopping = time.monotonic()
        self.listener.close()
        while self.connections and time.monotonic() < self.stopping + seconds:
            await asyncio.sleep(0.02)
        self.sweeping.cancel()
        for connection in list(self.connections):
            connection.transport.abort()

    def check_origin(self, headers, version):
        """Raise RequestError, 403, for a request that another site's page may have made."""
        host = headers.get(b"host")
        if host is None:
            if version != "1.0":
                raise RequestError("no Host header")
        elif not self.is_ours(host):
            raise RequestError("the Host header doesn't name this server (--allow-host)", 403)
        origin = headers.get(b"origin")
        if origin is not None and (not host or origin not in (b"http://" + host,
                                                              b"https://" + host)):
            raise RequestError("pages of other sites can't use this server", 403)

    def is_ours(self, host):
        """Whether a Host header names this server, by an address or one of its names."""
        known = self.hosts.get(host)
        if known is None:
            try:
                name = urllib.parse.urlsplit("//" + host.decode("latin-1")).hostname or ""
                known = name in self.names or bool(ipaddress.ip_address(name))
            except ValueError:
                known = False
            if len(self.hosts) < 1000:
                self.hosts[host] = known
        return known


def bind(host, port, shared=False):
    """A socket bound to an address, not yet listening. `shared`: other processes may bind it too.

    Raises UnavailableError where it can't be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        raise UnavailableError(f"can't listen on {host} port {port}: {error.strerror}; "
                               "--port takes another") from error
    return sock
