"""Running the project's programs as a user does: in a process of their own."""

import contextlib
import ctypes
import functools
import glob
import os
import runpy
import signal
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

LINUX = sys.platform.startswith("linux")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # see prctl(2)
if LINUX:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a child leaves running becomes ours


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


def run(*command, status=0, env=None, **settings):
    """Run a script to its end, check its exit status, give (stdout, stderr)."""
    with start(*command, env=env, **settings) as process:
        try:
            out, err = process.communicate(timeout=1200)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == status, f"exit {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


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
