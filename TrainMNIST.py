"""Train the network on MNIST and save its weights.

examples:
  python TrainMNIST.py                                    5 epochs, about 99.3 %
  python TrainMNIST.py --epochs 60 --augment              slower, better, also for what you draw
  python TrainMNIST.py --validate --lr 0.1                try a recipe without the test set
  python TrainMNIST.py --epochs 60 --augment --resume     go on where that command was stopped
  torchrun --nproc_per_node 2 TrainMNIST.py               on two processes or GPUs

Everything is deterministic: the same seed, machine and number of threads give the same weights,
bit for bit, also through --resume.
"""

import contextlib
import inspect
import json
import math
import os
import sys
import time

from MNISTscript import (
    HERE,
    MNISTError,
    UnavailableError,
    add_flags,
    keep_stdout_for_json,
    make_parser,
    positive_int,
    run_program,
    save_json,
    show_progress,
    warn,
)

HELD_OUT = 10000  # digits at the end of the training set that --validate keeps for choosing

# Peak learning rates: SGD with Nesterov momentum diverges at 0.1, AdamW gets worse from 0.005 on.
LEARNING_RATES = {"sgd": 0.05, "adamw": 0.002}
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARM_UP = 0.25  # the part of the training in which the learning rate climbs to its peak

# --augment: the most that a digit is turned, stretched, slanted, moved and thickened or thinned.
ROTATION_DEGREES = 12
SCALE = 0.12
SHEAR = 0.2
SHIFT_PIXELS = 2
THICKNESS = 0.7


def main():
    arguments = parse_arguments()
    keep_stdout_for_json(arguments.json)
    with process_group() as (rank, world):
        if rank > 0:
            sys.stdout = open(os.devnull, "w")
        train(arguments, rank, world)


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data-dir", "device", "threads", "json", "plot")
    parser.add_argument("--data", choices=("mnist", "generated"), default="mnist",
                        help="generated: digits drawn from fonts, where MNIST can't be had "
                             "(default: %(default)s)")
    parser.add_argument("--epochs", type=positive_int, default=5, metavar="N",
                        help="passes over the training digits (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=64, metavar="N",
                        help="digits a step, over all processes (default: %(default)s)")
    parser.add_argument("--lr", type=float, metavar="X", help="peak learning rate "
                        "(default: {sgd} for sgd, {adamw} for adamw)".format(**LEARNING_RATES))
    parser.add_argument("--optimizer", choices=sorted(LEARNING_RATES), default="sgd",
                        help="sgd is with Nesterov momentum (default: %(default)s)")
    parser.add_argument("--label-smoothing", type=float, default=0.05, metavar="X",
                        help="weight of the wrong answers in the loss (default: %(default)s)")
    parser.add_argument("--augment", action="store_true",
                        help="turn, stretch, slant, move, thicken and thin the digits at random")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="of the training arithmetic; auto takes bf16 where the processor "
                             "has it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--validate", action="store_true",
                        help=f"hold out the last {HELD_OUT} training digits and show the accuracy "
                             "on them; the test digits are read once, at the end")
    parser.add_argument("--output", default=os.path.join(HERE, "NetMNIST.pth"), metavar="FILE",
                        help="weights to write (default: NetMNIST.pth beside the scripts)")
    parser.add_argument("--resume", action="store_true",
                        help="go on after the last completed epoch of the same command")
    arguments = parser.parse_args()
    if arguments.lr is None:
        arguments.lr = LEARNING_RATES[arguments.optimizer]
    if not 0 < arguments.lr < math.inf:
        parser.error(f"--lr must be above 0, not {arguments.lr}")
    if not 0 <= arguments.label_smoothing < 1:
        parser.error(f"--label-smoothing must be from 0 to 1, not {arguments.label_smoothing}")
    return arguments


