"""Train a network on MNIST and save its weights, with a record of the training beside them.

examples:
  python TrainMNIST.py                                    5 epochs, about 99.4 %
  python TrainMNIST.py --epochs 60 --augment              slower, better, also for what you draw
  python TrainMNIST.py --validate --lr 0.02               try a recipe without the test digits
  python TrainMNIST.py --network small --teacher weights/net.pth --augment
  python TrainMNIST.py --network mine.py:MyNet            your own network: writes MyNet.pth
  python TrainMNIST.py --epochs 60 --augment --resume     go on where that command was stopped
  torchrun --nproc_per_node 2 TrainMNIST.py               on two processes or GPUs

Everything is deterministic: the same seed, machine and number of threads give the same weights,
bit for bit, also through --resume. Of several processes each gives batch norm its own part of a
batch, and the averages that are saved are those of the first one.
"""

import contextlib
import json
import math
import os
import sys

from mnist.cli import (
    ABOVE_0,
    AT_LEAST_0,
    BELOW_1,
    SHARE,
    add_flags,
    keep_stdout_for_json,
    make_parser,
    positive_int,
    run_program,
)
from mnist.errors import MNISTError, UnavailableError, warn
from mnist.files import check_writable, digest, save_json
from mnist.training.recipe import HELD_OUT, LEARNING_RATES, TEACHER_SHARE, USUAL_BATCH, Recipe

DEFAULTS = Recipe()


def main():
    arguments = parse_arguments()
    import_library()
    keep_stdout_for_json(arguments.json)
    device = choose_device(arguments.device)
    with process_group(device) as (rank, world):
        if rank > 0:
            sys.stdout = open(os.devnull, "w")
        train_network(arguments, device, rank, world)


def import_library():
    """Import what the work needs: only now, so that --help answers at once."""
    global check_plot, choose_device, count_macs, count_parameters, evaluate, find_network
    global has_bfloat16, hold_out, load_digits, load_network, machine_record, new_network
    global plot_training, read_pickle, save_weights, set_threads, to_tensors, torch, train
    global trained_path, write_pickle, Run
    import torch

    from mnist.bench.plots import check_plot, plot_training
    from mnist.engines.registry import choose_device, set_threads
    from mnist.machine import machine_record
    from mnist.models.registry import find_network
    from mnist.models.weights import (
        load_network,
        read_pickle,
        save_weights,
        trained_path,
        write_pickle,
    )
    from mnist.training.loop import (
        Run,
        evaluate,
        has_bfloat16,
        hold_out,
        new_network,
        to_tensors,
        train,
    )
    from MNISTdsource import load_digits
    from MNISTmodel import count_macs, count_parameters


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data-dir", "device", "threads", "plot")
    add_what_is_trained(parser)
    add_recipe(parser)
    add_flags_of_files(parser)
    arguments = parser.parse_args()
    if arguments.lr is None:
        arguments.lr = Recipe(batch_size=arguments.batch_size,
                              optimizer=arguments.optimizer).peak()
    return arguments


def add_what_is_trained(parser):
    parser.add_argument("--network", default="net", metavar="NAME",
                        help="the network to train: a built-in one, or FILE.py:CLASS for your own "
                             "(default: %(default)s)")
    parser.add_argument("--teacher", metavar="WEIGHTS",
                        help="weights of a built-in network whose outputs are learned along with "
                             f"the targets (distillation): {TEACHER_SHARE:g} of the loss")
    parser.add_argument("--data", choices=("mnist", "generated"), default="mnist",
                        help="generated: digits drawn from fonts, where MNIST can't be had "
                             "(default: %(default)s)")


def add_recipe(parser):
    parser.add_argument("--epochs", type=positive_int, default=DEFAULTS.epochs, metavar="N",
                        help="passes over the training digits (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=DEFAULTS.batch_size,
                        metavar="N",
                        help="digits a step, over all processes (default: %(default)s)")
    parser.add_argument("--lr", type=ABOVE_0, metavar="X", help="peak learning rate "
                        "(default: {sgd} for sgd, {adamw} for adamw in batches of {batch}, at "
                        "other sizes as the root of the size)".format(
                            batch=USUAL_BATCH, **LEARNING_RATES))
    parser.add_argument("--optimizer", choices=sorted(LEARNING_RATES), default=DEFAULTS.optimizer,
                        help="sgd is with Nesterov momentum (default: %(default)s)")
    parser.add_argument("--weight-decay", type=AT_LEAST_0, default=DEFAULTS.weight_decay,
                        metavar="X", help="default: %(default)s")
    parser.add_argument("--label-smoothing", type=BELOW_1, default=DEFAULTS.label_smoothing,
                        metavar="X", help="weight of the wrong classes in the loss "
                                          "(default: %(default)s)")
    parser.add_argument("--augment", type=SHARE, nargs="?", const=1.0, default=DEFAULTS.augment,
                        metavar="SHARE",
                        help="turn, stretch, slant, move, thicken and thin the digits at random: "
                             "all of them, or this share of each batch")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"),
                        default=DEFAULTS.precision,
                        help="of the training arithmetic; auto takes bf16 where the processor "
                             "has it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N",
                        help="default: %(default)s")


