"""What all programs share: flags, progress, errors as exit status.

Imports the standard library alone, so that `--help` answers at once.
"""

import _thread
import argparse
import contextlib
import io
import os
import signal
import sys
import threading

from mnist.errors import UnavailableError, describe_error


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
    """Run `main()` as a program: errors become one line on stderr and the right exit status.

    0 done; 1 the work failed (also where `main` returns 1); 2 asked for something that can't be;
    130 interrupted by Ctrl-C. With `--debug` on the command line an error shows its traceback.
    """
    for name in ("stdout", "stderr"):
        make_printable(name)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, interrupt)
    debug = "--debug" in sys.argv
    try:
        status = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        leave_interrupted()
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if debug:
            raise
        status = report(error)
    sys.exit(status)


_work_to_keep = False


@contextlib.contextmanager
def work_to_keep():
    """Within it there is finished work that a Ctrl-C may not lose, see `interrupt`."""
    global _work_to_keep
    before, _work_to_keep = _work_to_keep, True
    try:
        yield
    finally:
        _work_to_keep = before


def interrupt(number, frame):
    """What Ctrl-C does: raise KeyboardInterrupt, but not in the middle of an import.

    Libraries have been seen to swallow it there, or to make another error of it. So there it ends
    the program at once or, where there is `work_to_keep`, is tried again until the import is over.
    """
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            if not _work_to_keep:
                leave_interrupted()
            again = threading.Timer(0.05, interrupt_again)
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def interrupt_again():
    """Send Ctrl-C to the main thread, also where it waits for something."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    else:
        _thread.interrupt_main()


def leave_interrupted():
    """End with status 130, without waiting for a thread that may be importing torch."""
    print("\ninterrupted", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(130)


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


def report(error):
    """Print an exception on stderr, in one line or two; gives the exit status."""
    if isinstance(error, ModuleNotFoundError):
        error = UnavailableError(f"this needs {error.name}, which isn't installed: "
                                 f"pip install {error.name}")
    print("error: " + describe_error(error), file=sys.stderr)
    return getattr(error, "exit_status", 1)


def keep_stdout_for_json(path):
    """Where the record goes to stdout (`--json -`), send all other prints to stderr."""
    if path == "-":
        sys.stdout = sys.stderr


def positive_int(text):
    """argparse type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


positive_int.__name__ = "whole number"  # argparse names the type in its error


# One spelling and one help text for each flag that several scripts share.
FLAGS = {
    "data": {"choices": ("auto", "mnist", "generated"), "default": "auto",
             "help": "auto takes MNIST and, where it can't be had, digits drawn from fonts, "
                     "with a warning (default: %(default)s)"},
    "data-dir": dict(metavar="DIR", help="where MNIST is (else $MNIST_DATA, else data/ here)"),
    "network": dict(metavar="NAME", help="a built-in network, or FILE.py:CLASS for your own "
                                         "(default: the one that the weights are of, else net)"),
    "weights": dict(metavar="FILE", help="weights to load (default: what you trained, "
                    "NetMNIST.pth beside the scripts, else what is shipped in weights/)"),
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
    "seconds": dict(type=float, default=30, metavar="S",
                    help="the most to spend until they are steady; one pass is made in any case "
                         "(default: %(default)s)"),
    "memory": dict(choices=("auto", "torch", "pycuda"), default="auto",
                   help="what manages TensorRT's GPU memory; auto takes torch where it sees the "
                        "GPU, since it has CUDA graphs, else pycuda (default: %(default)s)"),
    "json": dict(metavar="FILE", help="write the record as JSON to FILE, or to stdout with -"),
    "plot": dict(metavar="FILE", help="draw a plot into FILE (.png, .svg, .pdf)"),
}


def make_parser(doc):
    """An argument parser from a program's docstring: its first paragraph, then its examples."""
    description, _, epilogue = doc.strip().partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=epilogue,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_flags(parser, *names, **defaults):
    """Add shared flags by name; `defaults` (batch_size=64) replace a flag's own default."""
    for name in names:
        parser.add_argument("--" + name, **FLAGS[name])
    parser.set_defaults(**defaults)
