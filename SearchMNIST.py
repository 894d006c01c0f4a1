"""Find out what matters: many trainings with different settings, judged on held-out digits.

examples:
  python SearchMNIST.py grid                              batch size × epochs
  python SearchMNIST.py grid --batch-size 32 64 --epochs 3 5 --seeds 3
  python SearchMNIST.py lr --optimizer adamw              a sweep of the learning rate
  python SearchMNIST.py ablate --network separable --option batch-norm dropout --digits 5000
  python SearchMNIST.py tune --trials 40 --workers 2      all of it together
  python SearchMNIST.py tune --trials 40 --storage postgresql://me@host/mnist   on many machines

What you give a setting is what is tried: every combination of it, but for tune, which draws from
ranges, learns from what it saw and stops a hopeless training early. A study goes on where it was
stopped or killed, and every program that is started on it shares its work. The test digits are read
once, at the end, by the choice. A rate that isn't given is TrainMNIST.py's for that batch size.
"""

import argparse
import collections
import functools
import math
import os
import signal
import subprocess
import sys
import time

from mnist.bench.tables import dashed, format_study, setting_text
from mnist.cli import (
    add_flags,
    keep_stdout_for_json,
    make_parser,
    positive_int,
    run_program,
    work_to_keep,
)
from mnist.errors import UnavailableError, warn
from mnist.files import ROOT, check_writable, save_json
from mnist.training.loop import HELD_OUT
from mnist.training.recipe import LEARNING_RATES, Recipe

# The settings that can be varied, and what each kind of study tries unless told.
SETTINGS = ("batch_size", "epochs", "optimizer", "lr", "weight_decay", "label_smoothing", "augment")
TRIED = {
    "grid": {"batch_size": [16, 32, 64, 128, 256], "epochs": [1, 2, 3, 5]},
    "lr": {"lr": {"sgd": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
                  "adamw": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]}},
    "ablate": {},
    "tune": {"optimizer": ["sgd", "adamw"]},
}
# Of a recipe, what `ablate --option` switches as it does a network's own options: (off, on).
RECIPE_OPTIONS = {"augment": (0.0, 1.0), "label_smoothing": (0.0, Recipe().label_smoothing),
                  "weight_decay": (0.0, Recipe().weight_decay)}


