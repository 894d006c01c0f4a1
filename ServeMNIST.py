"""Serve the network: a page to draw digits on, and an inference server for programs.

examples:
  python ServeMNIST.py                              then open http://127.0.0.1:8000
  python ServeMNIST.py --model net=weights/net.pth --model mine=mine.pth --engine onnxruntime
  python ServeMNIST.py --host 0.0.0.0 --allow-host digits.example.org --workers 2
  python ServeMNIST.py --export-triton repository   a model repository for Triton

Programs use the Open Inference Protocol, version 2, which Triton, KServe and MLServer speak too;
docs/serving.md shows how. Needs requirements/serve.txt. Ctrl-C or SIGTERM ends it, once what is in
flight is answered.
"""

import argparse
import collections
import contextlib
import re
import socket
import sys

from mnist.cli import add_flags, make_parser, positive_int, run_program
from mnist.errors import UnavailableError, warn

NETWORKS = ("net", "small")  # served where there are weights of them
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def read_options(argv=None):
    """The command line's options."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", action="append", type=named_weights, metavar="NAME=WEIGHTS",
                        help="a network to serve and its name for clients; several times for "
                             "several (default: net and small, as far as there are weights)")
    parser.add_argument("--engine", default="auto", metavar="NAME",
                        help="what runs the network; CompareMNIST.py lists all (default: auto, "
                             "the fastest of a short trial)")
    parser.add_argument("--precision", default="fp32", help="(default: %(default)s)")
    add_flags(parser, "device", "threads", "data-dir", "trust-pickle")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                        help="where to listen; 0.0.0.0 for all the world (default: %(default)s)")
    parser.add_argument("--port", type=port_number, default=8000, metavar="N",
                        help="(default: %(default)s; 0 takes a free one)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="a name by which clients may call this server, beside addresses and "
                             "localhost")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N",
                        help="processes that share the port, Linux only (default: %(default)s)")
    parser.add_argument("--max-batch", type=positive_int, default=64, metavar="N",
                        help="digits in one call of the engine (default: %(default)s)")
    parser.add_argument("--max-delay", type=milliseconds, default=0.0, metavar="MS",
                        help="how long a batch that isn't full waits for more (default: 0)")
    parser.add_argument("--max-waiting", type=positive_int, default=4096, metavar="N",
                        help="digits that may wait for an engine; beyond it 503 "
                             "(default: %(default)s)")
    parser.add_argument("--access-log", action="store_true", help="print a line for each request")
    parser.add_argument("--export-triton", metavar="DIR",
                        help="write a model repository for Triton into DIR, and end")
    return parser.parse_args(argv)


def named_weights(text):
    """argparse type: NAME=WEIGHTS."""
    name, equals, path = text.partition("=")
    if not equals or not path or not re.match(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WEIGHTS")
    return name, path


def port_number(text):
    """argparse type: a TCP port."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def milliseconds(text):
    """argparse type: up to a second, in ms; gives seconds."""
    seconds = float(text) / 1000
    if not 0 <= seconds <= 1:
        raise argparse.ArgumentTypeError(f"{text} ms is not 0 to 1000")
    return seconds


def load_models(options):
    """{name: mnist.models.weights.Network} of what is to be served."""
    from mnist.models.weights import default_weights, load_network

    models = collections.OrderedDict()
    if options.model:
        for name, path in options.model:
            if name in models:
                raise UnavailableError(f"--model {name}: given twice")
            models[name] = load_network(path, trust_pickle=options.trust_pickle)
    for name in () if options.model else NETWORKS:
        with contextlib.suppress(UnavailableError):  # not in every release are weights of all
            models[name] = load_network(default_weights(name), name)
    for name, network in models.items():
        print(f"{name}: {network.origin}", flush=True)
    return models


def main():
    options = read_options()
    if options.workers > 1 and not (sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")):
        raise UnavailableError("--workers: only Linux shares a port fairly")
    if options.export_triton:
        from mnist.serving.triton_repository import export_repository
        export_repository(options.export_triton, load_models(options))
        return
    from mnist.serving.http1 import bind
    bind(options.host, options.port).close()  # would another server that shares it be there
    sock = bind(options.host, options.port, shared=options.workers > 1)
    if options.host not in LOOPBACK:
        warn(f"listening on {options.host}: there is no authentication, whoever reaches this "
             "port can use it")
    serve_models(options, load_models(options), sock)


def serve_models(options, networks, sock):
    """Serve {name: `Network`} on a socket as the options say, until told to stop."""
    from mnist.engines.registry import choose_device, set_threads
    from mnist.serving.app import Settings, serve
    from mnist.serving.batching import choose_engine
    from mnist.serving.workers import serve_shared

    threads = set_threads(options.threads or 1)  # more gain little on small batches
    asked = "torch" if options.engine == "auto" else options.engine
    device = choose_device(options.device, asked, options.precision)
    engines = {name: options.engine for name in networks}
    if options.engine == "auto":
        for name, network in networks.items():
            engines[name], report = choose_engine(network, device, options.precision,
                                                  options.max_batch)
            print(f"{name}: {report}", flush=True)
    settings = Settings(networks, engines, device, options.precision, threads, options.max_batch,
                        options.max_waiting, options.max_delay, options.data_dir,
                        options.access_log, options.allow_host, options.workers)

    def opened(details):
        for name, detail in details.items():
            print(f"{name}: {detail}", flush=True)
        host, port = sock.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
        print(f"serving on http://{host}:{port}", flush=True)

    if options.workers > 1:
        serve_shared(settings, sock, opened)
    else:
        serve(settings, sock, lambda models: opened(
            {model.name: model.engines.detail for model in models.values()}))
    print("stopped", flush=True)


if __name__ == "__main__":
    run_program(main)
