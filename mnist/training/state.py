"""The state of an unfinished training in a file, from which `--resume` goes on."""

import contextlib
import json
import os
import sys

from mnist.errors import MNISTError, UnavailableError, warn
from mnist.models.weights import read_pickle, write_pickle
from mnist.training.loop import train


def begin(path, settings, run, go_on):
    """Put a run to where the unfinished one in a file was left (`go_on`), or warn that this one
    will be lost. Raises as `resume`."""
    if go_on:
        resume(path, settings, run)
    elif os.path.exists(path):
        warn(f"starting anew; the unfinished run in {path} is lost after the first epoch (--resume "
             "would go on with it)")


def train_and_save(run, path, settings):
    """The lines of `mnist.training.loop.train`; after each the state is saved, unless the
    caller stops iterating."""
    try:
        for line in train(run):
            yield line
            save_state(path, settings, run)
    except KeyboardInterrupt:
        if run.rank == 0 and os.path.exists(path):
            print("\nstopped; the same command with --resume goes on after the last whole epoch",
                  file=sys.stderr)
        raise


def save_state(path, settings, run):
    """Write all that --resume needs, whole or not at all.

    The optimiser's settings follow from the recipe, and numbers that aren't tensors go as text:
    torch 1.13 refuses a float in a file that it may run no code of.
    """
    write_pickle({"settings": json.dumps(settings), "history": json.dumps(run.history),
                  "net": run.net.state_dict(), "optimiser": run.optimiser.state_dict()["state"]},
                 path)


def forget(path):
    """Remove the state of a training that is finished, or worth nothing."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def resume(path, settings, run):
    """Put a run back to where `save_state` left it.

    What the settings say must be the same for the run to end with the same weights.
    """
    if not os.path.exists(path):
        raise UnavailableError(f"--resume: there is no unfinished run {path}")
    state = read_pickle(path, trust_pickle=False)
    try:
        saved = json.loads(state["settings"])
        for name, value in settings.items():
            if saved[name] != value:
                raise UnavailableError(f"--resume: the unfinished run had {name.replace('_', '-')} "
                                       f"{saved[name]}, not {value}; give the same flags")
        run.history = json.loads(state["history"])
        run.net.load_state_dict(state["net"])
        run.optimiser.load_state_dict(dict(run.optimiser.state_dict(), state=state["optimiser"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MNISTError(f"--resume: {path} is not the state of a training "
                         f"({str(error).splitlines()[0]})") from error
    print(f"resuming after epoch {len(run.history)} of {settings['epochs']}")
