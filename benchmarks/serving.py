"""Measure ServeMNIST.py against a plain ASGI function, its own engine, and its worst clients.

examples:
  python benchmarks/serving.py                    everything, about five minutes
  python benchmarks/serving.py one-digit batches  parts of it
  python benchmarks/serving.py --mlserver ~/mlserver/bin/mlserver --perf-analyzer perf_analyzer

The load comes from wrk (apt install wrk) on this machine, which takes its share of the cores. What
is compared runs in turns, in one run, since the speed of a machine drifts: compare the ratios, not
the rates. Needs uvicorn for the plain function: pip install uvicorn httptools uvloop.
"""

import asyncio
import collections
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)

from mnist.cli import make_parser, positive_int, run_program
from mnist.errors import UnavailableError

PARTS = ("one-digit", "batches", "half-load", "slow-clients", "overload", "perf-analyzer")
CONNECTIONS = 32
MLSERVER_QUOTED = 1580  # one-digit requests/s of MLServer 1.7.1 in JSON, adaptive batching of 64,
# measured once on 2 cores of a Sapphire Rapids, where the plain function answered 3,170
PLAIN_QUOTED = 3170


def main():
    parser = make_parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=positive_int, default=5, metavar="N",
                        help="of each single measurement (default: %(default)s)")
    parser.add_argument("--turns", type=positive_int, default=3, metavar="N",
                        help="how often each is measured (default: %(default)s)")
    parser.add_argument("--engine", default="auto", help="as ServeMNIST.py has it")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N",
                        help="as ServeMNIST.py has it")
    parser.add_argument("--mlserver", metavar="FILE",
                        help="mlserver of an environment that has onnxruntime too")
    parser.add_argument("--perf-analyzer", metavar="FILE", help="NVIDIA's perf_analyzer")
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            raise UnavailableError(f"no part is called {part!r}; there are: {', '.join(PARTS)}")
    if not shutil.which("wrk"):
        raise UnavailableError("the load comes from wrk, which isn't installed: apt install wrk")
    parts = options.parts or PARTS
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bench = Bench(options, folder, stack)
        for part in parts:
            print(f"\n{part}", flush=True)
            getattr(bench, part.replace("-", "_"))()


