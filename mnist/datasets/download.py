"""Image sets fetched: MNIST's files from the first mirror that has them, others by torchvision."""

import http.client
import os
import socket
import sys

from mnist.errors import DataError

# Where MNIST is downloaded from, tried in this order.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://azureopendatastorage.blob.core.windows.net/mnist/",
)

# What makes a download MNIST: the digest of each file as it is there.
SHA256 = {
    "train-images-idx3-ubyte.gz":
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz":
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz":
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz":
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

TIMEOUT = 10  # seconds for a mirror to answer, and without a byte from it


def fetch(name, folder):
    """Download one of MNIST's files into `folder`, as name.gz, from the first mirror that has it.

    The file appears there whole and verified or not at all. Raises DataError with what was tried.
    """
    import torch
    name += ".gz"
    failures, timeout = [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch would wait for ever
    try:
        os.makedirs(folder, exist_ok=True)
        for url in (mirror + name for mirror in MIRRORS):
            print(f"downloading {url}", file=sys.stderr, flush=True)
            try:
                torch.hub.download_url_to_file(url, os.path.join(folder, name), SHA256[name],
                                               progress=sys.stderr.isatty())
                return
            # urllib's errors are OSErrors; a wrong digest is a RuntimeError
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                reason = (str(error).strip("<>") or type(error).__name__).split("\n")[0]
                failures.append(f"\n  {url}: {reason}")
    except OSError as error:
        failures.append(f" {error}")
    finally:
        socket.setdefaulttimeout(timeout)
    raise DataError(
        f"{folder} doesn't hold MNIST, and it couldn't be downloaded:" + "".join(failures)
        + f"\nBy hand: get {', '.join(sorted(SHA256))}"
        + f"\nfrom one of these addresses and put them into {folder} as they are, or into any "
        "folder that you name with --data-dir or MNIST_DATA.")


def fetch_by_torchvision(image_set, dataset, folder, **settings):
    """Have torchvision's `dataset` (its name there) of an image set downloaded into `folder`; the
    `settings` are the dataset's own.

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
