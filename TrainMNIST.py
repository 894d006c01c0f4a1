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

from mnist.cli import add_flags, keep_stdout_for_json, make_parser, positive_int, run_program
from mnist.errors import MNISTError, UnavailableError, warn
from mnist.files import check_writable, digest, save_json
from mnist.training.loop import (
    HELD_OUT,
    TEACHER_SHARE,
    evaluate,
    has_bfloat16,
    hold_out,
    load_tensors,
    make_optimiser,
    new_network,
    train,
    use_bfloat16,
)
from mnist.training.recipe import LEARNING_RATES, USUAL_BATCH, Recipe

DEFAULTS = Recipe()


def main():
    arguments = parse_arguments()
    keep_stdout_for_json(arguments.json)

    from mnist.engines.registry import choose_device
    device = choose_device(arguments.device)
    with process_group(device) as group:
        if group[0] > 0:
            sys.stdout = open(os.devnull, "w")
        run_training(arguments, device, group)


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data-dir", "device", "threads", "plot")
    parser.add_argument("--network", default="net", metavar="NAME",
                        help="the network to train: a built-in one, or FILE.py:CLASS for your own "
                             "(default: %(default)s)")
    parser.add_argument("--teacher", metavar="WEIGHTS",
                        help="weights of a built-in network whose answers are learnt along with "
                             f"the labels (distillation): {TEACHER_SHARE:.0%} of the loss".replace(
                                 "%", "%%"))
    parser.add_argument("--data", choices=("mnist", "generated"), default="mnist",
                        help="generated: digits drawn from fonts, where MNIST can't be had "
                             "(default: %(default)s)")
    parser.add_argument("--epochs", type=positive_int, default=DEFAULTS.epochs, metavar="N",
                        help="passes over the training digits (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=DEFAULTS.batch_size,
                        metavar="N",
                        help="digits a step, over all processes (default: %(default)s)")
    parser.add_argument("--lr", type=float, metavar="X", help="peak learning rate "
                        "(default: {sgd} for sgd, {adamw} for adamw in batches of {batch}, at "
                        "other sizes as the root of the size)".format(
                            batch=USUAL_BATCH, **LEARNING_RATES))
    parser.add_argument("--optimizer", choices=sorted(LEARNING_RATES), default=DEFAULTS.optimizer,
                        help="sgd is with Nesterov momentum (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=DEFAULTS.weight_decay, metavar="X",
                        help="default: %(default)s")
    parser.add_argument("--label-smoothing", type=float, default=DEFAULTS.label_smoothing,
                        metavar="X", help="weight of the wrong answers in the loss "
                                          "(default: %(default)s)")
    parser.add_argument("--augment", type=float, nargs="?", const=1.0, default=DEFAULTS.augment,
                        metavar="SHARE",
                        help="turn, stretch, slant, move, thicken and thin the digits at random: "
                             "all of them, or this share of each batch")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"),
                        default=DEFAULTS.precision,
                        help="of the training arithmetic; auto takes bf16 where the processor "
                             "has it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N",
                        help="default: %(default)s")
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
    arguments = parser.parse_args()
    if arguments.lr is None:
        arguments.lr = Recipe(batch_size=arguments.batch_size,
                              optimizer=arguments.optimizer).peak()
    if not 0 < arguments.lr < math.inf:
        parser.error(f"--lr must be above 0, not {arguments.lr}")
    if not 0 <= arguments.weight_decay < math.inf:
        parser.error(f"--weight-decay must be at least 0, not {arguments.weight_decay}")
    if not 0 <= arguments.augment <= 1:
        parser.error(f"--augment must be from 0 to 1, not {arguments.augment}")
    if not 0 <= arguments.label_smoothing < 1:
        parser.error(f"--label-smoothing must be from 0 to 1, not {arguments.label_smoothing}")
    return arguments


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


def run_training(arguments, device, group):
    """The whole job: data, network, epochs, weights, record."""
    from mnist.engines.registry import set_threads
    from mnist.models.registry import find_network
    from mnist.models.weights import load_network, save_weights

    rank, world = group
    name, make = find_network(arguments.network)
    choose_files(arguments, name)
    threads = set_threads(arguments.threads)
    if arguments.batch_size < world:
        raise UnavailableError(f"--batch-size {arguments.batch_size} is too small for "
                               f"{world} processes")
    recipe = make_recipe(arguments, device)
    net = new_network(name, make, recipe, device)
    bfloat16 = use_bfloat16(recipe.precision, device, net)
    recipe = recipe._replace(precision="bf16" if bfloat16 else "fp32")
    settings = dict(recipe._asdict(), network=name, teacher=arguments.teacher,
                    data=arguments.data, validate=arguments.validate)
    teacher = load_network(arguments.teacher) if arguments.teacher else None
    training, watched = choose_digits(arguments, device)
    optimiser = make_optimiser(net, recipe)
    print(f"training on {len(training[1])} digits: {name}, {device}, {threads} threads"
          + (f" in each of {world} processes" if world > 1 else "")
          + f", {'bfloat16' if recipe.precision == 'bf16' else 'float32'}, "
          + f"channels-last, {recipe.optimizer}"
          + (f"\nteacher: {teacher.name}, {teacher.origin}" if teacher else ""))

    state_file = arguments.output + ".resume"
    history = resume(state_file, settings, net, optimiser) if arguments.resume else []
    if not arguments.resume and os.path.exists(state_file):
        warn(f"starting anew; the unfinished run in {state_file} is lost after the first epoch "
             "(--resume would go on with it)")

    def after_epoch(history):
        report_epoch(history[-1], arguments, len(watched[1]))
        save_state(state_file, settings, net, optimiser, history)

    try:
        history = train(net, recipe, training, watched, teacher=teacher and teacher.net,
                        optimiser=optimiser, history=history, after_epoch=after_epoch, group=group)
    except KeyboardInterrupt:
        if rank == 0 and os.path.exists(state_file):
            print("\nstopped; the same command with --resume goes on after the last whole epoch",
                  file=sys.stderr)
        raise
    if rank > 0:
        return
    try:
        save_weights(net, arguments.output)
    except MNISTError as error:
        raise MNISTError(f"{error}\nnothing is lost: the same command with --resume writes them "
                         f"from {state_file}") from error
    result = report_result(arguments, net, history, watched)
    with contextlib.suppress(FileNotFoundError):
        os.remove(state_file)
    write_record(arguments, net, settings, history, result)


