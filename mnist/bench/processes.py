"""Engines in processes of their own, so that none disturbs another and a crash costs its own rows.

    with Processes(images) as processes:
        stopwatch = processes.open(key, request)    a `RemoteStopwatch`, for `take_turns`

The threads that a library keeps go on spinning after a call, and take the CPUs from the engine
whose turn it is. So a process works only while it is asked to: otherwise it is stopped, where the
system can (POSIX), or waits at its pipe. Engines of the same key share one. What is timed is timed
in there; nothing of the processes is inside a clock.
"""

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing import forkserver
from typing import Any, NamedTuple

from mnist.bench.stopwatch import STEADY, Stopwatch
from mnist.engines.registry import ENGINES, engine_source
from mnist.errors import MNISTError, describe_error
from mnist.machine import free_memory

OPENING_SECONDS = 60  # in which an engine has to be open, unless it compiles
COMPILING_SECONDS = 3600  # for one that does: torch-compile, TensorRT
TURN_SECONDS = 600
ROOM = 2**30  # bytes that one more process may take: libraries, a CUDA context, building an engine
CAN_STOP = hasattr(signal, "SIGSTOP")
PR_SET_PDEATHSIG = 1  # see prctl(2)


class EngineRequest(NamedTuple):
    """What a process is to open; an engine of a graph never imports torch there."""

    name: str  # of the engine
    source: Any  # (ONNX file's bytes, image set), or the arguments of `load_network`
    loads: bool  # whether the process loads its network itself, by `load_network`
    device: str
    precision: str
    batch_size: int
    options: Any  # {name: value}, for `EngineKind.open`


def make_request(network, combination, batch_size, calibration, trust_pickle=False, **options):
    """The `EngineRequest` for a `Network`; combination: (engine, device, precision)."""
    name, device, precision = combination
    loads = ENGINES[name].graph is None
    if loads:
        source = network.path, network.flag, network.image_set, trust_pickle
        options["calibration"] = calibration
    else:
        source = engine_source(name, network, precision, calibration)
    return EngineRequest(name, source, loads, device, precision, batch_size, options)


class EngineFacts(NamedTuple):
    """What the program knows of an engine that was opened elsewhere."""

    name: str
    device: str
    precision: str
    batch_size: int
    detail: str
    image_set: Any
    tuning: Any  # the settings tried, or None
    prepare_s: float


class Processes:
    """The engines' processes, each known by a key; all of them end with it.

    images  uint8 (N, C, H, W), what the engines are timed on
    """

    def __init__(self, images):
        self.images, self.processes, self.ended_cpu_seconds = images, {}, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """End all of them; others may be opened then."""
        for process in self.processes.values():
            self.ended_cpu_seconds += cpu_seconds(process.process.pid)
            process.end()
        self.processes.clear()

    def has_room(self, key, device):
        """Whether the process of this key is there, or memory, the GPU's too, holds one more."""
        free = free_memory(device) if self.processes and key not in self.processes else None
        return free is None or free > ROOM

    def open(self, key, request, **facts):
        """A `RemoteStopwatch` on the engine of a request, in the process of this key.

        Raises UnavailableError or MNISTError where it can't be opened.
        """
        if key not in self.processes:
            self.processes[key] = EngineProcess(self.images,
                                                request.loads and request.device == "cpu")
        process = self.processes[key]
        number, process.engines = process.engines, process.engines + 1
        compiles = request.name in ("torch-compile", "tensorrt")
        engine = process.ask("open", request, number, doing="opening",
                             seconds=COMPILING_SECONDS if compiles else OPENING_SECONDS)
        return RemoteStopwatch(process, number, engine, self.images, prepare_s=engine.prepare_s,
                               tuning=engine.tuning, **facts)

    def cpu_seconds(self):
        """The CPU time of all of them, the ended ones' too; 0 where the system (not Linux) doesn't
        say."""
        pids = [process.process.pid for process in self.processes.values()]
        pids.append(forkserver._forkserver._forkserver_pid)  # None where there is none
        return self.ended_cpu_seconds + sum(map(cpu_seconds, pids))