class Bench:
    """The servers, and what is measured of them; one method a part."""

    def __init__(self, options, folder, stack):
        self.options, self.folder, self.stack = options, folder, stack
        self.server, self.port, self.models = start_server(stack, options)
        self.url = f"http://127.0.0.1:{self.port}"

    def wrk(self, url, script=None, **how):
        return wrk(url, script, self.folder, **how)

    def ours(self, script, model="net", **how):
        """A measurement of ServeMNIST.py."""
        return self.wrk(f"{self.url}/v2/models/{model}/infer", script,
                        seconds=how.pop("seconds", self.options.seconds), **how)

    def turns(self, *measurements):
        """The results of each measurement, taken in turns: a list for each."""
        results = [[] for _ in measurements]
        for _ in range(self.options.turns):
            for taken, measurement in zip(results, measurements):
                taken.append(measurement())
        return results

    def one_digit(self):
        """One digit per request, 32 connections: binary, JSON, the small network."""
        port = start_plain(self.stack, self.folder)
        measurements = {
            "plain ASGI function, net": lambda: self.wrk(
                f"http://127.0.0.1:{port}/", plain_script(1), seconds=self.options.seconds),
            "net, binary": lambda: self.ours(binary_script(1)),
            "net, JSON": lambda: self.ours(json_script(1)),
            "an answer without digits": lambda: self.wrk(
                self.url + "/v2/health/live", seconds=self.options.seconds),
        }
        if "small" in self.models:
            measurements["small, binary"] = lambda: self.ours(binary_script(1), "small")
        if self.options.mlserver:
            ml_port = start_mlserver(self.stack, self.folder, self.options.mlserver)
            measurements["MLServer, net, JSON"] = lambda: self.wrk(
                f"http://127.0.0.1:{ml_port}/v2/models/net/infer", json_script(1, "FP32"),
                seconds=self.options.seconds)
        results = dict(zip(measurements, self.turns(*measurements.values())))
        for name, taken in results.items():
            show(name, taken)
        plain = results["plain ASGI function, net"]
        compare("net, binary, over the plain function", results["net, binary"], plain, 2.5)
        if "small, binary" in results:
            compare("small, binary, over it", results["small, binary"], plain, 4)
        if self.options.mlserver:
            compare("net, JSON, over MLServer", results["net, JSON"],
                    results["MLServer, net, JSON"], 3)
        else:
            quoted = [result._replace(rate=result.rate * MLSERVER_QUOTED / PLAIN_QUOTED)
                      for result in plain]
            compare("net, JSON, over MLServer as quoted, scaled by the plain function",
                    results["net, JSON"], quoted, 3)

    def batches(self):
        """64 digits per request against the engine itself."""
        engine = EngineAlone(self.options, self.folder, self.stack)
        own, served = self.turns(lambda: engine.rate(self.options.seconds),
                                 lambda: self.ours(binary_script(64), connections=4))
        print(f"  the engine itself, batch 64: {statistics.median(own):,.0f} digits/s")
        show("64 digits per request", served, digits=64)
        print_ratio("of the engine's rate", [64 * result.rate / rate
                                             for rate, result in zip(own, served)], 0.85)

    def half_load(self):
        """The latency at half of the highest rate."""
        for _ in range(self.options.turns):
            half = self.at_half_load()
            print(f"  {half.rate:,.0f} requests/s: median {half.p50:.2f} ms, p99 {half.p99:.2f} ms "
                  "(bar: 10)")

    def at_half_load(self):
        if not hasattr(self, "highest"):
            self.highest = self.ours(binary_script(1)).rate
        pause = 1000 * CONNECTIONS / (self.highest / 2)  # ms between a connection's requests
        return self.ours(binary_script(1) + DELAY % (2 * pause))

    def slow_clients(self):
        """Others' latency beside 500 clients that send a byte a second."""
        without, beside = [], []
        for _ in range(self.options.turns):
            without.append(self.at_half_load().p99)
            with slow_clients(self.port, 500) as crowd:
                beside.append(self.at_half_load().p99)
                print(f"  {crowd.connected} slow clients: p99 {without[-1]:.2f} ms without, "
                      f"{beside[-1]:.2f} ms beside them")
        ratio = statistics.median(beside) / statistics.median(without)
        print(f"  median p99 {ratio:.2f} x (bar: 2)")

    def overload(self):
        """Ten times what it can do, for 30 seconds; then full speed again."""
        full = self.ours(binary_script(64), connections=4).rate
        idle = memory(self.server.pid)
        with peak_memory(self.server.pid) as peak:
            flood = self.ours(binary_script(64), connections=500, seconds=30)
        after = self.ours(binary_script(64), connections=4, seconds=2)
        answered = flood.rate - flood.refused
        print(f"  {flood.rate * 64:,.0f} digits/s offered, {flood.rate / full:.1f} x the capacity; "
              f"{answered * 64:,.0f} answered, the rest 503; p99 {flood.p99:.0f} ms")
        print(f"  memory {(max(peak) - idle) / 1e6:.0f} MB above idle (bar: 200)")
        print(f"  in the 2 s after it {after.rate / full:.2f} of full speed, "
              f"{after.refused:.0f} refused")

    def perf_analyzer(self):
        """NVIDIA's own load generator beside wrk."""
        if not self.options.perf_analyzer:
            print("  --perf-analyzer doesn't say where it is")
            return
        out = subprocess.run(
            [self.options.perf_analyzer, "-m", "net", "-u", f"127.0.0.1:{self.port}",
             "--concurrency-range", str(CONNECTIONS), "--async", "--shape", "image:28,28",
             "--measurement-interval", str(1000 * self.options.seconds)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300).stdout.decode()
        print("  " + "\n  ".join(line for line in out.splitlines() if re.search(
            "Throughput|p50|p99|Avg|error|queue", line)))
        show("wrk", [self.ours(binary_script(1))])


# --- Servers --------------------------------------------------------------------------------------


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
        file.write(onnx_bytes(load_network(network="net").net))
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
    import urllib.request
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
engine = open_engine(sys.argv[1], load_network(network="net").net, "cpu", batch_size=64)
digits = np.random.RandomState(0).randint(0, 256, (64, 28, 28)).astype(np.uint8)
engine(digits)
print("ready", flush=True)
for line in sys.stdin:
    end, calls, start = time.perf_counter() + float(line), 0, time.perf_counter()
    while time.perf_counter() < end:
        engine(digits)
        calls += 1
    print(64 * calls / (time.perf_counter() - start), flush=True)
"""

    def __init__(self, options, folder, stack):
        import urllib.request
        name = options.engine
        if name == "auto":  # the one that the server took
            server = stack.enter_context(contextlib.ExitStack())
            _, port, _ = start_server(server, options)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/net") as answer:
                name = json.load(answer)["platform"]
            server.close()
        self.process = subprocess.Popen([sys.executable, "-c", self.CODE, name], cwd=HERE,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(end, self.process)
        self.process.stdout.readline()

    def rate(self, seconds):
        self.process.stdin.write(b"%d\n" % seconds)
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


# --- Load -----------------------------------------------------------------------------------------

DELAY = """
math.randomseed(os.time())
function delay() return math.random(0, %d) end
"""


def plain_script(digits):
    return f'wrk.method = "POST"\nwrk.body = string.rep("\\7", {784 * digits})\n'


def binary_script(digits):
    head = json.dumps({"inputs": [{"name": "image", "shape": [digits, 28, 28], "datatype": "UINT8",
                                   "parameters": {"binary_data_size": 784 * digits}}],
                       "parameters": {"binary_data_output": True}})
    return (f'wrk.method = "POST"\nwrk.headers["Inference-Header-Content-Length"] = "{len(head)}"\n'
            f'wrk.body = [[{head}]] .. string.rep("\\7", {784 * digits})\n')


def json_script(digits, datatype="UINT8"):
    shape = [digits, 28, 28] if datatype == "UINT8" else [digits, 1, 28, 28]
    body = json.dumps({"inputs": [{"name": "image", "shape": shape, "datatype": datatype,
                                   "data": [7, 130] * (392 * digits)}]})
    return ('wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
            f"wrk.body = [==[{body}]==]\n")


def wrk(url, script, folder, seconds, connections=CONNECTIONS):
    """One run of wrk."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    if script:
        path = os.path.join(folder, "load.lua")
        with open(path, "w") as file:
            file.write(script)
        command += ["-s", path]
    out = subprocess.check_output([*command, url], timeout=seconds + 60).decode()
    return read_wrk(out)


Result = collections.namedtuple("Result", "rate refused p50 p99")
Result.__doc__ = """What wrk measured.

rate      answers a second, refused ones too
refused   of them, those that weren't 2xx or 3xx
p50, p99  latency, ms
"""


def read_wrk(out):
    """The `Result` that wrk printed."""
    def found(pattern, default=None):
        match = re.search(pattern, out)
        if not match and default is None:
            raise UnavailableError("wrk said something else:\n" + out)
        return match.groups() if match else default

    rate = float(found(r"Requests/sec:\s+([\d.]+)")[0])
    requests, = found(r"(\d+) requests in")
    refused, = found(r"Non-2xx or 3xx responses: (\d+)", ("0",))
    p50, p99 = (in_ms(*found(rf"{share}%\s+([\d.]+)(us|ms|s|m)\b")) for share in (50, 99))
    return Result(rate, rate * int(refused) / max(1, int(requests)), p50, p99)


def in_ms(number, unit):
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}[unit]


