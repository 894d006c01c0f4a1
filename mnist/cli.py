"""What all programs share: flags, progress, errors as exit status.

Imports the standard library alone, so that `--help` answers at once.
"""

import argparse
import io
import math
import os
import sys

from mnist.errors import MNISTError, describe_error


def show_progress(done, text=""):
    """A bar on stderr that is overwritten in place; `done` from 0 to 1, None removes the bar.

    Where stderr isn't a terminal there is no bar.
    """
    if not sys.stderr.isatty():
        return
    if done is None:
        sys.stderr.write("\r\033[K")
    else:
        filled = int(done * 30)
        sys.stderr.write(f"\r{text} [{'#' * filled}{'.' * (30 - filled)}] {done:4.0%}")
    sys.stderr.flush()


def run_program(main):
    """Run `main()` as a program, with its exit status.

    0 done; 1 the work failed (also where `main` returns 1); 2 an invalid request; 130 interrupted
    by Ctrl-C. An error that a user can mend is one or two lines; any other shows its traceback.
    """
    for name in ("stdout", "stderr"):
        make_printable(name)
    try:
        status = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except (MNISTError, ModuleNotFoundError, OSError) as error:
        if isinstance(error, OSError) and not error.strerror:
            raise  # not one of the system's, which name a file or a device
        print("error: " + describe_error(error), file=sys.stderr)
        status = getattr(error, "exit_status", 2 if isinstance(error, ImportError) else 1)
    sys.exit(status)


def make_printable(name):
    """Make sys.stdout or sys.stderr escape the letters that its encoding lacks.

    Under a C locale a path with non-ASCII letters must not crash the message about it.
    """
    stream = getattr(sys, name)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
        return
    stream = io.TextIOWrapper(stream.detach(), stream.encoding, "backslashreplace",
                              line_buffering=stream.line_buffering)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def number_between(low, high, words, kind=float):
    """argparse type: a number x with low <= x < high, which `words` describe ("at least 0")."""
    def number(text):
        value = kind(text)
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"must be {words}, not {text}")
        return value

    number.__name__ = "whole number" if kind is int else "number"  # in argparse's error
    return number


positive_int = number_between(1, math.inf, "at least 1", int)
ABOVE_0 = number_between(sys.float_info.min, math.inf, "above 0")
AT_LEAST_0 = number_between(0, math.inf, "at least 0")
BELOW_1 = number_between(0, 1, "at least 0 and below 1")
SHARE = number_between(0, 1 + sys.float_info.epsilon, "from 0 to 1")


# One spelling and one help text for each flag that several scripts share.
FLAGS = {
    "data": dict(metavar="SET", help="an image set by name (mnist, fashion-mnist, kmnist, "
                 "emnist-letters, emnist-digits, emnist-balanced, qmnist, cifar10, gtsrb), a "
                 "folder of pictures or IDX files, or generated: digits drawn from fonts "
                 "(default: the set that the weights are of; to train a network, mnist)"),
    "data-dir": dict(type=os.path.expanduser, metavar="DIR",
                     help="where a set given by name is (default: data/SET here, for MNIST "
                          "$MNIST_DATA, else data/)"),
    "image-size": dict(type=positive_int, metavar="N", help="pixels a side that the pictures of a "
                       "folder are brought to (default: 32; of a pretrained network its --size)"),
    "channels": dict(type=int, choices=(1, 3), default=3, help="of a folder's pictures: 1 grey, 3 "
                     "red, green and blue (default: %(default)s)"),
    "network": dict(metavar="NAME", help="a built-in network, or FILE.py:CLASS for your own "
                                         "(default: the one that the weights are of, else net)"),
    "weights": dict(type=os.path.expanduser, metavar="FILE",
                    help="weights to load (default: what you trained, NetMNIST.pth beside the "
                         "scripts, else what is shipped in weights/)"),
    "trust-pickle": dict(action="store_true",
                         help="also load a whole pickled module; such a file can run any code"),
    "device": dict(choices=("auto", "cpu", "cuda"), default="auto",
                   help="where to run; auto takes CUDA where it works (default: %(default)s)"),
    "batch-size": dict(type=positive_int, nargs="+", default=[1, 64], metavar="N",
                       help="batch sizes to time (default: 1 64)"),
    "threads": dict(type=positive_int, metavar="N",
                    help="CPU threads (default: one per core, or what an engine is quickest "
                         "with)"),
    "no-tuning": dict(action="store_true", help="take each library's default settings instead of "
                                                "trying which are quickest here"),
    "limit": dict(type=positive_int, metavar="N", help="use only the first N images"),
    "repeat": dict(type=positive_int, metavar="N",
                   help="make N passes over the images (default: until the times are steady)"),
    "seconds": dict(type=AT_LEAST_0, default=30, metavar="S",
                    help="the most to spend until they are steady; one pass is made in any case "
                         "(default: %(default)s)"),
    "memory": dict(choices=("auto", "torch", "pycuda"), default="auto",
                   help="what manages TensorRT's GPU memory; auto takes torch where it sees the "
                        "GPU, since it has CUDA graphs, else pycuda (default: %(default)s)"),
    "json": dict(type=os.path.expanduser, metavar="FILE",
                 help="write the record as JSON to FILE, or to stdout with -"),
    "plot": dict(type=os.path.expanduser, metavar="FILE",
                 help="draw a plot into FILE (.png, .svg, .pdf)"),
}


def dashed(name):
    """A setting as a flag spells it."""
    return name.replace("_", "-")


def make_parser(doc):
    """An argument parser from a program's docstring: its first paragraph, then its examples."""
    description, _, epilogue = doc.strip().partition("\n\n")
    return argparse.ArgumentParser(description=description, epilog=epilogue,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_flags(parser, *names, **defaults):
    """Add shared flags by name; `defaults` (batch_size=64) replace a flag's own default."""
    for name in names:
        parser.add_argument("--" + name, **FLAGS[name])
    parser.set_defaults(**defaults)
