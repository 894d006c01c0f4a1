"""Errors with exit status, and warnings."""

import importlib
import sys


class MNISTError(Exception):
    """The work failed. The message is one or two lines that say what and what to do."""

    exit_status = 1


class UnavailableError(MNISTError):
    """An invalid request: a bad flag, a missing engine or file."""

    exit_status = 2


class DataError(UnavailableError):
    """An image set is not where it was said to be, or isn't available at all."""


def warn(text):
    """Print one warning line on stderr."""
    print("warning: " + text, file=sys.stderr, flush=True)


def describe_error(error):
    """One or two lines for an error that a user can mend."""
    if isinstance(error, ModuleNotFoundError):
        return f"this needs {error.name}, which isn't installed: pip install {error.name}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    if isinstance(error, MNISTError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def package_missing(name):
    """Why a package can't be imported, with the remedy; None where it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # broken installations raise much beside ImportError
        if isinstance(error, ImportError) and error.name == name:
            return f"{name} is not installed; pip install {name}"
        return f"{name} can't be imported: " + str(error).strip().split("\n")[0]
    return None
