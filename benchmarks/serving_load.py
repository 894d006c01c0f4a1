"""The load of serving.py: wrk with its scripts, and the memory that it costs."""

import collections
import contextlib
import json
import os
import re
import subprocess

from mnist.errors import UnavailableError

CONNECTIONS = 32
DELAY = """
math.randomseed(os.time())
function delay() return math.random(0, %d) end
"""


def plain_script(digits):
    return f'wrk.method = "POST"\nwrk.body = string.rep("\\7", {784 * digits})\n'


def binary_script(digits):
    head = json.dumps({"inputs": [{"name": "image", "shape": [digits, 1, 28, 28],
                                   "datatype": "UINT8",
                                   "parameters": {"binary_data_size": 784 * digits}}],
                       "parameters": {"binary_data_output": True}})
    return (f'wrk.method = "POST"\nwrk.headers["Inference-Header-Content-Length"] = "{len(head)}"\n'
            f'wrk.body = [[{head}]] .. string.rep("\\7", {784 * digits})\n')


def json_script(digits, datatype="UINT8"):
    body = json.dumps({"inputs": [{"name": "image", "shape": [digits, 1, 28, 28],
                                   "datatype": datatype, "data": [7, 130] * (392 * digits)}]})
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


def memory(pid, field="VmRSS"):
    """Resident memory of a process and its children, bytes; with VmHWM its peak."""
    total = 0
    for name in family(pid):
        with contextlib.suppress(OSError), open(f"/proc/{name}/status") as file:
            total += 1024 * int(re.search(field + r":\s+(\d+) kB", file.read()).group(1))
    return total


def forget_peak(pid):
    """Have the peaks count from now on."""
    for name in family(pid):
        with contextlib.suppress(OSError), open(f"/proc/{name}/clear_refs", "w") as file:
            file.write("5")


def family(pid):
    """The ids of a process and its children."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [pid, *file.read().split()]
    return [pid]