def add_flags_of_files(parser):
    parser.add_argument("--validate", action="store_true",
                        help=f"hold out the last {HELD_OUT} training digits and show the accuracy "
                             "on them; the test digits are read once, at the end")
    parser.add_argument("--output", metavar="FILE",
                        help="weights to write (default: NetMNIST.pth beside the scripts, named "
                             "after the network; with --validate NetMNIST-validate.pth)")
    parser.add_argument("--json", metavar="FILE", help="where the record of the training goes, - "
                        "for stdout (default: beside the weights, NetMNIST.json)")
    parser.add_argument("--resume", action="store_true",
                        help="go on after the last completed epoch of the same command")


@contextlib.contextmanager
def process_group(device):
    """(rank, number of processes): those of torchrun's process group, else (0, 1)."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield 0, 1
        return
    import torch
    import torch.distributed as dist
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def train_network(arguments, device, rank, world):
    """The whole job: data, network, epochs, weights, record."""
    name, make = find_network(arguments.network)
    choose_files(arguments, name)
    set_threads(arguments.threads)
    if arguments.batch_size < world:
        raise UnavailableError(f"--batch-size {arguments.batch_size} is too small for "
                               f"{world} processes")
    recipe = make_recipe(arguments, device)
    net = new_network(name, make, recipe, device)
    teacher = load_network(arguments.teacher) if arguments.teacher else None
    training, watched = choose_digits(arguments, device)
    run = Run(net, recipe, training, watched, teacher and teacher.net, rank, world)
    settings = dict(recipe._asdict(), precision="bf16" if run.bfloat16 else "fp32", network=name,
                    teacher=arguments.teacher, data=arguments.data, validate=arguments.validate)
    describe_run(run, settings, teacher)
    state_file = arguments.output + ".resume"
    if arguments.resume:
        resume(state_file, settings, run)
    elif os.path.exists(state_file):
        warn(f"starting anew; the unfinished run in {state_file} is lost after the first epoch "
             "(--resume would go on with it)")
    run_epochs(run, arguments, settings, state_file)
    if rank == 0:
        finish(run, arguments, settings, state_file)


def describe_run(run, settings, teacher):
    """Say what is trained, and how."""
    print(f"training on {len(run.training[1])} digits: {settings['network']}, {run.device.type}, "
          f"{torch.get_num_threads()} threads"
          + (f" in each of {run.world} processes" if run.world > 1 else "")
          + f", {'bfloat16' if run.bfloat16 else 'float32'}, channels-last, "
          + run.recipe.optimizer
          + (f"\nteacher: {teacher.name}, {teacher.origin}" if teacher else ""))


def run_epochs(run, arguments, settings, state_file):
    """Make the epochs that are left; the state is saved after each."""
    try:
        for line in train(run):
            report_epoch(line, arguments, len(run.watched[1]))
            save_state(state_file, settings, run)
    except KeyboardInterrupt:
        if run.rank == 0 and os.path.exists(state_file):
            print("\nstopped; the same command with --resume goes on after the last whole epoch",
                  file=sys.stderr)
        raise


def finish(run, arguments, settings, state_file):
    """Write the weights and the record, and say what came out."""
    try:
        save_weights(run.net, arguments.output)
    except MNISTError as error:
        raise MNISTError(f"{error}\nnothing is lost: the same command with --resume writes them "
                         f"from {state_file}") from error
    result = report_result(arguments, run)
    with contextlib.suppress(FileNotFoundError):
        os.remove(state_file)
    write_record(arguments, run, settings, result)


def choose_files(arguments, name):
    """Set --output and --json where they weren't given, and find out before the training, not
    after it, that one of the files can't be written."""
    if arguments.output is None:
        stem, extension = os.path.splitext(trained_path(name))
        arguments.output = stem + ("-validate" if arguments.validate else "") + extension
    if arguments.json is None:
        arguments.json = os.path.splitext(arguments.output)[0] + ".json"
    check_writable("--output", arguments.output)
    check_writable("--json", arguments.json)
    if arguments.plot:
        check_plot("--plot", arguments.plot)


