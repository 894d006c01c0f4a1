"""Running the project's programs as a user does: in a process of their own."""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def start(*command, env=None, **settings):
    """Start `python command…` (a script's name, then its arguments); gives the Popen."""
    script, *arguments = map(str, command)
    return subprocess.Popen(
        [sys.executable, os.path.join(ROOT, script), *arguments], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})}, **settings)


def run(*command, status=0, env=None, **settings):
    """Run a script to its end, check its exit status, give (stdout, stderr)."""
    with start(*command, env=env, **settings) as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == status, f"exit {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


def read_until(process, words):
    """Read a started script's stdout up to a line that holds `words`."""
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.communicate()[1])