class Crowd:
    connected = 0


@contextlib.contextmanager
def slow_clients(port, count):
    """So many clients that send a byte of a request each second, and begin anew when refused."""
    crowd, stopped = Crowd(), threading.Event()

    async def client():
        while not stopped.is_set():
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                crowd.connected += 1
                try:
                    for byte in b"POST /v2/models/net/infer HTTP/1.1\r\nHost: localhost\r\n":
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(1)
                        if stopped.is_set():
                            break
                finally:
                    crowd.connected -= 1
                    writer.close()
            await asyncio.sleep(0.1)

    async def run():
        await asyncio.gather(*(client() for _ in range(count)))

    thread = threading.Thread(target=lambda: asyncio.new_event_loop().run_until_complete(run()))
    thread.start()
    time.sleep(2)
    try:
        yield crowd
    finally:
        stopped.set()
        thread.join()


def memory(pid):
    """Resident memory of a process and its children, bytes."""
    total = 0
    for name in [str(pid), *children(pid)]:
        with contextlib.suppress(OSError), open(f"/proc/{name}/statm") as file:
            total += os.sysconf("SC_PAGE_SIZE") * int(file.read().split()[1])
    return total


def children(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()
    return []


@contextlib.contextmanager
def peak_memory(pid):
    """Give a list that grows by a process's memory ten times a second."""
    samples, stopped = [memory(pid)], threading.Event()

    def sample():
        while not stopped.wait(0.1):
            samples.append(memory(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stopped.set()
        thread.join()


# --- Results --------------------------------------------------------------------------------------


def show(name, results, digits=1):
    """Print the median of some results."""
    rate = statistics.median(result.rate for result in results)
    latency = statistics.median(result.p99 for result in results)
    refused = sum(result.refused for result in results)
    print(f"  {name}: {rate:,.0f} requests/s"
          + (f", {rate * digits:,.0f} digits/s" if digits > 1 else "")
          + f", p99 {latency:.1f} ms" + (f", {refused:.0f}/s REFUSED" if refused else ""),
          flush=True)


def compare(name, results, others, bar):
    """Print how many times faster results are than others of the same turns."""
    print_ratio(name, [one.rate / other.rate for one, other in zip(results, others)], bar)


def print_ratio(name, ratios, bar):
    print(f"  {name}: {statistics.median(ratios):.2f} x (turns "
          f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}; bar: {bar})", flush=True)


if __name__ == "__main__":
    run_program(main)