def main():
    arguments = parse_arguments()
    check_files(arguments)
    from mnist.engines.registry import choose_device, set_threads
    from mnist.training.study import storage_failures
    if arguments.worker:
        sys.stdout = open(os.devnull, "w")
    arguments.device = choose_device(arguments.device)
    set_threads(arguments.threads or max(1, (os.cpu_count() or 1) // arguments.workers))
    with storage_failures(arguments.storage):
        return search(arguments)


def parse_arguments():
    parser = make_parser(__doc__)
    parser.add_argument("kind", choices=sorted(TRIED), help="what kind of study")
    add_flags(parser, "data-dir", "device", "threads")
    parser.add_argument("--network", default="net", metavar="NAME",
                        help="a built-in network, or FILE.py:CLASS (default: %(default)s)")
    parser.add_argument("--data", choices=("mnist", "generated"), default="mnist",
                        help="generated: digits drawn from fonts (default: %(default)s)")
    parser.add_argument("--digits", type=positive_int, metavar="N",
                        help=f"train on so many digits, to be quick (default: all but the "
                             f"{HELD_OUT} held out)")
    parser.add_argument("--seeds", type=positive_int, default=1, metavar="N",
                        help="train each so often; a difference within the seeds' deviation isn't "
                             "called one (default: %(default)s)")
    numbers = dict(nargs="+", metavar="X", type=float)
    parser.add_argument("--batch-size", nargs="+", metavar="N", type=positive_int)
    parser.add_argument("--epochs", nargs="+", metavar="N", type=positive_int)
    parser.add_argument("--optimizer", nargs="+", choices=sorted(LEARNING_RATES))
    for name in ("--lr", "--weight-decay", "--label-smoothing", "--augment"):
        parser.add_argument(name, **numbers)
    parser.add_argument("--option", nargs="+", default=[], metavar="NAME",
                        help="what is switched on and off: an option of the network (batch-norm "
                             "dropout), or augment, label-smoothing, weight-decay; ablate takes "
                             "all of the network's")
    parser.add_argument("--trials", type=positive_int, default=30, metavar="N",
                        help="of tune, in all (default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N",
                        help="processes that share the work here (default: %(default)s)")
    parser.add_argument("--storage", default=os.path.join(ROOT, "SearchMNIST.db"), metavar="FILE",
                        help="where the study lives: an SQLite file, or an address like "
                             "postgresql://USER@HOST/NAME (default: SearchMNIST.db beside the "
                             "scripts)")
    parser.add_argument("--study", metavar="NAME", help="its name there (default: grid-net …)")
    add_flags(parser, "json", "plot")
    parser.add_argument("--worker", type=positive_int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    check_settings(parser, arguments)
    return arguments


def check_settings(parser, arguments):
    """Refuse what can't be trained with."""
    for name, low, high in (("lr", 0, math.inf), ("weight_decay", None, math.inf),
                            ("label_smoothing", None, 1), ("augment", None, 1.0000001)):
        for value in getattr(arguments, name) or ():
            if not (0 < value if low == 0 else 0 <= value) or not value < high:
                parser.error(f"--{name.replace('_', '-')} can't be {value:g}")
    if arguments.lr and len(arguments.optimizer or ["sgd"]) > 1 and arguments.kind == "tune":
        parser.error("tune with --lr: say which --optimizer these rates are of")


def check_files(arguments):
    """Find out before the trainings, not after them, that a file can't be written."""
    keep_stdout_for_json(arguments.json)
    if arguments.plot:
        from mnist.bench.plots import check_plot
        check_plot("--plot", arguments.plot)
    if arguments.json:
        check_writable("--json", arguments.json)


# --- What is tried --------------------------------------------------------------------------------


class Plan:
    """What the flags ask for: the space of settings, the points in it, and how one is trained."""

    def __init__(self, arguments):
        from mnist.models.registry import find_network, variants_of
        from mnist.training.study import RANGES, RATES, default_point, grid_points
        self.kind, self.arguments = arguments.kind, arguments
        self.name, _ = find_network(arguments.network)
        self.options, self.variant = variants_of(arguments.network)
        self.space = collections.OrderedDict()
        tried = TRIED[self.kind]
        for name in SETTINGS:
            given = getattr(arguments, name)
            if given:
                self.space[name] = sorted(set(given), key=given.index)
            elif name == "lr" and self.kind == "tune":
                self.space[name] = RATES
            elif name == "lr" and self.kind == "lr":
                self.space[name] = sorted({rate for optimizer in self.space.get(
                    "optimizer", [Recipe().optimizer]) for rate in tried["lr"][optimizer]})
            elif name in tried:
                self.space[name] = tried[name]
            elif self.kind == "tune" and name in RANGES:
                self.space[name] = RANGES[name]
        for option in self.options_asked_for():
            self.space[option] = list(self.option_values(option))
        if self.kind == "tune":
            self.points = [default_point(self.space)] + [{}] * (arguments.trials - 1)
        else:
            self.points = grid_points(self.space)
        # What a training has that the study doesn't vary isn't said again in every row.
        self.varied = [name for name, choices in self.space.items() if len(choices) > 1]

    def options_asked_for(self):
        """The options of --option, in Python's spelling; for ablate all of the network's."""
        asked = [option.replace("-", "_") for option in self.arguments.option]
        if self.kind == "ablate" and not asked:
            asked = list(self.options)
            if not asked:
                raise UnavailableError(
                    f"{self.name} has no options to leave out; --option takes "
                    + ", ".join(map(dashed, RECIPE_OPTIONS)) + " for any network")
        return asked

    def option_values(self, option):
        """(off, on) of an option. Raises UnavailableError where there is none of that name."""
        for values in (self.options, RECIPE_OPTIONS):
            if option in values:
                return values[option]
        raise UnavailableError(f"--option {dashed(option)}: {self.name} has no such option; there "
                               f"are {', '.join(map(dashed, [*self.options, *RECIPE_OPTIONS]))}")

    def description(self):
        """What makes the study what it is."""
        return {"kind": self.kind, "network": self.name, "data": self.arguments.data,
                "digits": self.arguments.digits, "seeds": self.arguments.seeds,
                "tried": self.space}

    def recipe(self, settings, seed=0):
        """(what TrainMNIST.py's --network would be, the `Recipe`) of some settings."""
        network = self.variant({name: value for name, value in settings.items()
                                if name in self.options}) if self.options else None
        fields = {name: value for name, value in settings.items() if name in Recipe._fields}
        return network or self.arguments.network, Recipe(seed=seed, **fields)

    def command(self, settings):
        """The command that trains with these settings on all the digits."""
        network, recipe = self.recipe(settings)
        usual = Recipe(batch_size=recipe.batch_size, optimizer=recipe.optimizer)
        words = ["python", "TrainMNIST.py"]
        if network != "net":
            words += ["--network", network]
        for name in SETTINGS:
            value = getattr(recipe, name)
            if name == "lr":
                value, default = float(f"{recipe.peak():.3g}"), float(f"{usual.peak():.3g}")
            else:
                default = getattr(Recipe(), name)
            if value != default:
                words += ["--" + dashed(name), f"{value:g}" if name != "optimizer" else value]
        if self.arguments.data != "mnist":
            words += ["--data", self.arguments.data]
        return " ".join(words)


# --- Training -------------------------------------------------------------------------------------


class Trainer:
    """Trains what the workers of a study are given, on the digits that aren't held out."""

    def __init__(self, plan):
        from mnist.training.loop import hold_out, load_tensors
        arguments = plan.arguments
        self.plan, self.device = plan, arguments.device
        training, self.held_out = hold_out(load_tensors(
            "train", self.device, arguments.data, arguments.data_dir))
        if arguments.digits and arguments.digits > len(training[1]):
            raise UnavailableError(f"--digits {arguments.digits}: there are only "
                                   f"{len(training[1])} beside those held out")
        self.training = [array[:arguments.digits] for array in training]

    def train(self, settings, seed, after_epoch=None):
        """(network, history); the history ends early where the training diverged."""
        from mnist.models.registry import find_network
        from mnist.training.loop import new_network, train
        network, recipe = self.plan.recipe(settings, seed)
        net = new_network(*find_network(network), recipe=recipe, device=self.device)
        made = []

        def watch(history):
            made[:] = history
            if not math.isfinite(history[-1]["train_loss"] + history[-1]["loss"]):
                raise Diverged()
            if after_epoch:
                after_epoch(history)

        try:
            train(net, recipe, self.training, self.held_out, after_epoch=watch)
        except Diverged:
            made[-1]["accuracy"] = 0.0  # the worst there is; an epoch's loss says why
        return net, made

    def objective(self, trial):
        """The mean held-out accuracy over the seeds of a trial's settings."""
        import optuna

        from mnist.training.study import suggest
        settings = suggest(trial, self.plan.space)
        trial.set_user_attr("settings", settings)
        accuracies, seconds = [], 0.0

        def note(history):
            """Keep what is known so far, so that a training that is stopped early has a row."""
            trial.set_user_attr("accuracies", accuracies + [history[-1]["accuracy"]])
            trial.set_user_attr("seconds", seconds + sum(line["seconds"] for line in history))
            trial.set_user_attr("epochs", len(history))
            if self.plan.kind == "tune" and not accuracies:
                trial.report(history[-1]["accuracy"], len(history))
                if len(history) < settings.get("epochs", Recipe().epochs) and trial.should_prune():
                    raise optuna.TrialPruned()

        for seed in range(self.plan.arguments.seeds):
            _, history = self.train(settings, seed, note)
            accuracies.append(history[-1]["accuracy"])
            seconds += sum(line["seconds"] for line in history)
        trial.set_user_attr("accuracies", accuracies)
        trial.set_user_attr("seconds", seconds)
        trial.set_user_attr("epochs", len(history))
        return sum(accuracies) / len(accuracies)


class Diverged(Exception):
    """A training whose loss is no number any more."""


def search(arguments):
    """Do the study's work, together with whoever else does, and show what it found."""
    from mnist.training.study import Study, import_optuna, open_storage
    plan = Plan(arguments)
    optuna = import_optuna()
    sampler = pruner = None
    if plan.kind == "tune":
        sampler = optuna.samplers.TPESampler(n_startup_trials=8, constant_liar=True,
                                             seed=arguments.worker)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    trainer = Trainer(plan)
    study = Study(open_storage(arguments.storage),
                  arguments.study or f"{plan.kind}-{plan.name}", plan.description(), plan.points,
                  sampler, pruner)
    trainer.study = study
    if arguments.worker:
        parent = os.getppid()
        study.work(trainer.objective, goes_on=lambda: os.getppid() == parent)
        return 0
    print(f"study {study.study.study_name} in {arguments.storage}: {len(plan.points)} trials, "
          f"{study.done()} done; {len(trainer.training[1])} digits to train on, {HELD_OUT} held "
          "out", flush=True)
    helpers = start_workers(arguments)
    status = 0
    try:
        with work_to_keep():
            study.work(trainer.objective, after_each=functools.partial(report, plan))
            choose(study, plan, trainer)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        status = 130
    finally:
        stop_workers(helpers)
    show(study, plan, trainer)
    return status


def start_workers(arguments):
    """The other processes of --workers, each with the same command."""
    return [subprocess.Popen([sys.executable, os.path.abspath(__file__)] + sys.argv[1:]
                             + ["--worker", str(number)], stderr=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, universal_newlines=True)
            for number in range(1, arguments.workers)]


def stop_workers(helpers):
    """Have the other processes end, if they haven't, and say what one of them died of."""
    for process in helpers:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 10
    for process in helpers:
        try:
            _, said = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        if process.returncode not in (0, 130, -signal.SIGINT, -signal.SIGKILL):
            warn("a worker ended early: " + (said.strip().splitlines() or ["without a word"])[-1])


def choose(study, plan, trainer):
    """Have the best settings read the test digits, once; the study remembers the result."""
    from mnist.training.loop import evaluate, load_tensors
    rows = study.rows()
    chosen = study.note("choice")
    if rows[0]["mean"] == 0 or chosen and chosen["settings"] == rows[0]["settings"]:
        return  # every training diverged, or the test digits were read already
    net, _ = trainer.train(rows[0]["settings"], seed=0)
    digits = load_tensors("test", trainer.device, plan.arguments.data, plan.arguments.data_dir)
    loss, right = evaluate(net, digits)
    study.note("choice", {"settings": rows[0]["settings"], "command": plan.command(
        rows[0]["settings"]), "test_loss": loss, "test_accuracy": right / len(digits[1])})


# --- Showing --------------------------------------------------------------------------------------


def report(plan, row, done):
    """Print the line of a trial that is done, the `done`th."""
    print(f"{done}/{len(plan.points)}  {describe_settings(plan, row['settings'])}: "
          + ("stopped early, " if row["pruned"] else "")
          + f"{accuracy_text(row)} of the held-out digits, {row['seconds']:.1f} s", flush=True)


def show(study, plan, trainer):
    """Print the table and what to do with it, write record and plot."""
    from mnist.machine import machine_record
    from mnist.training.study import as_good_as_the_best
    arguments, rows = plan.arguments, study.rows()
    if not rows:
        return  # stopped before the first was done
    alike = as_good_as_the_best(rows, HELD_OUT)
    rows = [dict(row, as_good_as_the_best=row in alike) for row in rows]
    choice = study.note("choice")
    record = {"schema": 1, "machine": machine_record(), "study": study.note("description"),
              "trained_on": len(trainer.training[1]), "held_out": HELD_OUT,
              "points": len(plan.points), "varied": plan.varied, "rows": rows,
              "choice": choice}
    print("\n" + format_study(record))
    if choice:
        print(f"\nThe choice reads {choice['test_accuracy']:.2%} of the test digits, trained on "
              f"{len(trainer.training[1])} digits. To train it on all of them:\n"
              f"  {choice['command']}")
    if arguments.json:
        save_json(arguments.json, record)
    if arguments.plot:
        from mnist.bench.plots import plot_study
        plot_study(arguments.plot, record)


def describe_settings(plan, settings):
    """The settings that are varied, in words."""
    return ", ".join(f"{dashed(name)} {setting_text(settings[name])}" for name in plan.varied)


def accuracy_text(row):
    """ "99.21 % ± 0.04", or that all diverged."""
    if row["mean"] == 0:
        return "diverged, 0 %"
    deviation = row["deviation"]
    return f"{row['mean'] * 100:.2f} %" + ("" if deviation is None else f" ± {deviation:.2%}"[:-1])


if __name__ == "__main__":
    run_program(main)
