"""Our calls, and the stand-in of the other tests, held against TensorRT's real Python bindings.

`make test-tensorrt` fetches eight versions of them (see real_tensorrt.py). Our code runs against
the stand-in of each while its every use of TensorRT is noted; then each note is compared with what
the real version has and what its documented signatures take. What empty libraries let run for real
(importing, logging, failing) runs for real. TensorRT-RTX, installed whole, is held likewise.
"""

import contextlib
import subprocess
import sys

import fake_tensorrt
import pytest
import real_tensorrt
import watched
from fake_tensorrt import Device, fake_pycuda
from real_tensorrt import VERSIONS, environment, hold, hold_stand_in, surface

from mnist.errors import MNISTError
from mnist.files import ROOT

pytestmark = pytest.mark.bindings


@pytest.fixture(params=[*VERSIONS, "rtx"])
def version(request):
    """A version whose real bindings are here."""
    if request.param == "rtx":
        pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    elif real_tensorrt.why_not(request.param):
        pytest.skip(f"bindings {request.param}: {real_tensorrt.why_not(request.param)}")
    return request.param


@pytest.fixture(params=VERSIONS)
def fetched(request):
    """The same, TensorRT-RTX excepted."""
    if real_tensorrt.why_not(request.param):
        pytest.skip(f"bindings {request.param}: {real_tensorrt.why_not(request.param)}")
    return request.param


class StandIn:
    """A machine with the stand-in of a version, and our code on it, watched."""

    def __init__(self, version, monkeypatch):
        self.device = Device()
        name = "tensorrt_rtx" if version == "rtx" else "tensorrt"
        self.trt = fake_tensorrt.fake_tensorrt(
            "11.4.0.106" if version == "rtx" else version, self.device, name)
        modules = dict(fake_pycuda(self.device), tensorrt=None)
        modules[name] = self.trt
        for module, value in modules.items():
            monkeypatch.setitem(sys.modules, module, value)
        self.notes = watched.Notes(self.trt)
        for module in ("mnist.engines.trt", "mnist.engines.trt_cache"):
            self.ours = watched.watched(module, self.notes)
            monkeypatch.setitem(sys.modules, module, self.ours)


@pytest.fixture
def stand_in(version, monkeypatch):
    return StandIn(version, monkeypatch)


# --- Our code -------------------------------------------------------------------------------------

def use_everything(stand_in, net, digits):
    """Every path of our code through TensorRT: each precision, fixed and dynamic, each failure."""
    ours = stand_in.ours
    for precision in ("fp32", "tf32", "fp16"):
        for batches in (None, (1, 4)):
            engine = ours.cached_engine(net, "cuda", precision, 4, batches, memory="pycuda")
            engine(digits[:4])
            engine.compute(engine.prepare(digits[:4]))
            engine.close()
    for failing in ("builder", "parse", "build", "runtime", "load", "network", "dtype", "context",
                    "shape", "execute"):
        stand_in.device.failing = {failing}
        with pytest.raises(MNISTError):
            ours.cached_engine(net, "cuda", "fp32", 4, (1, 4), memory="pycuda")(digits[:4])
    stand_in.device.failing = set()


@pytest.mark.usefixtures("half_precision")
def test_every_call_of_ours_is_one_that_the_real_version_takes(stand_in, version, net, digits):
    use_everything(stand_in, net, digits)
    noted = stand_in.notes.noted
    assert hold(noted, surface(version)) == []
    # The whole way was gone: built, loaded, run, refused.
    done = {(note.kind, note.name) for note in noted if note.how == "call"}
    assert {("Builder", "build_serialized_network"), ("Runtime", "deserialize_cuda_engine"),
            ("OnnxParser", "get_error"), ("ICudaEngine", "create_execution_context")} <= done
    execute = "execute_async_v3" if hasattr(
        stand_in.trt.IExecutionContext, "execute_async_v3") else "execute_async_v2"
    assert ("IExecutionContext", execute) in done
    assert len({(note.kind, note.name) for note in noted}) > 40


def test_the_stand_in_claims_nothing_that_the_real_version_lacks(stand_in, version):
    assert hold_stand_in(stand_in.trt, surface(version)) == []


# --- That it can fail -----------------------------------------------------------------------------

WRONG = [  # (version, a line of code, what is wrong with it)
    ("10.3.0", "config.max_workspace_size = 1 << 20", "max_workspace_size (set) isn't there"),
    ("8.6.1", "config.max_workspace_size = 'much'", "takes a int for arg1, not a str"),
    ("10.3.0", "builder.build_engine(network, config)", "Builder.build_engine (call) isn't there"),
    ("10.3.0", "engine.num_bindings", "ICudaEngine.num_bindings (read) isn't there"),
    ("10.3.0", "engine.num_io_tensors = 3", "num_io_tensors (set) is a property that our code "
                                            "can't set"),
    ("10.3.0", "engine.num_io_tensors()", "num_io_tensors (call) is a property that our code "
                                          "can't call"),
    ("11.0.0.114", "trt.BuilderFlag.FP16", "BuilderFlag.FP16 (read) isn't there"),
    ("10.3.0", "hasattr(trt.BuilderFlag, 'FP8')", "is there, in the stand-in it is not"),
    ("10.3.0", "context.execute_async_v3(stream=7)", "has no argument stream"),
    ("10.3.0", "context.execute_async_v3()", "lacks stream_handle"),
    ("10.3.0", "context.execute_async_v3('7')", "takes a int for stream_handle, not a str"),
    ("10.3.0", "context.execute_async_v3(7, stream_handle=7)", "is given stream_handle twice"),
    ("8.6.1", "context.execute_async_v2(7, stream_handle=7)", "takes a List[int] for bindings"),
    ("10.3.0", "profile.set_shape('image', (1,), (1,))", "lacks max"),
    ("10.3.0", "network.get_input(0, 1)", "takes 1 arguments"),
    ("10.3.0", "config.set_flag(trt.DataType.FLOAT)", "for flag, not a DataType"),
    ("10.3.0", "trt.OnnxParser(config, log)", "for network, not a IBuilderConfig"),
]


