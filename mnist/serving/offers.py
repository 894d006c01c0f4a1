"""uvicorn's HTTP over httptools, with offers to speak another protocol ignored.

Java's HttpClient and `curl --http2` offer HTTP/2 with every request (RFC 7540, 3.2). httptools
takes that for the end of HTTP and drops the request's body; so the offer is taken out before.
"""

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OFFER = re.compile(rb"([A-Z]+ [^\r\n]+ HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*?)upgrade:[^\r\n]*\r\n",
                   re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """A connection."""

    def data_received(self, data):
        super().data_received(OFFER.sub(rb"\1", data, 1) if OFFER.match(data) else data)
