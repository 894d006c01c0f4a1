"""Find out what matters: many trainings with different settings, judged on held-out images.

examples:
  python SearchMNIST.py grid                              batch size × epochs
  python SearchMNIST.py grid --batch-size 32 64 --epochs 3 5 --seeds 3
  python SearchMNIST.py lr --optimizer adamw              a sweep of the learning rate
  python SearchMNIST.py ablate --network separable --option augment --digits 5000
  python SearchMNIST.py tune --trials 40 --workers 2      all of it together
  python SearchMNIST.py tune --trials 40 --storage postgresql://me@host/mnist   on many machines

What you give a setting is what is tried: every combination of it, but for tune, which draws from
ranges, learns from what it saw and stops a hopeless training early. A study goes on where it was
stopped or killed, and every program that is started on it shares its work. The test digits are read
once, at the end, by the choice. A rate that isn't given is TrainMNIST.py's for that batch size.
"""

import argparse
import math
import os
import signal
import subprocess
import sys

from mnist.cli import (
    ABOVE_0,
    AT_LEAST_0,
    BELOW_1,
    SHARE,
    add_flags,
    dashed,
    make_parser,
    positive_int,
    run_program,
)
from mnist.errors import UnavailableError, warn
from mnist.files import ROOT, save_json
from mnist.machine import machine_record
from mnist.training.recipe import LEARNING_RATES, OPTIONS


