"""A connection: uvicorn's HTTP over httptools, but for two things.

Offers to speak another protocol are ignored. Java's HttpClient and `curl --http2` offer HTTP/2 with
every request (RFC 7540, 3.2); httptools takes that for the end of HTTP and drops the request's
body, so the offer is taken out before.

When the server ends, uvicorn closes an idle connection at once, and loses a request that came since
it last looked. Here it looks once more.
"""

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OFFER = re.compile(rb"([A-Z]+ [^\r\n]+ HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*?)upgrade:[^\r\n]*\r\n",
                   re.IGNORECASE)
LAST_LOOK = 0.05  # seconds


class Protocol(HttpToolsProtocol):
    """A connection."""

    ending = False

    def data_received(self, data):
        super().data_received(OFFER.sub(rb"\1", data, 1) if OFFER.match(data) else data)

    def on_headers_complete(self):
        super().on_headers_complete()
        if self.ending:
            self.cycle.keep_alive = False

    def shutdown(self):
        self.ending = True
        if self.cycle and not self.cycle.response_complete:
            super().shutdown()
        else:
            self.loop.call_later(LAST_LOOK, super().shutdown)
