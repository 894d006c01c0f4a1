"""The servers that serving.py compares: ours, a plain ASGI function, MLServer, the engine alone."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)

from mnist.errors import UnavailableError


def started(stack, command, ready, **settings):
    """A process, ended with the stack, once a line of its output matches: (process, lines)."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               cwd=HERE, **settings)
    stack.callback(end, process)
    lines = []
    for line in process.stdout:
        lines.append(line.decode(errors="replace").rstrip())
        if re.search(ready, lines[-1]):
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, lines
    raise UnavailableError(f"{' '.join(command)} ended:\n" + "\n".join(lines[-5:]))


def end(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


def start_server(stack, options):
    """ServeMNIST.py: (process, port, the models' names)."""
    process, lines = started(
        stack, [sys.executable, "ServeMNIST.py", "--port", "0", "--engine", options.engine,
                "--workers", str(options.workers), "--device", "cpu"], "^serving on")
    print("\n".join(lines))
    port = int(lines[-1].rpartition(":")[2])
    return process, port, {line.partition(":")[0] for line in lines[:-1]}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def export(folder):
    """The path of the network as an ONNX file."""
    from mnist.engines.onnx_export import onnx_bytes
    from mnist.models.weights import load_network
    path = os.path.join(folder, "net.onnx")
    with open(path, "wb") as file:
        file.write(onnx_bytes(load_network(network="net")))
    return path


def start_plain(stack, folder):
    """The plain ASGI function on uvicorn: its port."""
    port = free_port()
    started(stack, [sys.executable, "-m", "uvicorn", "--app-dir", "benchmarks",
                    "plain_server:application", "--port", str(port), "--no-access-log"],
            "Uvicorn running", env=dict(os.environ, PLAIN_ONNX=export(folder)))
    return port


MLSERVER_MODEL = '''
import numpy as np, onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Net(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession({path!r}, options)
        return True

    async def predict(self, payload):
        image = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        answers = self.session.run(None, {{"image": image}})[0]
        return InferenceResponse(model_name="net",
                                 outputs=[NumpyCodec.encode_output("log_probs", answers)])
'''


def start_mlserver(stack, folder, command):
    """MLServer with the same network and adaptive batching: its port."""
    port, place = free_port(), os.path.join(folder, "mlserver")
    os.makedirs(place)
    with open(os.path.join(place, "served.py"), "w") as file:
        file.write(MLSERVER_MODEL.format(path=export(folder)))
    for name, record in (
            ("settings", {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
                          "parallel_workers": 0, "debug": False}),
            ("model-settings", {"name": "net", "implementation": "served.Net",
                                "max_batch_size": 64, "max_batch_time": 0.005})):
        with open(os.path.join(place, name + ".json"), "w") as file:
            json.dump(record, file)
    started(stack, [command, "start", place], f"Uvicorn running.*:{port}",
            env=dict(os.environ, PYTHONPATH=place))
    wait_for(f"http://127.0.0.1:{port}/v2/models/net/ready")
    return port


def wait_for(url):
    """Wait until a URL answers 200."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.2)
    raise UnavailableError(f"{url} isn't ready after 60 s")


class EngineAlone:
    """The server's engine in a process of its own, called in a loop; digits per second."""

    CODE = """
import sys, time
import numpy as np
from mnist.engines.registry import open_engine, set_threads
from mnist.models.weights import load_network
set_threads(1)
engine = open_engine(sys.argv[1], load_network(network="net"), "cpu", batch_size=64, threads=1)
digits = np.random.RandomState(0).randint(0, 256, (64, 1, 28, 28)).astype(np.uint8)
engine(digits)
print("ready", flush=True)
for line in sys.stdin:
    end, calls, start = time.perf_counter() + float(line), 0, time.perf_counter()
    while time.perf_counter() < end:
        engine(digits)
        calls += 1
    print(64 * calls / (time.perf_counter() - start), flush=True)
"""

    def __init__(self, name, stack):
        self.process = subprocess.Popen([sys.executable, "-c", self.CODE, name], cwd=HERE,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(end, self.process)
        self.process.stdout.readline()

    def rate(self, seconds):
        self.process.stdin.write(b"%d\n" % seconds)
        self.process.stdin.flush()
        return float(self.process.stdout.readline())
