"""TensorRT's real Python bindings, as far as empty libraries let them run: importing, logging,
failing. `make test-tensorrt` fetches eight versions of them (see real_tensorrt.py)."""

import subprocess
import sys

import pytest
import real_tensorrt
from real_tensorrt import VERSIONS, environment

from mnist.files import ROOT

pytestmark = pytest.mark.bindings


@pytest.fixture(params=VERSIONS)
def fetched(request):
    """A version whose real bindings are here."""
    if real_tensorrt.why_not(request.param):
        pytest.skip(f"bindings {request.param}: {real_tensorrt.why_not(request.param)}")
    return request.param


def run_on(version, code):
    """Run Python code in a process that has the real bindings; gives (status, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-c", code], env=environment(version),
                          cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


NO_GPU = "CUDA initialization failure with error: 35"  # what the empty libraries log


def test_what_can_be_made_without_tensorrt_behaves_as_we_use_it(fetched):
    """Shapes are tuples to us, flags numbers, and our logger is called from C++."""
    status, out, err = run_on(fetched, """
import mnist.engines.trt
from mnist.datasets.image_set import MNIST
from mnist.errors import UnavailableError
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
    mnist.engines.trt.load_engine(trt, b"plan", MNIST)
except UnavailableError as error:
    print(error)
""")
    assert (status, err) == (0, "")
    assert out == f"tensorrt {fetched}\ntensorrt {fetched} can't run here: {NO_GPU}\n"


def test_the_program_ends_in_one_line_where_tensorrt_cannot_build(fetched, tmp_path):
    code = ("import sys, runpy; sys.argv = ['InfMNISTcudaRT.py', '--build-only', "
            "'--data', 'generated', '--limit', '10']; "
            "runpy.run_path('InfMNISTcudaRT.py', run_name='__main__')")
    status, out, err = run_on(fetched, code)
    *_, last = err.strip().split("\n")
    assert status == 2 and "Traceback" not in err
    assert last == f"error: tensorrt {fetched} can't build here: {NO_GPU}"
