"""Files written whole or not at all, digests, and where the project lies."""

import contextlib
import hashlib
import json
import os
import sys

from mnist.errors import MNISTError, UnavailableError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # where the programs lie


@contextlib.contextmanager
def write_atomically(path):
    """Give a binary file that becomes `path` on success and vanishes on any failure.

    It is written under a temporary name in the same folder, flushed to the disk, then renamed: a
    crash or a kill at any moment leaves the old file or the new one, whole. A pipe or a device is
    written into as it is.
    """
    if is_stream(path):
        with open(path, "wb") as file:
            yield file
        return
    path = os.path.realpath(path)
    if os.path.isdir(path):
        raise UnavailableError(f"{path} is a folder, not a file to write")
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            raise MNISTError(f"can't write {path}: {error.strerror}") from error
        raise


def is_stream(path):
    """Whether `path` is a pipe, a device or the like, which can't be replaced by a file."""
    path = os.path.abspath(path)
    return os.path.exists(path) and (path.startswith("/dev/") or not (
        os.path.isfile(path) or os.path.isdir(path)))


def check_writable(flag, path):
    """Raise UnavailableError where the file of a flag can't be written: before the work, not after
    it. None and "-" (stdout) are fine."""
    if path in (None, "-") or is_stream(path):
        return
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise UnavailableError(f"{flag} {path} is a folder, not a file")
    if not os.path.isdir(folder):
        raise UnavailableError(f"{flag} {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UnavailableError(f"{flag} {path}: no permission to write in {folder}")


def digest(content):
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def save_json(path, record):
    """Write `record` as JSON to `path`, or to stdout where `path` is "-"."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    if path == "-":
        sys.__stdout__.write(text)
        return
    with write_atomically(path) as file:
        file.write(text.encode())
