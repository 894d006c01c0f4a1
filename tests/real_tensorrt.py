"""TensorRT's real Python bindings, without TensorRT: fetched, and given empty libraries.

    python tests/real_tensorrt.py          fetches what isn't there yet into .venv-tensorrt/

The bindings alone are on PyPI, a megabyte each. They need TensorRT's libraries, of which they use
nine to twelve functions: empty libraries that export these let them be imported on a machine
without TensorRT and without a GPU. Nothing can be built or run with them, as there is nothing
behind. What a version's folder lacks, and why, stands in its file `why_not`.
"""

import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(HERE)
CACHE = os.path.join(PROJECT, ".venv-tensorrt")
VERSIONS = ("8.6.1", "10.0.1", "10.3.0", "10.7.0", "10.13.2.6", "10.16.1.11", "11.0.0.114",
            "11.4.0.106")

# As on a machine without a usable driver: an error is logged through TensorRT's C++ interface (1 is
# kERROR), then there is no object. `ILogger::log` is the first virtual function of its class until
# TensorRT 10, then the fifth, after IVersionedInterface's (NVIDIA/TensorRT, NvInferRuntimeBase.h).
EMPTY_LIBRARY = """
#include <stddef.h>
typedef void (*Log)(void *, int, const char *);
#define LOGS(name) void *name(void *logger) { \\
    (*(Log **)logger)[LOG](logger, 1, "CUDA initialization failure with error: 35"); return NULL; }
#define EMPTY(name) void *name(void) { return NULL; }
LOGS(createInferBuilder_INTERNAL)
LOGS(createInferRuntime_INTERNAL)
"""


# --- Fetching -------------------------------------------------------------------------------------

def package(version):
    """What PyPI calls the bindings of a version."""
    name = "tensorrt-bindings" if version.startswith("8.") else "tensorrt-cu12-bindings"
    return f"{name}=={version}"


def run(*command, **settings):
    """A command's output. Raises RuntimeError with the last line of what it said."""
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}")
        raise RuntimeError(f"{os.path.basename(command[0])}: {said.splitlines()[-1]}")
    return done.stdout


def install(folder, *packages):
    """Put packages into a folder with pip, without what they depend on."""
    run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--target", folder, *packages)


def make_empty_libraries(bindings, folder, log):
    """Compile libraries of the names, and with the functions, that `bindings` (a .so) asks for.

    `log`: the number of `ILogger::log` among its class's virtual functions.
    """
    for tool in ("gcc", "readelf", "nm"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"no {tool} here")
    os.makedirs(folder, exist_ok=True)
    undefined = run("nm", "-D", "--undefined-only", bindings)
    functions = re.findall(r"^ +U (create\w+|get[A-Z]\w+|init\w+|_ZN\d+nv\w+)$", undefined, re.M)
    source = os.path.join(folder, "empty.c")
    with open(source, "w") as file:
        file.write(EMPTY_LIBRARY + "".join(
            f"EMPTY({name})\n" for name in functions
            if name not in ("createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL")))
    for name in re.findall(r"NEEDED.*\[(libnv.*)\]", run("readelf", "-d", bindings)):
        run("gcc", "-shared", "-fPIC", f"-DLOG={log}", f"-Wl,-soname,{name}",
            "-o", os.path.join(folder, name), source)


def fetch(version):
    """The bindings of a version, once: CACHE/VERSION/tensorrt, its empty libraries in …/empty."""
    folder = os.path.join(CACHE, version)
    if os.path.exists(os.path.join(folder, "ready")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    install(folder, package(version))
    make_empty_libraries(os.path.join(folder, "tensorrt_bindings", "tensorrt.so"),
                         os.path.join(folder, "empty"), 0 if int(version.split(".")[0]) < 11 else 4)
    os.mkdir(os.path.join(folder, "tensorrt"))  # the package that brings the libraries in real life
    with open(os.path.join(folder, "tensorrt", "__init__.py"), "w") as file:
        file.write("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    open(os.path.join(folder, "ready"), "w").close()


def fetch_or_say(name, fetch_it, *arguments):
    """Run a fetch; where it fails leave the reason in CACHE/NAME/why_not for the tests to say."""
    reason_file = os.path.join(CACHE, name, "why_not")
    try:
        fetch_it(*arguments)
        print(f"{name}: ready")
    except (RuntimeError, OSError) as error:
        print(f"{name}: {error}")
        os.makedirs(os.path.dirname(reason_file), exist_ok=True)
        with open(reason_file, "w") as file:
            file.write(str(error))


def why_not(name):
    """Why a version (or "pycuda") isn't there; None where it is."""
    folder = os.path.join(CACHE, name)
    if os.path.exists(os.path.join(folder, "ready")):
        return None
    if os.path.exists(os.path.join(folder, "why_not")):
        with open(os.path.join(folder, "why_not")) as file:
            return file.read()
    return "`make test-tensorrt` fetches it"


def environment(version):
    """The environment in which `import tensorrt` finds this version."""
    folder = os.path.join(CACHE, version)
    return dict(os.environ, PYTHONPATH=os.pathsep.join((folder, PROJECT, HERE)),
                LD_LIBRARY_PATH=os.path.join(folder, "empty"))


if __name__ == "__main__":
    for wanted in VERSIONS:
        fetch_or_say(wanted, fetch, wanted)
