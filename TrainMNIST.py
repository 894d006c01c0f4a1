"""Train a network on MNIST, on another image set or on your own pictures, and save its weights,
with a record of the training beside them.

examples:
  python TrainMNIST.py                                    5 epochs, about 99.4 %
  python TrainMNIST.py --epochs 60 --augment              slower, better, also for what you draw
  python TrainMNIST.py --data cifar10 --epochs 30 --augment --lr 0.2
  python TrainMNIST.py --data my_photos/ --image-size 64  a folder for each class
  python TrainMNIST.py --validate --lr 0.02               try a recipe without the test images
  python TrainMNIST.py --network small --teacher weights/net.pth --augment
  python TrainMNIST.py --network mine.py:MyNet            your own network: writes MyNet.pth
  python TrainMNIST.py --epochs 60 --augment --resume     go on where that command was stopped
  torchrun --nproc_per_node 2 TrainMNIST.py               on two processes or GPUs

Everything is deterministic: the same seed, machine and number of threads give the same weights,
bit for bit, also through --resume. Of several processes each gives batch norm its own part of a
batch, and the averages that are saved are those of the first one.
"""

import contextlib
import math
import os
import sys

from mnist.cli import (
    ABOVE_0,
    AT_LEAST_0,
    BELOW_1,
    SHARE,
    add_flags,
    make_parser,
    positive_int,
    run_program,
)
from mnist.errors import MNISTError, UnavailableError, warn
from mnist.files import check_writable, digest, save_json
from mnist.machine import machine_record
from mnist.training.recipe import LEARNING_RATES, TEACHER_SHARE, USUAL_BATCH, Recipe, usual_batch

DEFAULTS = Recipe()
FEW_STEPS = 100  # after so few a network may not have learned anything yet


class DivergedError(MNISTError):
    """The training diverged: its weights are worth nothing."""


def main():
    arguments = parse_arguments()
    import_library()
    plots.check_outputs(arguments)
    device = engines.choose_device(arguments.device)
    with process_group(device) as (rank, world):
        if rank > 0:
            sys.stdout = open(os.devnull, "w")
        train_network(arguments, device, rank, world)


def import_library():
    """Import what the work needs: only now, so that --help answers at once."""
    global MNISTmodel, Normalised, Transfer, engines, find_image_set, find_network, known_answers
    global load_images, loop, np, plots, state, torch, weights
    import numpy as np
    import torch

    import MNISTmodel
    from mnist.bench import plots
    from mnist.bench.reference import known_answers
    from mnist.engines import registry as engines
    from mnist.models import weights
    from mnist.models.backbones import Transfer
    from mnist.models.fold import Normalised
    from mnist.models.registry import find_network
    from mnist.training import loop, state
    from MNISTdsource import find_image_set, load_images


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "image-size", "channels", "device", "threads", "plot",
              data="mnist")
    parser.add_argument("--network", metavar="NAME",
                        help="the network to train: a built-in one, or FILE.py:CLASS for your own "
                             "(default: net, for pictures in colour pooled-80, for "
                             "fashion-mnist, cifar10 and gtsrb the ones whose weights are "
                             "shipped)")
    parser.add_argument("--teacher", type=os.path.expanduser, metavar="WEIGHTS",
                        help="weights of a built-in network, or of TransferMNIST.py, whose outputs "
                             "are learned along with the targets (distillation): "
                             f"{TEACHER_SHARE:g} of the loss")
    parser.add_argument("--epochs", type=positive_int, default=DEFAULTS.epochs, metavar="N",
                        help="passes over the training images (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, metavar="N",
                        help=f"images a step, over all processes (default: {USUAL_BATCH}; of fewer "
                             f"than {64 * USUAL_BATCH} training images a 64th part)")
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
                        help="change the images at random: digits are turned, stretched, slanted, "
                             "moved, thickened and thinned; pictures flipped and moved; signs "
                             "turned, stretched, moved and lit otherwise. All of them, or this "
                             "share of each batch")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"),
                        default=DEFAULTS.precision,
                        help="of the training arithmetic; auto takes bf16 where the processor "
                             "has it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, metavar="N",
                        help="default: %(default)s")
    parser.add_argument("--validate", action="store_true",
                        help="hold out a sixth of the training images and show the score on them; "
                             "the test images are read once, at the end")
    parser.add_argument("--output", type=os.path.expanduser, metavar="FILE",
                        help="weights to write (default: NetMNIST.pth beside the scripts, named "
                             "after network and image set; with --validate NetMNIST-validate.pth)")
    parser.add_argument("--json", type=os.path.expanduser, metavar="FILE",
                        help="where the record of the training goes, - for stdout (default: beside "
                             "the weights, NetMNIST.json)")
    parser.add_argument("--resume", action="store_true",
                        help="go on after the last completed epoch of the same command")
    return parser.parse_args()