@pytest.mark.parametrize("version, line, reason", WRONG)
def test_a_call_that_the_real_version_refuses_is_noticed(version, line, reason, monkeypatch):
    if real_tensorrt.why_not(version):
        pytest.skip(f"bindings {version}: {real_tensorrt.why_not(version)}")
    stand_in = StandIn(version, monkeypatch)
    stand_in.notes.noted.clear()
    trt = stand_in.trt
    things = dict(
        trt=trt, log=trt.ILogger(), network=trt.INetworkDefinition(1), config=trt.IBuilderConfig(),
        builder=trt.Builder(None), profile=trt.IOptimizationProfile(),
        engine=trt.ICudaEngine.__new__(trt.ICudaEngine),
        context=trt.IExecutionContext.__new__(trt.IExecutionContext))
    with contextlib.suppress(Exception):  # the stand-in may refuse it too: what is noted counts
        watched.run_watched(line, things, stand_in.notes)
    found, = hold(stand_in.notes.noted, surface(version))
    assert reason in found


@pytest.mark.parametrize("tamper, reason", [
    (lambda trt: setattr(trt.Builder, "build_engine", lambda self, network: 0),
     "Builder.build_engine isn't there"),
    (lambda trt: setattr(trt.Builder, "build_serialized_network", lambda self, network: 0),
     "Builder.build_serialized_network takes"),
    (lambda trt: setattr(trt.IExecutionContext, "execute_async_v3", lambda self, stream: 0),
     "IExecutionContext.execute_async_v3 takes"),
    (lambda trt: setattr(trt, "BuilderFlag", fake_tensorrt.Enum("BuilderFlag", "TF32 FP64")),
     "BuilderFlag.FP64 isn't there"),
    (lambda trt: setattr(trt, "Session", type("Session", (), {})), "Session isn't there"),
    (lambda trt: setattr(trt.ICudaEngine, "num_io_tensors", lambda self: 2),
     "ICudaEngine.num_io_tensors is no method"),
])
def test_a_stand_in_that_claims_too_much_is_noticed(tamper, reason, monkeypatch):
    if real_tensorrt.why_not("10.3.0"):
        pytest.skip(f"bindings 10.3.0: {real_tensorrt.why_not('10.3.0')}")
    trt = StandIn("10.3.0", monkeypatch).trt
    tamper(trt)
    found, = hold_stand_in(trt, surface("10.3.0"))
    assert found.startswith(reason)


# --- What empty libraries let run for real --------------------------------------------------------

def run_on(version, code, libraries=True):
    """Run Python code in a process that has the real bindings; gives (status, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-c", code], env=environment(version, libraries),
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


NO_GPU = "CUDA initialization failure with error: 35"  # what the empty libraries log


def test_what_can_be_made_without_tensorrt_behaves_as_we_use_it(fetched):
    """Shapes are tuples to us, flags numbers, and our logger is called from C++."""
    status, out, err = run_on(fetched, """
import mnist.engines.trt
trt = mnist.engines.trt.import_tensorrt()
print(mnist.engines.trt.flavour(trt))
assert tuple(trt.Dims((1, 1, 28, 28))) == (1, 1, 28, 28) and trt.Dims((7, 8))[0] == 7
assert trt.DataType.FLOAT == trt.DataType.FLOAT != trt.DataType.HALF
flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
assert flag is None or 1 << int(flag) == 1
log = mnist.engines.trt.process_log(trt)
log.log(trt.ILogger.Severity.WARNING, "slow")
log.log(trt.ILogger.Severity.INTERNAL_ERROR, "broken")
log.log(trt.ILogger.Severity.INFO, "nothing")
assert (log.warnings, log.errors, log.last_words()) == (["slow"], ["broken"], "broken")
try:
    trt.Runtime(log)
except TypeError:
    print(log.last_words())
""")
    assert (status, err) == (0, "")
    assert out == f"tensorrt {fetched}\nbroken\n{NO_GPU}\n"


def test_the_program_ends_in_one_line_where_tensorrt_cannot_build(fetched, tmp_path):
    code = ("import sys, runpy; sys.argv = ['InfMNISTcudaRT.py', '--build-only', "
            "'--data', 'generated', '--limit', '10']; "
            "runpy.run_path('InfMNISTcudaRT.py', run_name='__main__')")
    status, out, err = run_on(fetched, code)
    *_, last = err.strip().split("\n")
    assert status == 2 and "Traceback" not in err
    assert last == f"error: tensorrt {fetched} can't build here: {NO_GPU}"


def test_loading_ends_in_one_line_too(fetched):
    status, out, err = run_on(fetched, """
import mnist.engines.trt
from mnist.cli import run_program
def main():
    mnist.engines.trt.load_engine(mnist.engines.trt.import_tensorrt(), b"plan")
run_program(main)
""")
    assert (status, err) == (2, f"error: tensorrt {fetched} can't run here: {NO_GPU}\n")


def test_bindings_without_their_libraries_are_said_to_be_broken(fetched):
    status, out, err = run_on(fetched, """
import sys
sys.modules["tensorrt_rtx"] = None
import mnist.engines.trt
print(mnist.engines.trt.tensorrt_missing())
""", libraries=False)
    assert (status, err) == (0, "")
    assert out.startswith("TensorRT can't be imported (tensorrt: libnv") and out.count("\n") == 1
