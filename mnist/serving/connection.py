"""uvicorn, but for two things.

Offers to speak another protocol are ignored. Java's HttpClient and `curl --http2` offer HTTP/2 with
every request (RFC 7540, 3.2); httptools takes that for the end of HTTP and drops the request's
body, so the offer is taken out before it is read.

When the server ends, uvicorn closes an idle connection at once, and loses a request that came since
it last looked. Here each connection has a moment first, in which its next answer is said to be its
last.
"""

import asyncio
import re

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

OFFER = re.compile(rb"([A-Z]+ [^\r\n]+ HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*?)upgrade:[^\r\n]*\r\n",
                   re.IGNORECASE)
LAST_MOMENT = 0.1  # seconds


def make_connection(**settings):
    """uvicorn's connection, as its `Config.http` wants it; over h11 where httptools isn't there."""
    connection = AutoHTTPProtocol(**settings)
    read = connection.data_received

    def data_received(data):
        read(OFFER.sub(rb"\1", data, 1) if OFFER.match(data) else data)

    connection.data_received = data_received
    return connection


class Server(uvicorn.Server):
    """uvicorn's server, of an `mnist.serving.app.Application`."""

    async def shutdown(self, sockets=None):
        for server in self.servers:
            server.close()
        self.config.app.ending.set()
        await asyncio.sleep(LAST_MOMENT)
        await super().shutdown(sockets)