@contextlib.contextmanager
def process_group(device):
    """(rank, number of processes): those of torchrun's process group, else (0, 1)."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield 0, 1
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
    finally:
        torch.distributed.destroy_process_group()


def train_network(arguments, device, rank, world):
    """The whole job: data, network, epochs, weights, record."""
    image_set = find_image_set(arguments.data, arguments.image_size, arguments.channels)
    name, make = find_network(arguments.network or weights.default_network(image_set))
    choose_files(arguments, name, image_set)
    engines.set_threads(arguments.threads)
    data = load_images(image_set, "train", arguments.data, arguments.data_dir)
    recipe = make_recipe(arguments, device, len(data.targets))
    if recipe.batch_size < world:
        raise UnavailableError(f"--batch-size {recipe.batch_size} is too small for "
                               f"{world} processes")
    net = loop.new_network(name, make, image_set, recipe, device)
    teacher = find_teacher(arguments.teacher, image_set)
    if arguments.validate:
        training, watched = loop.hold_out(data, device)
    else:
        training = loop.to_tensors(data, device)
        watched = test_images(image_set, arguments, device)
    run = loop.Run(net, image_set, recipe, training, watched, teacher and teacher.net, rank, world)
    settings = dict(recipe._asdict(), precision="bf16" if run.bfloat16 else "fp32", network=name,
                    teacher=arguments.teacher, data=data.source, data_sha256=data.digest,
                    validate=arguments.validate)
    describe_run(run, settings, teacher)
    state_file = arguments.output + ".resume"
    state.begin(state_file, settings, run, arguments.resume)
    try:
        for line in state.train_and_save(run, state_file, settings):
            report_epoch(line, arguments, run)
        if rank == 0:
            check_converged(run, data)
    except DivergedError:  # there is nothing to go on with
        state.forget(state_file)
        raise
    if rank == 0:
        finish(run, arguments, settings, state_file, data)


def find_teacher(path, image_set):
    """The `Network` that is learned from, or None. Raises UnavailableError where it doesn't fit."""
    if not path:
        return None
    teacher = weights.load_network(path, image_set=image_set)
    theirs = teacher.image_set
    if theirs.classes != image_set.classes:
        raise UnavailableError(f"--teacher {path} is of {theirs.name}, not of {image_set.name}")
    if theirs.shape != image_set.shape and not (
            isinstance(teacher.net, Transfer) and theirs.shape[0] == image_set.shape[0]):
        raise UnavailableError("--teacher {} takes images of {}×{}×{}, not of {}×{}×{}".format(
            path, *theirs.shape + image_set.shape))
    return teacher._replace(net=Normalised(teacher.net, theirs, given=image_set))


def describe_run(run, settings, teacher):
    """Say what is trained, and how."""
    print(f"training on {len(run.training[1])} images of {settings['data']}: "
          f"{settings['network']}, {run.device.type}, "
          f"{torch.get_num_threads()} threads"
          + (f" in each of {run.world} processes" if run.world > 1 else "")
          + f", {'bfloat16' if run.bfloat16 else 'float32'}, channels-last, "
          + run.recipe.optimizer
          + (f"\nteacher: {teacher.name}, {teacher.origin}" if teacher else ""))


def finish(run, arguments, settings, state_file, data):
    """Write the weights and the record, and say what came out."""
    try:
        weights.save_weights(run.net, arguments.output, settings["network"], run.image_set)
    except MNISTError as error:
        raise MNISTError(f"{error}\nnothing is lost: the same command with --resume writes them "
                         f"from {state_file}") from error
    result = report_result(arguments, run, data)
    state.forget(state_file)
    write_record(arguments, run, settings, result, data)


def check_converged(run, data):
    """Raise DivergedError where a classifier is no better than guessing, with a loss above it."""
    last, image_set = run.history[-1], run.image_set
    if image_set.task != "classification" or last["loss"] <= math.log(image_set.outputs):
        return
    # By chance one that diverged may be right more often than that; its loss gives it away.
    same = int(torch.bincount(run.watched[1]).max())  # right where always the same class is named
    if last["right"] > (1.5 if last["loss"] > 5 * math.log(image_set.outputs) else 1) * same:
        return
    steps = run.recipe.epochs * len(loop.batches_of(len(run.training[1]), run.recipe.batch_size))
    if steps < FEW_STEPS and last["loss"] < 2 * math.log(image_set.outputs):
        warn(f"no better than guessing after {steps} step{'' if steps == 1 else 's'}: more "
             "--epochs or a smaller --batch-size may help")
        return
    mean = data.images[:1000].mean() / 255
    wrong_kind = abs(mean - np.mean(image_set.mean)) > 0.3
    raise DivergedError(
        f"the network has learned nothing: loss {last['loss']:.4g} and accuracy "
        f"{last['accuracy']:.2%}, where guessing has {math.log(image_set.outputs):.2f}; nothing "
        "was saved.\n"
        + (f"The images' mean is {mean:.2f}, {image_set.name}'s {np.mean(image_set.mean):.2f}: are "
           "they light on dark?" if wrong_kind else
           f"A smaller --lr than {run.recipe.peak():g}, a smaller --batch-size or more --epochs "
           "may help"))