@contextlib.contextmanager
def process_group():
    """(rank, number of processes): those of torchrun's process group, else (0, 1)."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield 0, 1
        return
    import torch
    import torch.distributed as dist
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def train(arguments, rank, world):
    """The whole job: data, network, epochs, weights, report."""
    import torch

    from MNISTengine import choose_device, set_threads
    from MNISTmodel import Net
    from MNISTweights import save_weights

    check_writable(arguments.output)
    if arguments.plot:
        import matplotlib  # noqa: F401  (find out before the training that it is missing)
    threads = set_threads(arguments.threads)
    device = choose_device(arguments.device)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.backends.cudnn.deterministic = True
    bfloat16 = use_bfloat16(arguments.precision, device)
    if arguments.batch_size < world:
        raise UnavailableError(f"--batch-size {arguments.batch_size} is too small for "
                               f"{world} processes")

    started = time.perf_counter()
    training, watched, test = prepare_digits(arguments, device)
    torch.manual_seed(arguments.seed)
    net = Net().to(device, memory_format=torch.channels_last)
    optimiser, fused = make_optimiser(arguments, net)
    print(f"training on {len(training[1])} digits: {device}, {threads} threads"
          + (f" in each of {world} processes" if world > 1 else "")
          + f", {'bfloat16' if bfloat16 else 'float32'}, channels-last"
          + (f", fused {arguments.optimizer}" if fused else f", {arguments.optimizer}"))

    state_file = arguments.output + ".resume"
    history = resume(state_file, arguments, net, optimiser) if arguments.resume else []
    if not arguments.resume and os.path.exists(state_file):
        warn(f"starting anew; the unfinished run in {state_file} is lost after the first epoch "
             "(--resume would go on with it)")
    parallel = distribute(net, device) if world > 1 else net
    try:
        for epoch in range(len(history), arguments.epochs):
            epoch_started = time.perf_counter()
            loss = train_epoch(arguments, parallel, optimiser, training, epoch, bfloat16, rank,
                               world)
            if rank == 0:
                taken = time.perf_counter() - epoch_started
                history.append(report_epoch(arguments, net, watched, epoch, taken, loss))
                save_state(state_file, arguments, net, optimiser, history)
    except KeyboardInterrupt:
        if rank == 0 and history:
            print(f"\nstopped after {len(history)} of {arguments.epochs} epochs; the same command "
                  "with --resume goes on from there", file=sys.stderr)
        raise
    if rank == 0:
        save_weights(net, arguments.output)
        if arguments.validate:
            test = load_test_digits(arguments, device)
            loss, right = evaluate(net, test)
        else:  # the last epoch's line was of the test digits already
            loss, right = history[-1]["loss"], round(history[-1]["accuracy"] * len(test[1]))
        result = report_result(arguments, loss, right, len(test[1]), time.perf_counter() - started)
        with contextlib.suppress(FileNotFoundError):
            os.remove(state_file)
        write_results(arguments, history, result)


def check_writable(path):
    """Find out before the training, not after it, that the weights can't be written."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise UnavailableError(f"--output {path} is a folder, not a file")
    if not os.path.isdir(folder):
        raise UnavailableError(f"--output {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UnavailableError(f"--output {path}: no permission to write in {folder}")


def use_bfloat16(precision, device):
    """Whether to compute in bfloat16: asked for, or `auto` on a processor that has it."""
    import torch
    if device == "cuda":
        has = hasattr(torch.cuda, "is_bf16_supported") and torch.cuda.is_bf16_supported()
    else:
        # torch emulates bfloat16 on any CPU, slowly; oneDNN needs these to be quick.
        has = hasattr(torch, "amp") and bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
    if precision == "bf16" and not has:
        warn(f"--precision bf16: this {device} has no bfloat16 arithmetic; it will be slow")
    return precision == "bf16" or (precision == "auto" and has)


def cpu_flags():
    """The features of the CPU that Linux lists; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as file:
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()


def prepare_digits(arguments, device):
    """(training digits, digits to watch the accuracy on, test digits) as tensors on the device.

    Each is a pair (images uint8 (N, 28, 28), labels int64 (N,)). With --validate the test digits
    are None: they are read once, at the end.
    """
    from MNISTdsource import load_digits
    digits = load_digits("train", arguments.data, arguments.data_dir)[:2]
    if not arguments.validate:
        test = load_test_digits(arguments, device)
        return to_device(digits, device), test, test
    if len(digits[1]) <= HELD_OUT:
        raise UnavailableError(f"--validate holds out {HELD_OUT} digits, but there are only "
                               f"{len(digits[1])} to train on")
    held_out = to_device([array[-HELD_OUT:] for array in digits], device)
    return to_device([array[:-HELD_OUT] for array in digits], device), held_out, None


def load_test_digits(arguments, device):
    """The test digits on the device: (images uint8 (N, 28, 28), labels int64 (N,))."""
    from MNISTdsource import load_digits
    return to_device(load_digits("test", arguments.data, arguments.data_dir)[:2], device)


def to_device(digits, device):
    """Arrays (images, labels) as tensors on the device: uint8 and int64."""
    import torch
    images, labels = (torch.from_numpy(array) for array in digits)
    return images.to(device), labels.to(device).long()


def make_optimiser(arguments, net):
    """The optimiser, and whether it is a fused one (one kernel a step, where torch has it)."""
    import torch
    if arguments.optimizer == "sgd":
        kind, settings = torch.optim.SGD, {"momentum": MOMENTUM, "nesterov": True}
    else:
        kind, settings = torch.optim.AdamW, {}
    settings.update(lr=arguments.lr, weight_decay=WEIGHT_DECAY)
    if "fused" in inspect.signature(kind).parameters:
        with contextlib.suppress(RuntimeError):  # torch 2.0 knows it, but not on every device
            return kind(net.parameters(), fused=True, **settings), True
    return kind(net.parameters(), **settings), False


def distribute(net, device):
    """The network wrapped so that the processes of the group share their gradients."""
    import torch
    devices = [torch.cuda.current_device()] if device == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(net, device_ids=devices)


def train_epoch(arguments, net, optimiser, digits, epoch, bfloat16, rank, world):
    """One pass over the training digits in a new random order; gives the mean loss.

    All processes draw the same order from the seed; each takes its part of every batch.
    """
    import torch
    from torch.nn.functional import nll_loss

    from MNISTdsource import normalise
    images, labels = digits
    device = images.device
    order = torch.randperm(len(labels), generator=generator("cpu", arguments.seed, epoch))
    images, labels = images[order.to(device)], labels[order.to(device)]
    chance = generator(device, arguments.seed, epoch, rank)
    steps = math.ceil(len(labels) / arguments.batch_size)
    total = torch.zeros((), device=device)
    net.train()
    for step in range(steps):
        set_learning_rate(optimiser, arguments.lr, (epoch + (step + 1) / steps) / arguments.epochs)
        batch = slice(step * arguments.batch_size, (step + 1) * arguments.batch_size)
        answers = labels[batch][rank::world]
        x = normalise(images[batch][rank::world])
        if arguments.augment:
            x = augment(x, chance)
        with contextlib.ExitStack() as arithmetic:
            if bfloat16:
                arithmetic.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
            log_probabilities = net(x)
        loss = nll_loss(log_probabilities, answers)
        if arguments.label_smoothing:
            loss = torch.lerp(loss, -log_probabilities.mean(), arguments.label_smoothing)
        # The processes' gradients are averaged: weigh parts of unequal length by their length.
        (loss * (len(answers) * world / len(labels[batch]))).backward()
        optimiser.step()
        optimiser.zero_grad()
        total += loss.detach() * len(answers)
        if step % 50 == 0 and rank == 0:
            show_progress(step / steps, f"epoch {epoch + 1}/{arguments.epochs}")
    show_progress(None)
    return float(total) * world / len(labels)


def generator(device, *numbers):
    """A random generator that depends on these numbers alone, so that a resumed run needs none
    of the earlier ones' state."""
    import torch
    seed = 0
    for number in numbers:
        seed = (seed * 1000003 + number) % 2**63
    return torch.Generator(device=device).manual_seed(seed)


def set_learning_rate(optimiser, peak, done):
    """One cycle: up to the peak in a straight line, then down to nothing along a cosine.

    `done`: the part of the training that is behind after this step, up to 1. Source: Smith and
    Topin, "Super-Convergence", 2018.
    """
    if done < WARM_UP:
        rate = peak * done / WARM_UP
    else:
        rate = peak * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
    for group in optimiser.param_groups:
        group["lr"] = rate


def augment(x, chance):
    """Each digit of a normalised batch (B, 1, 28, 28) turned, stretched, slanted, moved, and
    thickened or thinned at random, the whole batch at once on its device."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    from MNISTdsource import MEAN, STD

    def uniform(limit, *shape):
        return (torch.rand(len(x), *shape, generator=chance, device=x.device) * 2 - 1) * limit

    angle = uniform(math.radians(ROTATION_DEGREES))
    across, down = 1 + uniform(SCALE), 1 + uniform(SCALE)
    cos, sin, slant = torch.cos(angle), torch.sin(angle), uniform(SHEAR)
    shift = uniform(SHIFT_PIXELS / 14, 2)  # grid_sample's unit is half a picture
    matrix = torch.stack([
        torch.stack([across * cos, across * (slant * cos - sin), shift[:, 0]], 1),
        torch.stack([down * sin, down * (slant * sin + cos), shift[:, 1]], 1)], 1)
    background = -MEAN / STD
    grid = affine_grid(matrix, x.shape, align_corners=False)
    x = grid_sample(x - background, grid, align_corners=False) + background
    return change_thickness(x, uniform(THICKNESS, 1, 1, 1))


def change_thickness(x, amount):
    """Blend each digit with its dilation (amount up to 1) or its erosion (down to -1)."""
    from torch.nn.functional import max_pool2d
    thick = max_pool2d(x, 3, stride=1, padding=1)
    thin = -max_pool2d(-x, 3, stride=1, padding=1)
    return x + amount.clamp(min=0) * (thick - x) + amount.clamp(max=0) * (x - thin)


def evaluate(net, digits):
    """(mean loss, number right) of the network in float32 over digits on the device."""
    import torch
    from torch.nn.functional import nll_loss

    from MNISTdsource import normalise
    net.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for images, labels in zip(*(array.split(250) for array in digits)):
            log_probabilities = net(normalise(images))
            loss += float(nll_loss(log_probabilities, labels, reduction="sum"))
            right += int((log_probabilities.argmax(1) == labels).sum())
    return loss / len(digits[1]), right


def accuracy_text(right, total):
    """ "9935/10000 (99.35 % ± 0.08)": with the standard error of a binomial proportion."""
    share = right / total
    error = math.sqrt(share * (1 - share) / total)
    return f"{right}/{total} ({share * 100:.2f} % ± {error * 100:.2f})"


def report_epoch(arguments, net, watched, epoch, taken, train_loss):
    """Evaluate, print the epoch's line, and give it as a dict for the record."""
    loss, right = evaluate(net, watched)
    digits = "held-out" if arguments.validate else "test"
    print(f"epoch {epoch + 1}/{arguments.epochs}  {taken:6.2f} s  training loss {train_loss:.4f}  "
          f"{digits} loss {loss:.4f}  accuracy {accuracy_text(right, len(watched[1]))}", flush=True)
    return {"epoch": epoch + 1, "seconds": taken, "train_loss": train_loss, "loss": loss,
            "accuracy": right / len(watched[1])}


def report_result(arguments, loss, right, total, taken):
    """Print the closing lines; gives the result as a dict for the record."""
    on = "generated digits, not MNIST" if arguments.data == "generated" else "the test digits"
    print(f"saved {arguments.output}\n{taken:.1f} s for {arguments.epochs} epochs, average loss "
          f"{loss:.4f}, accuracy {right}/{total} ({right / total * 100:.2f} %) on {on}")
    return {"seconds": taken, "loss": loss, "accuracy": right / total}


# What a run must have in common with the one that it resumes to end with the same weights.
RECIPE = ("data", "epochs", "batch_size", "lr", "optimizer", "label_smoothing", "augment",
          "precision", "seed", "validate")


def recipe(arguments):
    return {name: getattr(arguments, name) for name in RECIPE}


def save_state(path, arguments, net, optimiser, history):
    """Write all that --resume needs, whole or not at all.

    The optimiser's settings follow from the recipe, and numbers that aren't tensors go as text:
    torch 1.13 refuses a float in a file that it may run no code of.
    """
    from MNISTweights import write_pickle
    write_pickle({"recipe": json.dumps(recipe(arguments)), "history": json.dumps(history),
                  "net": net.state_dict(), "optimiser": optimiser.state_dict()["state"]}, path)


def resume(path, arguments, net, optimiser):
    """Put network and optimiser back to where `save_state` left them; gives the history so far."""
    from MNISTweights import read_pickle
    if not os.path.exists(path):
        raise UnavailableError(f"--resume: there is no unfinished run {path}")
    state = read_pickle(path, trust_pickle=False)
    mine = recipe(arguments)
    try:
        saved, history = json.loads(state["recipe"]), json.loads(state["history"])
        changed = [name for name in RECIPE if saved[name] != mine[name]]
        if changed:
            name = changed[0]
            raise UnavailableError(f"--resume: the unfinished run had {name.replace('_', '-')} "
                                   f"{saved[name]}, not {mine[name]}; give the same flags")
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(dict(optimiser.state_dict(), state=state["optimiser"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MNISTError(f"--resume: {path} is not a state of this script "
                         f"({str(error).splitlines()[0]})") from error
    print(f"resuming after epoch {len(history)} of {arguments.epochs}")
    return history


def write_results(arguments, history, result):
    """The JSON record and the plot, where asked for."""
    if arguments.json:
        from MNISTmachine import machine_record
        save_json(arguments.json, {
            "schema": 1, "machine": machine_record(), "settings": recipe(arguments),
            "epochs": history, "result": result})
    if arguments.plot:
        plot(arguments, history)


def plot(arguments, history):
    """Loss and accuracy by epoch, into the file of --plot."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    digits = "held-out" if arguments.validate else "test"
    epochs = [line["epoch"] for line in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    left.plot(epochs, [line["train_loss"] for line in history], "o-", label="training")
    left.plot(epochs, [line["loss"] for line in history], "s--", label=digits)
    left.set(xlabel="epoch", ylabel="mean loss", yscale="log")
    left.legend()
    right.plot(epochs, [line["accuracy"] * 100 for line in history], "s--", color="C1")
    right.set(xlabel="epoch", ylabel=f"accuracy on the {digits} digits, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(arguments.plot, dpi=120)


if __name__ == "__main__":
    run_program(main)
