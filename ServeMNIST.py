"""Serve networks: a page to draw digits on or open pictures in, and an inference server.

examples:
  python ServeMNIST.py                              then open http://127.0.0.1:8000
  python ServeMNIST.py --model net=weights/net.pth --model mine=mine.pth --engine onnxruntime
  python ServeMNIST.py --model signs=weights/gtsrb.pth --model net=weights/net.pth
  python ServeMNIST.py --host 0.0.0.0 --allow-host digits.example.org --workers 2
  python ServeMNIST.py --export-triton repository   a model repository for Triton

Programs use the Open Inference Protocol, version 2, which Triton, KServe and MLServer speak too;
docs/serving.md shows how. uvicorn carries it (requirements/serve.txt). Ctrl-C or SIGTERM ends it,
once what is in flight is answered.
"""

import argparse
import collections
import contextlib
import functools
import inspect
import multiprocessing
import os
import re
import signal
import socket
import time

from mnist.cli import add_flags, make_parser, positive_int, run_program
from mnist.errors import MNISTError, UnavailableError, warn

NETWORKS = ("net", "small")  # served where there are weights of them
LOOPBACK = ("127.0.0.1", "localhost", "::1")
STOP_SECONDS = 8  # for what is in flight when the server is told to stop


def read_options(argv=None):
    """The command line's options."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", action="append", type=named_weights, metavar="NAME=WEIGHTS",
                        help="a network to serve and its name for clients; several times for "
                             "several (default: net and small, as far as there are weights)")
    parser.add_argument("--network", metavar="FILE.py:CLASS",
                        help="your own network, of which all of --model's weights are (default: "
                             "what each file says)")
    parser.add_argument("--engine", default="auto", metavar="NAME",
                        help="what runs the network; CompareMNIST.py lists all (default: auto, "
                             "the fastest, which is looked for while the first one that can "
                             "run answers already)")
    parser.add_argument("--precision", default="fp32", help="(default: %(default)s)")
    add_flags(parser, "device", "data-dir", "trust-pickle")
    parser.add_argument("--threads", type=positive_int, default=1, metavar="N",
                        help="of the CPU, for each engine; more gain little on small batches "
                             "(default: %(default)s)")
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
    parser.add_argument("--max-waiting", type=positive_int, default=4096, metavar="N",
                        help="digits that may wait for an engine; beyond it 503 "
                             "(default: %(default)s)")
    parser.add_argument("--access-log", action="store_true", help="print a line for each request")
    parser.add_argument("--export-triton", type=os.path.expanduser, metavar="DIR",
                        help="write a model repository for Triton into DIR, and end")
    return parser.parse_args(argv)


def named_weights(text):
    """argparse type: NAME=WEIGHTS."""
    name, equals, path = text.partition("=")
    if not equals or not path or not re.match(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WEIGHTS")
    return name, os.path.expanduser(path)


def port_number(text):
    """argparse type: a TCP port."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def load_models(options):
    """{name: mnist.models.weights.Network} of what is to be served."""
    from mnist.models.weights import load_network

    models = collections.OrderedDict()
    for name, path in options.model or []:
        if name in models:
            raise UnavailableError(f"--model {name}: given twice")
        models[name] = load_network(path, options.network, trust_pickle=options.trust_pickle)
    for name in () if options.model else NETWORKS:
        with contextlib.suppress(UnavailableError):  # not in every release are weights of all
            models[name] = load_network(network=name)
    for name, network in models.items():
        print(f"{name}: {network.origin}", flush=True)
    return models


def load_test_images(options, models):
    """{image set's name: (its test images, their targets)} of some models, where they are here."""
    from MNISTdsource import load_images

    found = {}
    for network in models.values():
        image_set = network.image_set
        with contextlib.suppress(MNISTError):
            data = load_images(image_set, "test", data_dir=options.data_dir, download=False)
            found[image_set.name] = data.images, data.targets
    return found


def main():
    options = read_options()
    if options.workers > 1 and os.name != "posix":
        raise UnavailableError("--workers: several processes can't share a port on this system")
    if options.network and not options.model:
        raise UnavailableError("--network: of which weights? --model NAME=WEIGHTS says so")
    if options.export_triton:
        from mnist.serving.triton_repository import export_repository
        export_repository(options.export_triton, load_models(options))
        return 0
    sock = bind(options.host, options.port)
    if options.host not in LOOPBACK:
        warn(f"listening on {options.host}: there is no authentication, whoever reaches this "
             "port can use it")
    return serve(options, sock) if options.workers == 1 else serve_in_processes(options, sock)


def serve(options, sock):
    """Serve on a socket until SIGTERM or Ctrl-C."""
    import uvicorn

    from mnist.engines.registry import choose_device
    from mnist.serving.app import Application
    from mnist.serving.connection import Server, make_connection

    first = "torch" if options.engine == "auto" else options.engine
    options.device = choose_device(options.device, first, options.precision)
    networks = load_models(options)
    application = Application(networks, load_test_images(options, networks), options)
    settings = dict(
        http=make_connection, ws="none", lifespan="on", access_log=options.access_log,
        log_level="info" if options.access_log else "critical",
        server_header=False, proxy_headers=options.access_log,  # nothing else names the client
        limit_concurrency=1000, timeout_keep_alive=75, timeout_graceful_shutdown=STOP_SECONDS)
    known = inspect.signature(uvicorn.Config).parameters  # uvicorn 0.16 lacks some
    server = Server(uvicorn.Config(application, **{name: value for name, value in settings.items()
                                            if name in known}))
    on_stop(server.handle_exit)  # uvicorn has its own later, and raises the signal again at its end
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    print(f"serving on http://{host}:{port}", flush=True)
    server.run(sockets=[sock])
    print("stopped", flush=True)


def serve_in_processes(options, sock):
    """Serve on a socket in several processes until they are told to stop; gives the exit status.

    One that is killed is replaced. Where one can't serve, which it says itself, all end. (uvicorn's
    own supervisor would make its own `Server`, and start those anew for ever.)
    """
    told = []
    on_stop(lambda number, _: told.append(number))
    spawn = multiprocessing.get_context("spawn")
    work = functools.partial(serve, options, sock)
    workers = [None] * options.workers
    while not told and not any(worker and (worker.exitcode is not None and worker.exitcode >= 0)
                               for worker in workers):
        for k, worker in enumerate(workers):
            if not worker or not worker.is_alive():
                workers[k] = spawn.Process(target=run_program, args=(work,), daemon=True)
                workers[k].start()
        time.sleep(0.2)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()
    return 0 if told else 1


def on_stop(function):
    """Have a function called at SIGTERM and Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, function)


def bind(host, port):
    """A socket that listens at an address: who comes before the engines are open waits. Raises
    UnavailableError where that isn't possible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                      flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        raise UnavailableError(f"can't listen on {host} port {port}: {error.strerror}; "
                               "--port takes another") from error
    return sock


if __name__ == "__main__":
    run_program(main)