class EngineProcess:
    """A process with engines; it sleeps but when it is asked for something.

    images        what the engines are timed on
    shares_torch  import torch once for all such processes, where the system can (Linux): a third of
                  a gigabyte and a second less for each
    """

    def __init__(self, images, shares_torch=False):
        shares_torch = shares_torch and sys.platform == "linux"
        context = torch_context() if shares_torch else multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.send(images)
        self.asleep, self.engines = False, 0

    def ask(self, *question, doing="running", seconds=TURN_SECONDS):
        """Wake the process, have it answer, let it sleep. Raises what went wrong there, and
        MNISTError where it died or takes longer than `seconds`."""
        try:
            self.wake()
            self.pipe.send(question)
            if not self.pipe.poll(seconds):
                self.end()
                raise MNISTError(f"no answer for {seconds} s while {doing}; ended")
            answer = self.pipe.recv()
            self.sleep()
        except (EOFError, OSError):
            self.process.join()
            raise MNISTError(f"{describe_exit(self.process.exitcode)} while {doing}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wake(self):
        if self.asleep:
            os.kill(self.process.pid, signal.SIGCONT)
            self.asleep = False

    def sleep(self):
        if CAN_STOP and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGSTOP)
            self.asleep = True

    def end(self):
        """End the process, whatever it does."""
        if self.process.is_alive():
            self.wake()  # Python 3.6 can only terminate, which a stopped process doesn't notice
            getattr(self.process, "kill", self.process.terminate)()
            self.process.join()


def torch_context():
    """Of processes that are forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    # That one inherits what becomes of Ctrl-C, which is the program's to handle.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, handler)
    return context


class RemoteStopwatch(Stopwatch):
    """A stopwatch on an engine in another process: there it runs, here its results are kept."""

    def __init__(self, process, number, engine, images, **facts):
        super().__init__(engine, images, **facts)
        self.process, self.number, self.settled = process, number, False

    def measure_first_calls(self):
        return self.process.ask("first_calls", self.number)

    def measure_turn(self, turn):
        return self.process.ask("turn", self.number, turn)

    def outputs_of(self, images):
        return self.process.ask("outputs", self.number, images)

    def takes_other_settings(self):
        """An engine that chose fewer threads than it tried chooses again, once: where a virtual
        machine's neighbour had a core as it was opened, one thread looked quicker than two."""
        tried = self.engine.tuning
        if self.settled or not tried or tried[0]["threads"] == max(
                settings["threads"] for settings in tried):
            return False
        self.settled = True
        engine = self.process.ask("open_again", self.number, doing="opening again")
        if engine:
            self.engine, self.facts["tuning"] = engine, engine.tuning
        return engine is not None


def cpu_seconds(pid):
    """The CPU time of a process so far; 0.0 where there is none, or the system doesn't say."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def describe_exit(status):
    """How a process ended: "SIGSEGV", "ended with status 3"."""
    if status is not None and status < 0:
        return signal.Signals(-status).name
    return f"ended with status {status}"


# --- In the process -------------------------------------------------------------------------------


def work(pipe):
    """Get the images, then answer questions until the program that asks them is gone."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's to handle
    end_with_program()
    try:
        images, stopwatches = pipe.recv(), {}
        while True:
            what, *arguments = pipe.recv()
            try:
                answer = ANSWERS[what](images, stopwatches, *arguments)
            except MNISTError as error:
                answer = error
            except Exception as error:  # whatever breaks one engine, the others still run
                answer = MNISTError(describe_error(error))
            pipe.send(answer)
    except EOFError:
        pass


def end_with_program():
    """Have the system end this process when the program has gone, even while it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        alive = forkserver._forkserver._forkserver_alive_fd
        if alive is not None:
            # Forked: the parent is the fork server, which ends with the last process that holds
            # this. So that is the program.
            os.close(alive)


def open_engine_here(images, stopwatches, request, number):
    """Open an engine; gives its `EngineFacts`."""
    started = time.perf_counter()
    source = request.source
    if request.loads:
        from mnist.models.weights import load_network
        source = (load_network(*source),)
    engine = ENGINES[request.name].open(*source, request.device, request.precision,
                                        request.batch_size, **request.options)
    stopwatches[number] = Stopwatch(engine, images, request=request)
    return EngineFacts(engine.name, engine.device, engine.precision, engine.batch_size,
                       engine.detail, engine.image_set, getattr(engine, "tuning", None),
                       time.perf_counter() - started)


def open_again(images, stopwatches, number):
    """Open an engine a second time; gives its `EngineFacts` where that chose quicker settings, else
    None, and the first one stays."""
    first = stopwatches[number]
    facts = open_engine_here(images, stopwatches, first.facts["request"], number)
    second = stopwatches[number]
    if facts.tuning[0]["ms"] * STEADY < first.engine.tuning[0]["ms"]:
        first.engine.close()
        return facts
    second.engine.close()
    stopwatches[number] = first
    return None


ANSWERS = {
    "open": open_engine_here,
    "open_again": open_again,
    "first_calls": lambda images, stopwatches, number: stopwatches[number].measure_first_calls(),
    "turn": lambda images, stopwatches, number, turn: stopwatches[number].measure_turn(turn),
    "outputs": lambda images, stopwatches, number, some: stopwatches[number].outputs_of(some),
}