def main():
    arguments = parse_arguments()
    import_library()
    plots.check_outputs(arguments)
    if arguments.worker:
        sys.stdout = open(os.devnull, "w")
    arguments.device = engines.choose_device(arguments.device)
    engines.set_threads(arguments.threads or max(1, (os.cpu_count() or 1) // arguments.workers))
    with studies.storage_failures(arguments.storage):
        return search(arguments)


def import_library():
    """Import what the work needs: only now, so that --help answers at once."""
    global engines, find_image_set, find_network, load_images, loop, plans, plot_study, plots
    global studies, tables, torch
    import torch

    from mnist.bench import plots, tables
    from mnist.bench.study_plots import plot_study
    from mnist.engines import registry as engines
    from mnist.models.registry import find_network
    from mnist.training import loop
    from mnist.training import plan as plans
    from mnist.training import study as studies
    from MNISTdsource import find_image_set, load_images


def parse_arguments():
    parser = make_parser(__doc__)
    parser.add_argument("kind", choices=("ablate", "grid", "lr", "tune"),
                        help="what kind of study")
    add_flags(parser, "data", "data-dir", "device", "threads", data="mnist")
    parser.add_argument("--network", metavar="NAME",
                        help="a built-in network, or FILE.py:CLASS (default: TrainMNIST.py's, for "
                             "MNIST net)")
    parser.add_argument("--digits", type=positive_int, metavar="N",
                        help="train on so many images, to be quick (default: all but the "
                             "sixth that is held out)")
    parser.add_argument("--seeds", type=positive_int, default=1, metavar="N",
                        help="train each so often; a difference within the seeds' deviation isn't "
                             "called one (default: %(default)s)")
    parser.add_argument("--batch-size", nargs="+", metavar="N", type=positive_int)
    parser.add_argument("--epochs", nargs="+", metavar="N", type=positive_int)
    parser.add_argument("--optimizer", nargs="+", choices=sorted(LEARNING_RATES))
    for name, kind in (("--lr", ABOVE_0), ("--weight-decay", AT_LEAST_0),
                       ("--label-smoothing", BELOW_1), ("--augment", SHARE)):
        parser.add_argument(name, nargs="+", metavar="X", type=kind)
    parser.add_argument("--option", nargs="+", default=[], metavar="NAME",
                        choices=[dashed(name) for name in OPTIONS],
                        help="what is tried without and with: augment, label-smoothing, "
                             "weight-decay; ablate also tries the network's variants "
                             "(separable-bn …)")
    parser.add_argument("--trials", type=positive_int, default=30, metavar="N",
                        help="of tune, in all (default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N",
                        help="processes that share the work here (default: %(default)s)")
    parser.add_argument("--storage", type=os.path.expanduser, metavar="FILE",
                        default=os.path.join(ROOT, "SearchMNIST.db"),
                        help="where the study lives: an SQLite file, or an address like "
                             "postgresql://USER@HOST/NAME (default: SearchMNIST.db beside the "
                             "scripts)")
    parser.add_argument("--study", metavar="NAME", help="its name there (default: grid-net …)")
    add_flags(parser, "json", "plot")
    parser.add_argument("--worker", type=positive_int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lr and len(arguments.optimizer or ["sgd"]) > 1 and arguments.kind == "tune":
        parser.error("tune with --lr: say which --optimizer these rates are of")
    return arguments


# --- Training -------------------------------------------------------------------------------------


class Trainer:
    """Trains what the workers of a study are given, on the images that aren't held out."""

    def __init__(self, plan):
        arguments = plan.arguments
        self.plan, self.device = plan, arguments.device
        self.image_set = plan.image_set
        data = load_images(self.image_set, "train", arguments.data, arguments.data_dir)
        training, self.held_out = loop.hold_out(data, self.device)
        if arguments.digits and arguments.digits > len(training[1]):
            raise UnavailableError(f"--digits {arguments.digits}: there are only "
                                   f"{len(training[1])} beside those held out")
        if arguments.digits:  # a set's first images may all be of one class
            chosen = torch.randperm(len(training[1]), generator=torch.Generator().manual_seed(0))
            training = [tensor[chosen[:arguments.digits]] for tensor in training]
        self.training = training

    def train(self, settings, seed):
        """Yield after each epoch the `Run`, and whether it diverged, which ends it."""
        network, recipe = self.plan.recipe(settings, seed)
        name, make = find_network(network)
        net = loop.new_network(name, make, self.image_set, recipe, self.device)
        run = loop.Run(net, self.image_set, recipe, self.training, self.held_out)
        for line in loop.train(run):
            diverged = not math.isfinite(line["train_loss"] + line["loss"])
            yield run, diverged
            if diverged:
                return

    def objective(self, trial):
        """The mean held-out accuracy over the seeds of a trial's settings; 0 where one diverged."""
        settings = plans.suggest(trial, self.plan.space)
        accuracies, seconds, any_diverged = [], 0.0, False
        for seed in range(self.plan.arguments.seeds):
            for run, diverged in self.train(settings, seed):
                history, any_diverged = run.history, any_diverged or diverged
                # Kept after each epoch, so that a training that is stopped early has a row.
                facts = {"settings": settings, "accuracies": accuracies + [history[-1]["accuracy"]],
                         "seconds": seconds + sum(line["seconds"] for line in history),
                         "epochs": len(history), "diverged": any_diverged}
                for name, value in facts.items():
                    trial.set_user_attr(name, value)
                if self.plan.kind == "tune" and not accuracies and not diverged:
                    trial.report(history[-1]["accuracy"], len(history))
                    if len(history) < run.recipe.epochs and trial.should_prune():
                        raise studies.import_optuna().TrialPruned()
            accuracies, seconds = facts["accuracies"], facts["seconds"]
        return 0.0 if any_diverged else sum(accuracies) / len(accuracies)


def make_study(plan, arguments):
    """Optuna's study, with the sampler that its kind asks for."""
    optuna = studies.import_optuna()
    if plan.kind == "tune":
        sampler = optuna.samplers.TPESampler(n_startup_trials=8, constant_liar=True,
                                             seed=arguments.worker)
    else:
        sampler = optuna.samplers.GridSampler(plan.space, seed=0)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)  # for tune
    study = studies.open_study(studies.open_storage(arguments.storage),
                               arguments.study or f"{plan.kind}-{plan.name}", plan.description(),
                               sampler, pruner)
    if plan.kind == "tune":
        study.enqueue_trial(plans.default_point(plan.space), skip_if_exists=True)
    return study


def search(arguments):
    """Do the study's work, together with whoever else does, and show what it found."""
    image_set = find_image_set(arguments.data)
    if image_set.task != "classification":
        raise UnavailableError("a study compares accuracies, and these images have values to "
                               "predict")
    plan = plans.Plan(arguments, image_set)
    trainer = Trainer(plan)
    study = make_study(plan, arguments)
    if arguments.worker:
        work(study, plan, trainer, {trial.number for trial in studies.done(study)})
        return 0
    print(f"study {study.study_name} in {arguments.storage}: {plan.trials} trials, "
          f"{len(studies.done(study))} done; {len(trainer.training[1])} images to train on, "
          f"{len(trainer.held_out[1])} held out", flush=True)
    helpers = start_workers(arguments)
    status = 0
    told = {trial.number for trial in studies.done(study)}
    try:
        work(study, plan, trainer, told)
        for process in helpers:
            process.wait()
        report_new(study, plan, told)
        choose(study, plan, trainer)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        status = 130
    finally:
        stop_workers(helpers)
    show(study, plan, trainer)
    return status


def work(study, plan, trainer, told):
    """Try what is left to be tried. `told`: the numbers of the trials that were reported."""
    def after_each(study, _):
        report_new(study, plan, told)
        if len(told) >= plan.trials:
            study.stop()

    if len(studies.done(study)) < plan.trials:
        study.optimize(trainer.objective, callbacks=[after_each])


def report_new(study, plan, told):
    """Print the trials that were done since, also by other workers, and add them to `told`."""
    for trial in studies.done(study):
        if trial.number not in told:
            told.add(trial.number)
            report(plan, studies.row_of(trial), len(told))


def start_workers(arguments):
    """The other processes of --workers, each with the same command."""
    return [subprocess.Popen([sys.executable, os.path.abspath(__file__)] + sys.argv[1:]
                             + ["--worker", str(number)], stderr=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, universal_newlines=True)
            for number in range(1, arguments.workers)]


def stop_workers(helpers):
    """Have the other processes end, if they haven't, and say what one of them died of."""
    for process in helpers:
        try:  # a terminal's Ctrl-C has reached it already
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
    for process in helpers:
        try:
            _, said = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        if process.returncode not in (0, 130, -signal.SIGINT, -signal.SIGKILL):
            warn("a worker ended early: " + (said.strip().splitlines() or ["without a word"])[-1])


def choose(study, plan, trainer):
    """Evaluate the best settings on the test images, once; the study remembers the result."""
    best = studies.ranking(study)[0]
    chosen = study.user_attrs.get("choice")
    if best["diverged"] or chosen and chosen["settings"] == best["settings"]:
        return  # every training diverged, or the test images were read already
    *_, (run, _) = trainer.train(best["settings"], seed=0)  # after its last epoch
    arguments = plan.arguments
    data = load_images(trainer.image_set, "test", arguments.data, arguments.data_dir)
    result = loop.evaluate(run.net, trainer.image_set, loop.to_tensors(data, trainer.device))
    study.set_user_attr("choice", {
        "settings": best["settings"], "command": plan.command(best["settings"]),
        "test_loss": result["loss"], "test_accuracy": result["accuracy"]})


# --- Showing --------------------------------------------------------------------------------------


def report(plan, row, number):
    """Print the line of a trial that is done, the `number`th."""
    settings = ", ".join(f"{dashed(name)} {tables.setting_text(row['settings'][name])}"
                         for name in plan.varied)
    accuracy = "diverged, 0 %" if row["diverged"] else f"{row['mean'] * 100:.2f} %"
    if row["deviation"] is not None and not row["diverged"]:
        accuracy += f" ± {row['deviation'] * 100:.2f}"
    print(f"{number}/{max(number, plan.trials)}  {settings}: "
          + ("stopped early, " if row["pruned"] else "")
          + f"{accuracy} of the held-out images, {row['seconds']:.1f} s", flush=True)


def show(study, plan, trainer):
    """Print the table and what to do with it, write record and plot."""
    arguments, rows = plan.arguments, studies.ranking(study)
    if not rows:
        return  # stopped before the first was done
    alike = studies.as_good_as_the_best(rows, len(trainer.held_out[1]))
    rows = [dict(row, as_good_as_the_best=row in alike) for row in rows]
    choice = study.user_attrs.get("choice")
    record = {"schema": 1, "machine": machine_record(), "study": study.user_attrs["description"],
              "trained_on": len(trainer.training[1]), "held_out": len(trainer.held_out[1]),
              "points": plan.trials, "varied": plan.varied, "rows": rows,
              "choice": choice}
    print("\n" + tables.format_study(record))
    if choice:
        print(f"\nThe choice has an accuracy of {choice['test_accuracy']:.2%} on the test images, "
              f"trained on {len(trainer.training[1])} images. To train it on all of them:\n"
              f"  {choice['command']}")
    if arguments.json:
        save_json(arguments.json, record)
    if arguments.plot:
        plot_study(arguments.plot, record)


if __name__ == "__main__":
    run_program(main)
