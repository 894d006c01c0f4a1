"""Measure ServeMNIST.py against a plain ASGI function, its own engine, and a flood.

examples:
  python benchmarks/serving.py                    everything, about three minutes
  python benchmarks/serving.py one-digit batches  parts of it
  python benchmarks/serving.py --mlserver ~/mlserver/bin/mlserver

The load comes from wrk (apt install wrk) on this machine, which takes its share of the cores. What
is compared runs in turns, in one run, since the speed of a machine drifts: compare the ratios, not
the rates. Needs uvicorn for the plain function: pip install uvicorn httptools uvloop.
"""

import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)

from serving_load import (
    CONNECTIONS,
    DELAY,
    binary_script,
    forget_peak,
    json_script,
    memory,
    plain_script,
    wrk,
)
from serving_servers import EngineAlone, start_mlserver, start_plain, start_server

from mnist.cli import make_parser, positive_int, run_program
from mnist.errors import UnavailableError

PARTS = ("one-digit", "batches", "half-load", "overload")


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
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"no part is called {part!r}; there are: {', '.join(PARTS)}")
    if not shutil.which("wrk"):
        raise UnavailableError("the load comes from wrk, which isn't installed: apt install wrk")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bench = Bench(options, folder, stack)
        for part in options.parts or PARTS:
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
        compare("net, binary, over the plain function", results["net, binary"], plain, 1.1)
        if "small, binary" in results:
            compare("small, binary, over it", results["small, binary"], plain, 3)
        if self.options.mlserver:
            compare("net, JSON, over MLServer", results["net, JSON"],
                    results["MLServer, net, JSON"], 5)

    def batches(self):
        """64 digits per request against the engine itself."""
        name = self.options.engine
        if name == "auto":
            time.sleep(15)  # it serves with the first engine that stands, and goes on looking
            with urllib.request.urlopen(f"{self.url}/v2/models/net") as answer:
                name = json.load(answer)["platform"]
        engine = EngineAlone(name, self.stack)
        own, served = self.turns(lambda: engine.rate(self.options.seconds),
                                 lambda: self.ours(binary_script(64), connections=4))
        print(f"  the engine itself, batch 64: {statistics.median(own):,.0f} digits/s")
        show("64 digits per request", served, digits=64)
        print_ratio("of the engine's rate", [64 * result.rate / rate
                                             for rate, result in zip(own, served)], 0.85)

    def half_load(self):
        """The latency at half of the highest rate."""
        highest = self.ours(binary_script(1)).rate
        pause = 1000 * CONNECTIONS / (highest / 2)  # ms between a connection's requests
        for _ in range(self.options.turns):
            half = self.ours(binary_script(1) + DELAY % (2 * pause))
            print(f"  {half.rate:,.0f} requests/s: median {half.p50:.2f} ms, p99 {half.p99:.2f} ms "
                  "(bar: 3)")

    def overload(self):
        """Ten times what it can do, for 30 seconds; then full speed again."""
        full = self.ours(binary_script(64), connections=4).rate
        idle = memory(self.server.pid)
        forget_peak(self.server.pid)
        flood = self.ours(binary_script(64), connections=500, seconds=30)
        peak = memory(self.server.pid, "VmHWM")
        after = self.ours(binary_script(64), connections=4, seconds=2)
        answered = flood.rate - flood.refused
        print(f"  {flood.rate * 64:,.0f} digits/s offered, {flood.rate / full:.1f} x the capacity; "
              f"{answered * 64:,.0f} answered, the rest 503; p99 {flood.p99:.0f} ms")
        print(f"  memory {(peak - idle) / 1e6:.0f} MB above idle (bar: 200)")
        print(f"  in the 2 s after it {after.rate / full:.2f} of full speed, "
              f"{after.refused:.0f} refused")


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
