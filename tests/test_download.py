"""Downloading MNIST from mirrors that fail in every way, served on 127.0.0.1."""

import gzip
import hashlib
import http.server
import os
import socket
import struct
import threading

import numpy as np
import pytest
from conftest import idx_bytes

import MNISTdsource
from mnist.datasets import download, idx
from mnist.errors import DataError
from MNISTdsource import load_split

NAMES = idx.MNIST_FILES["test"]
FILES = {
    NAMES[0]: idx_bytes(np.random.RandomState(0).randint(0, 256, (50, 28, 28)).astype(np.uint8)),
    NAMES[1]: idx_bytes(np.arange(50, dtype=np.uint8) % 10),
}
ZIPPED = {name + ".gz": gzip.compress(content) for name, content in FILES.items()}


class Mirror(http.server.BaseHTTPRequestHandler):
    """A mirror whose first folder names its fault: /stall/t10k-images-idx3-ubyte.gz."""

    def do_GET(self):
        _, fault, name = self.path.split("/")
        self.server.asked.append((fault, name))
        getattr(self, fault)(ZIPPED[name])

    def reply(self, content, status=200, length=None):
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def good(self, content):
        self.reply(content)

    def missing(self, content):
        self.reply(b"gone", status=404)

    def truncated(self, content):
        self.reply(content[:len(content) // 2], length=len(content))

    def wrong(self, content):
        """Another file of the right length that unzips to the right length too."""
        plain = gzip.decompress(content)
        self.reply(gzip.compress(plain[:-1] + bytes([plain[-1] ^ 1]))[:len(content)])

    def stall(self, content):
        self.reply(content[:20], length=len(content))
        self.server.over.wait(20)

    def reset(self, content):
        self.reply(content[:len(content) // 2], length=len(content))
        # A socket closed with linger 0 sends a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *arguments):
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """The tests break connections on purpose."""


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A running server; its `mirrors(*faults)` makes these the mirrors, in this order."""
    server = QuietServer(("127.0.0.1", 0), Mirror)
    server.asked, server.over = [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    server.mirrors = lambda *faults: monkeypatch.setattr(
        download, "MIRRORS", tuple(server.url + fault + "/" for fault in faults))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.delenv("MNIST_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNISTdsource, "DEFAULT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(download, "TIMEOUT", 1)
    monkeypatch.setattr(download, "SHA256", {
        name: hashlib.sha256(content).hexdigest() for name, content in ZIPPED.items()})
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def names_in(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


@pytest.mark.parametrize("fault, words", [
    ("missing", "404"), ("truncated", "invalid hash value"), ("wrong", "invalid hash value"),
    ("stall", "timed out"), ("reset", "[Rr]eset")])
def test_a_fault_is_told_with_the_steps_by_hand_and_the_next_mirror_asked(
        server, tmp_path, fault, words):
    server.mirrors(fault)
    with pytest.raises(DataError, match=words) as caught:
        load_split("test")
    message = str(caught.value)
    assert server.url + fault + "/" + NAMES[0] + ".gz: " in message
    assert all(name in message.split("By hand")[1] for name in ZIPPED)
    assert str(tmp_path / "data") in message and "MNIST_DATA" in message
    assert names_in(tmp_path / "data") == []
    server.mirrors(fault, "good")
    images, labels = load_split("test")
    assert images.tobytes() == FILES[NAMES[0]][16:] and labels.tolist() == list(FILES[NAMES[1]][8:])
    assert names_in(tmp_path / "data") == sorted(ZIPPED)  # and nothing half-written beside them


def test_what_is_there_is_not_downloaded_again(server, tmp_path):
    server.mirrors("good")
    load_split("test")
    (tmp_path / "data" / (NAMES[1] + ".gz")).unlink()
    server.asked.clear()
    load_split("test")
    assert server.asked == [("good", NAMES[1] + ".gz")]


def test_nothing_is_downloaded_unasked(server, tmp_path):
    server.mirrors("good")
    (tmp_path / "named").mkdir()
    with pytest.raises(DataError):
        load_split("test", str(tmp_path / "named"))
    with pytest.raises(DataError):
        load_split("test", download=False)
    assert server.asked == [] and names_in(tmp_path / "named") == []


def test_a_damaged_file_in_data_is_an_error_not_a_download(server, tmp_path):
    server.mirrors("good")
    load_split("test")
    (tmp_path / "data" / (NAMES[0] + ".gz")).write_bytes(b"damaged")
    server.asked.clear()
    with pytest.raises(idx.IdxError, match=NAMES[0]):
        load_split("test")
    assert server.asked == []


def test_a_folder_that_cannot_be_written_says_so(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(MNISTdsource, "DEFAULT_DATA_DIR", str(tmp_path / "file"))
    server.mirrors("good")
    with pytest.raises(DataError, match="couldn't be downloaded: .*File exists"):
        load_split("test")


def test_progress_is_one_line_each_off_a_terminal(server, capsys):
    server.mirrors("good")
    load_split("test")
    assert capsys.readouterr().err.splitlines() == [
        f"downloading {server.url}good/{name}" for name in ZIPPED]