def choose_files(arguments, name, image_set):
    """Set --output and --json where they weren't given, and find out before the training, not
    after it, that the weights can't be written."""
    if arguments.output is None:
        stem, extension = os.path.splitext(weights.trained_path(name, image_set))
        arguments.output = stem + ("-validate" if arguments.validate else "") + extension
    if arguments.json is None:
        arguments.json = os.path.splitext(arguments.output)[0] + ".json"
    check_writable("--output", arguments.output)


def make_recipe(arguments, device, images):
    """The `Recipe` of the flags, for so many training images."""
    recipe = Recipe(**{field: getattr(arguments, field) for field in Recipe._fields})
    if recipe.batch_size is None:
        recipe = recipe._replace(batch_size=usual_batch(images))
    recipe = recipe._replace(lr=recipe.peak())
    if recipe.precision == "bf16" and not loop.has_bfloat16(device):
        warn(f"--precision bf16: this {device} has no bfloat16 arithmetic; it will be slow")
    return recipe


def test_images(image_set, arguments, device):
    """The test images, as `to_tensors` gives them."""
    data = load_images(image_set, "test", arguments.data, arguments.data_dir)
    return loop.to_tensors(data, device)


def score_text(result, number):
    """ "accuracy 9935/10000 (99.35 % ± 0.08)": with the standard error of a binomial proportion;
    or "RMSE 0.0683"."""
    if "rmse" in result:
        return f"RMSE {result['rmse']:.4f}"
    share = result["accuracy"]
    error = math.sqrt(share * (1 - share) / number)
    return f"accuracy {result['right']}/{number} ({share * 100:.2f} % ± {error * 100:.2f})"


def report_epoch(line, arguments, run):
    """Print the line of an epoch, a dict of `train`'s history. Raises DivergedError where
    the training has diverged."""
    images = "held-out" if arguments.validate else "test"
    print(f"epoch {line['epoch']}/{arguments.epochs}  {line['seconds']:6.2f} s  "
          f"training loss {line['train_loss']:.4f}  {images} loss {line['loss']:.4f}  "
          + score_text(line, len(run.watched[1])), flush=True)
    if not math.isfinite(line["train_loss"] + line["loss"]):
        raise DivergedError(f"the training diverged in epoch {line['epoch']}; nothing was saved.\n"
                            f"A smaller --lr than {run.recipe.lr:g} may help")


def report_result(arguments, run, data):
    """Print the closing lines; gives the result as a dict for the record."""
    if arguments.validate:
        test = test_images(run.image_set, arguments, run.device)
        result = loop.evaluate(run.net, run.image_set, test)
    else:  # the last epoch's line was of the test images already
        test, result = run.watched, run.history[-1]
    number = len(test[1])
    seconds = sum(line["seconds"] for line in run.history)
    on = "generated digits, not MNIST" if arguments.data == "generated" else \
        f"the test images of {run.image_set.name}"
    print(f"saved {arguments.output}\n{seconds:.1f} s for {arguments.epochs} epochs, loss "
          f"{result['loss']:.4f}, {score_text(result, number)} on {on}")
    kept = {key: result[key] for key in ("loss", "accuracy", "rmse") if key in result}
    return dict(kept, seconds=seconds, **without_copies(run, data, test))


def without_copies(run, data, test):
    """Where some of the test images are also among the training images: say so, and how good the
    network is on the others, as a dict for the record."""
    known = {image.tobytes() for image in data.images}
    images = test[0].cpu().numpy()
    new = torch.tensor([image.tobytes() not in known for image in images], device=run.device)
    if new.all() or not new.any():
        return {}
    result = loop.evaluate(run.net, run.image_set, [tensor[new] for tensor in test])
    copies = int((~new).sum())
    print(f"{copies} of the test images {'is' if copies == 1 else 'are'} also among the training "
          f"images; {score_text(result, int(new.sum()))} on the others")
    return {"copies": copies,
            "without_copies": result[run.image_set.metric]}


def write_record(arguments, run, settings, result, data):
    """Write --json and --plot."""
    net = run.net.cpu()
    record = {
        "schema": 1, "machine": machine_record(), "image_set": run.image_set._asdict(),
        "settings": settings,
        "teacher_sha256": arguments.teacher and file_digest(arguments.teacher),
        "weights": {"file": os.path.basename(arguments.output),
                    "sha256": file_digest(arguments.output),
                    "parameters": MNISTmodel.count_parameters(net),
                    "macs": MNISTmodel.count_macs(net, run.image_set.shape)},
        "known": known_answers(net, run.image_set, data.images),
        "epochs": run.history, "result": result}
    save_json(arguments.json, record)
    if arguments.plot:
        plots.plot_training(arguments.plot, record)


def file_digest(path):
    """The SHA-256 of a file: which weights a record is of."""
    with open(path, "rb") as file:
        return digest(file.read())


if __name__ == "__main__":
    run_program(main)
