"""Running the project's programs as a user does: in a process of their own."""

import contextlib
import ctypes
import functools
import glob
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from multiprocessing import forkserver, get_context

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

LINUX = sys.platform.startswith("linux")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # see prctl(2)
FORK_SERVER = LINUX and get_context("forkserver")
if LINUX:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a child leaves running becomes ours


def copy_programs(folder, data=None):
    """A new folder with the programs, the library, the weights and, as data/, another folder."""
    os.mkdir(folder)
    for path in glob.glob(os.path.join(ROOT, "*.py")):
        shutil.copy(path, folder)
    for name in ("mnist", "weights"):  # with what Python has compiled
        shutil.copytree(os.path.join(ROOT, name), os.path.join(folder, name))
    if data:
        shutil.copytree(data, os.path.join(folder, "data"))
    return folder


def start(*command, env=None, prepare=None, **settings):
    """Start `python command…` (a script's name, then its arguments); gives the Popen.

    `prepare`: a function that the child calls before it runs.
    """
    script, *arguments = map(str, command)

    def begin():
        if LINUX:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # it ends when the tests do
        if prepare:
            prepare()

    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    return subprocess.Popen(
        [sys.executable, os.path.join(ROOT, script), *arguments], text=True,
        stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
        preexec_fn=begin if LINUX or prepare else None, **settings)


def run(*command, status=0, env=None, cwd=None, prepare=None):
    """Run a script to its end, check its exit status, give (stdout, stderr).

    In a process forked from one that has imported torch already, which is most of what a short run
    takes; with an environment or a preparation of its own, in one that begins with nothing.
    """
    if env or prepare or not FORK_SERVER:
        with start(*command, env=env, cwd=cwd, prepare=prepare) as process:
            try:
                out, err = process.communicate(timeout=1200)
            except BaseException:
                process.kill()
                raise
        code = process.returncode
    else:
        code, out, err = run_forked(*map(str, command), folder=cwd or os.getcwd())
    assert code == status, f"exit {code}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


def start_fork_server():
    """Before the first test: it is a child of this process, and must not end with that test."""
    if FORK_SERVER:
        FORK_SERVER.set_forkserver_preload(["torch", "scripts"])
        forkserver.ensure_running()


def run_forked(*command, folder):
    """(exit status, stdout, stderr) of a script in a process forked from the server."""
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        process = FORK_SERVER.Process(target=become, args=(command, folder, dict(os.environ),
                                                           (os.devnull, out.name, err.name)))
        process.start()
        try:
            process.join(1200)
        finally:
            process.kill()
        process.join()
        return process.exitcode, out.read(), err.read()


def become(command, folder, env, files):
    """In a forked process: be `python command…`, with these files as stdin, stdout and stderr."""
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_WRONLY if number else os.O_RDONLY), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    script = os.path.join(ROOT, command[0])
    sys.argv = [script, *command[1:]]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")


def run_here(*command, cwd=None, status=0):
    """`run` in this process, which has imported torch already: importing it is most of what a short
    run takes. For what ends with an error, or is run a second time."""
    import torch
    script, *arguments = map(str, command)
    argv, folder, threads = sys.argv, os.getcwd(), torch.get_num_threads()
    ctrl_c = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            sys.argv = [script, *arguments]
            os.chdir(cwd or folder)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(os.path.join(ROOT, script), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.argv = argv
            os.chdir(folder)
            signal.signal(signal.SIGINT, ctrl_c)
            torch.set_num_threads(threads)
        said = [file.seek(0) or file.read() for file in (out, err)]
    assert code == status, (code, said)
    assert "Traceback" not in said[1]
    return tuple(said)


refused = functools.partial(run_here, status=2)


def read_until(process, words, stream="stdout"):
    """Read what a started script prints up to a line that holds `words`."""
    for line in getattr(process, stream):
        if words in line:
            return
    raise AssertionError(f"it ended without {words!r}: {process.communicate()}")


def children():
    """The ids of this process's children, and of what their children left behind (on Linux)."""
    found = set()
    for path in glob.glob("/proc/self/task/*/children"):
        with contextlib.suppress(OSError), open(path) as file:
            found.update(map(int, file.read().split()))
    return found


def end(pids):
    """Kill these processes, and those that they started."""
    for pid in pids:
        with contextlib.suppress(OSError):
            before = children()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            end(children() - before)