def make_recipe(arguments, device):
    """The `Recipe` of the flags."""
    recipe = Recipe(**{field: getattr(arguments, field) for field in Recipe._fields})
    if recipe.precision == "bf16" and not has_bfloat16(device):
        warn(f"--precision bf16: this {device} has no bfloat16 arithmetic; it will be slow")
    return recipe


def choose_digits(arguments, device):
    """(training digits, those to watch the accuracy on), as `to_tensors` gives them.

    With --validate the latter are held-out training digits, else the test digits.
    """
    training = digits_of("train", arguments, device)
    if arguments.validate:
        return hold_out(training)
    return training, digits_of("test", arguments, device)


def digits_of(split, arguments, device):
    """A split's (images, targets) on the device."""
    return to_tensors(load_digits(split, arguments.data, arguments.data_dir), device)


def accuracy_text(right, total):
    """ "9935/10000 (99.35 % ± 0.08)": with the standard error of a binomial proportion."""
    share = right / total
    error = math.sqrt(share * (1 - share) / total)
    return f"{right}/{total} ({share * 100:.2f} % ± {error * 100:.2f})"


def report_epoch(line, arguments, total):
    """Print the line of an epoch, a dict of `train`'s history. Raises MNISTError where the
    training has diverged: its weights are worth nothing."""
    digits = "held-out" if arguments.validate else "test"
    print(f"epoch {line['epoch']}/{arguments.epochs}  {line['seconds']:6.2f} s  "
          f"training loss {line['train_loss']:.4f}  {digits} loss {line['loss']:.4f}  accuracy "
          f"{accuracy_text(line['right'], total)}", flush=True)
    if not math.isfinite(line["train_loss"] + line["loss"]):
        raise MNISTError(f"the training diverged in epoch {line['epoch']}; nothing was saved.\n"
                         f"A smaller --lr than {arguments.lr} may help")


def report_result(arguments, run):
    """Print the closing lines; gives the result as a dict for the record."""
    if arguments.validate:
        test = digits_of("test", arguments, run.device)
        loss, right = evaluate(run.net, test)
    else:  # the last epoch's line was of the test digits already
        test, loss, right = run.watched, run.history[-1]["loss"], run.history[-1]["right"]
    total = len(test[1])
    seconds = sum(line["seconds"] for line in run.history)
    on = "generated digits, not MNIST" if arguments.data == "generated" else "the test digits"
    print(f"saved {arguments.output}\n{seconds:.1f} s for {arguments.epochs} epochs, average loss "
          f"{loss:.4f}, accuracy {right}/{total} ({right / total * 100:.2f} %) on {on}")
    return {"seconds": seconds, "loss": loss, "accuracy": right / total}


def save_state(path, settings, run):
    """Write all that --resume needs, whole or not at all.

    The optimiser's settings follow from the recipe, and numbers that aren't tensors go as text:
    torch 1.13 refuses a float in a file that it may run no code of.
    """
    write_pickle({"settings": json.dumps(settings), "history": json.dumps(run.history),
                  "net": run.net.state_dict(), "optimiser": run.optimiser.state_dict()["state"]},
                 path)


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
        raise MNISTError(f"--resume: {path} is not a state of this script "
                         f"({str(error).splitlines()[0]})") from error
    print(f"resuming after epoch {len(run.history)} of {settings['epochs']}")


def write_record(arguments, run, settings, result):
    """Write --json and --plot."""
    net = run.net.cpu()
    record = {
        "schema": 1, "machine": machine_record(), "settings": settings,
        "teacher_sha256": arguments.teacher and file_digest(arguments.teacher),
        "weights": {"file": os.path.basename(arguments.output),
                    "sha256": file_digest(arguments.output),
                    "parameters": count_parameters(net), "macs": count_macs(net)},
        "epochs": run.history, "result": result}
    save_json(arguments.json, record)
    if arguments.plot:
        plot_training(arguments.plot, record)


def file_digest(path):
    """The SHA-256 of a file: which weights a record is of."""
    with open(path, "rb") as file:
        return digest(file.read())


if __name__ == "__main__":
    run_program(main)
