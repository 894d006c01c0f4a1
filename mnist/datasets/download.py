"""Image sets fetched: MNIST's files from the first mirror that has them, others by torchvision."""

import gzip
import http.client
import io
import os
import sys
import time
import urllib.request
import zlib

from mnist.cli import show_progress
from mnist.datasets.idx import read_at_most
from mnist.errors import DataError, MNISTError
from mnist.files import digest, write_atomically

# Where MNIST is downloaded from, gzipped, tried in this order.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://azureopendatastorage.blob.core.windows.net/mnist/",
)

# What makes a download MNIST: the digest of each file, decompressed.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

TIMEOUT = 10  # seconds for a mirror to answer, and without a byte from it
SLOWEST = 10000  # bytes per second; a slower mirror is given up
MAX_DOWNLOAD = 16 << 20  # bytes; the largest of the files has 9.9 million
MAX_FILE = 48 << 20  # bytes; decompressed, it has 47 million


# --- By torchvision -------------------------------------------------------------------------------


def fetch_by_torchvision(image_set, dataset, folder, split, **settings):
    """Have torchvision's `dataset` (its name there) of an image set downloaded into `folder`.

    It holds each file against its MD5. Raises DataError, saying how to get it by hand.
    """
    by_hand = (f"By hand: put its files into {folder}, or into any folder that you name with "
               "--data-dir; data/README.md says which, and where they are.")
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f"{folder} doesn't hold {image_set}, and downloading it needs torchvision\n"
                        + by_hand) from error
    print(f"downloading {image_set} into {folder}", file=sys.stderr, flush=True)
    try:
        os.makedirs(folder, exist_ok=True)
        getattr(datasets, dataset)(folder, download=True, **settings)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(f"{folder} doesn't hold {image_set}, and it couldn't be downloaded: "
                        + str(error).split("\n")[0] + "\n" + by_hand) from error


# --- MNIST ----------------------------------------------------------------------------------------


def fetch(name, folder):
    """Download one of MNIST's files into `folder`, as name.gz, from the first mirror that has it.

    The file appears there whole and verified or not at all. Raises DataError with what was tried.
    """
    failures = []
    for mirror in MIRRORS:
        url = mirror + name + ".gz"
        try:
            content = download(url)
            verify(content, name)
        # urllib's errors are OSErrors; a bad address in a redirect is a ValueError
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = (str(error).strip("<>") or type(error).__name__).split("\n")[0]
            failures.append(f"\n  {url}: {reason}")
            continue
        try:
            os.makedirs(folder, exist_ok=True)
            with write_atomically(os.path.join(folder, name + ".gz")) as file:
                file.write(content)
            return
        except (OSError, MNISTError) as error:
            raise DataError(f"downloaded {name}.gz, but can't keep it: {error}") from error
    raise DataError(
        f"{folder} doesn't hold MNIST, and it couldn't be downloaded:" + "".join(failures)
        + "\nBy hand: get " + ", ".join(sorted(name + ".gz" for name in SHA256))
        + f"\nfrom one of these addresses and put them into {folder} as they are, or into any "
        "folder that you name with --data-dir or MNIST_DATA.")


def download(url):
    """The bytes at `url`. Raises OSError, ValueError or http.client.HTTPException."""
    print(f"downloading {url}", file=sys.stderr, flush=True)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return read_response(response)
    finally:
        show_progress(None)


def read_response(response):
    """The bytes of an HTTP response; raises as `download` does."""
    start = time.monotonic()
    content = bytearray()
    total = int(response.headers.get("Content-Length") or 0)
    while not total or len(content) < total:
        chunk = response.read1(1 << 16)  # what has come; read() could wait for ever on a drip
        if not chunk:
            break
        content += chunk
        if total:
            show_progress(len(content) / total, f"{len(content) / 1e6:.1f} MB")
        if len(content) > MAX_DOWNLOAD:
            raise OSError(f"more than {MAX_DOWNLOAD} bytes: that is not MNIST")
        if time.monotonic() - start > TIMEOUT + len(content) / SLOWEST:
            raise OSError(f"too slow: {len(content)} bytes in {TIMEOUT} s")
    if len(content) < total:
        raise OSError(f"broke off after {len(content)} of {total} bytes")
    return content


def verify(content, name):
    """Raise OSError unless the gzipped `content` is MNIST's file `name`."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            found = digest(read_at_most(file, MAX_FILE))
    except (OSError, EOFError, zlib.error) as error:
        raise OSError(f"not a whole gzip file ({error})") from error
    if found != SHA256[name]:
        raise OSError(f"not MNIST's {name}: SHA-256 {found}")