def choose_files(arguments, name):
    """Set --output and --json where they weren't given, and find out before the training, not
    after it, that one of the files can't be written."""
    from mnist.bench.plots import check_plot
    from mnist.models.weights import trained_path
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
    """(training digits, those to watch the accuracy on), as `load_tensors` gives them.

    With --validate the latter are held-out training digits, else the test digits.
    """
    training = load_tensors("train", device, arguments.data, arguments.data_dir)
    if arguments.validate:
        return hold_out(training)
    return training, load_tensors("test", device, arguments.data, arguments.data_dir)


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
          f"{accuracy_text(round(line['accuracy'] * total), total)}", flush=True)
    if not math.isfinite(line["train_loss"] + line["loss"]):
        raise MNISTError(f"the training diverged in epoch {line['epoch']}; nothing was saved.\n"
                         f"A smaller --lr than {arguments.lr} may help")


def report_result(arguments, net, history, watched):
    """Print the closing lines; gives the result as a dict for the record."""
    if arguments.validate:
        digits = load_tensors("test", watched[0].device, arguments.data, arguments.data_dir)
        loss, right = evaluate(net, digits)
    else:  # the last epoch's line was of the test digits already
        digits, loss = watched, history[-1]["loss"]
        right = round(history[-1]["accuracy"] * len(digits[1]))
    total = len(digits[1])
    seconds = sum(line["seconds"] for line in history)
    on = "generated digits, not MNIST" if arguments.data == "generated" else "the test digits"
    print(f"saved {arguments.output}\n{seconds:.1f} s for {arguments.epochs} epochs, average loss "
          f"{loss:.4f}, accuracy {right}/{total} ({right / total * 100:.2f} %) on {on}")
    return {"seconds": seconds, "loss": loss, "accuracy": right / total}


def save_state(path, settings, net, optimiser, history):
    """Write all that --resume needs, whole or not at all.

    The optimiser's settings follow from the recipe, and numbers that aren't tensors go as text:
    torch 1.13 refuses a float in a file that it may run no code of.
    """
    from mnist.models.weights import write_pickle
    write_pickle({"settings": json.dumps(settings), "history": json.dumps(history),
                  "net": net.state_dict(), "optimiser": optimiser.state_dict()["state"]}, path)


def resume(path, settings, net, optimiser):
    """Put network and optimiser back to where `save_state` left them; gives the history so far.

    What the settings say must be the same for the run to end with the same weights.
    """
    from mnist.models.weights import read_pickle
    if not os.path.exists(path):
        raise UnavailableError(f"--resume: there is no unfinished run {path}")
    state = read_pickle(path, trust_pickle=False)
    try:
        saved, history = json.loads(state["settings"]), json.loads(state["history"])
        for name, value in settings.items():
            if saved[name] != value:
                raise UnavailableError(f"--resume: the unfinished run had {name.replace('_', '-')} "
                                       f"{saved[name]}, not {value}; give the same flags")
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(dict(optimiser.state_dict(), state=state["optimiser"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MNISTError(f"--resume: {path} is not a state of this script "
                         f"({str(error).splitlines()[0]})") from error
    print(f"resuming after epoch {len(history)} of {settings['epochs']}")
    return history


def write_record(arguments, net, settings, history, result):
    """Write --json and --plot."""
    from mnist.machine import machine_record
    from MNISTmodel import count_multiply_adds, count_parameters
    net.cpu()
    record = {
        "schema": 1, "machine": machine_record(), "settings": settings,
        "teacher_sha256": arguments.teacher and file_digest(arguments.teacher),
        "weights": {"file": os.path.basename(arguments.output),
                    "sha256": file_digest(arguments.output),
                    "parameters": count_parameters(net),
                    "multiply_adds": count_multiply_adds(net)},
        "epochs": history, "result": result}
    save_json(arguments.json, record)
    if arguments.plot:
        from mnist.bench.plots import plot_training
        plot_training(arguments.plot, record)


def file_digest(path):
    """The SHA-256 of a file: which weights a record is of."""
    with open(path, "rb") as file:
        return digest(file.read())


if __name__ == "__main__":
    run_program(main)
