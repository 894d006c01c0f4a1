"""Train a network that knows ImageNet on a few pictures of your own: classes, or values to predict.

examples:
  python TransferMNIST.py --data my_photos/                 a folder for each class; ResNet-18
  python TransferMNIST.py --data dataset_xy/                values in the file names: where to steer
  python TransferMNIST.py --data gtsrb --per-class 20 --backbone efficientnet-lite0 --size 96
  python TransferMNIST.py --data cifar10 --per-class 5 20 100 --seeds 3 --plot curve.png
  python InfMNISTcudaRT.py --weights NetTransfer.pth --data my_photos/      the engine, on a Jetson

The new head is trained first, on features that are computed once, then all of the network with a
lower rate. Resizing, the order of channels and the normalisation are part of what is saved, with
the names of the classes: every other program, engine and the server take pictures as they are.
docs/transfer.md goes from photos to the engine.
"""

import os
import time

from mnist.cli import ABOVE_0, add_flags, make_parser, positive_int, run_program, show_progress
from mnist.errors import UnavailableError
from mnist.files import ROOT, save_json
from mnist.machine import machine_record, ram_gib

HEAD_RATE, HEAD_EPOCHS = 3e-3, 40  # AdamW, on the features
SCRATCH_RATE = 2e-3  # for a network that knows nothing yet
SMALL_MEMORY = 6  # GiB: less trains the head alone, unless told otherwise
WATCHED = 500  # test images that progress is shown on; all are read at the end


def main():
    arguments = parse_arguments()
    import_library()
    plots.check_outputs(arguments)
    engines.set_threads(arguments.threads)
    device = engines.choose_device(arguments.device)
    image_set = the_image_set(arguments)
    data, test = (load_images(image_set, split, arguments.data, arguments.data_dir)
                  for split in ("train", "test"))
    check_targets(image_set, data, test)
    if is_curve(arguments):
        return draw_curve(arguments, image_set, data, test, device)
    number = arguments.per_class and arguments.per_class[0]
    network, result = transfer(arguments, image_set, choose(data, number, arguments.seed), test,
                               device, arguments.seed)
    finish(arguments, network, result, data, test)


def import_library():
    """Import what the work needs: only now, so that --help answers at once."""
    global MNISTmodel, Recipe, backbones, engines, find_image_set, find_network, known_answers
    global load_images, loop, np, plots, state, torch, weights
    import numpy as np
    import torch

    import MNISTmodel
    from mnist.bench import plots
    from mnist.bench.reference import known_answers
    from mnist.engines import registry as engines
    from mnist.models import backbones, weights
    from mnist.models.registry import find_network
    from mnist.training import loop, state
    from mnist.training.recipe import Recipe
    from MNISTdsource import find_image_set, load_images


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "image-size", "device", "threads")
    parser.add_argument("--channels", choices=("1", "3", "bgr"), default="3",
                        help="of a folder's pictures: 1 grey, 3 red, green and blue, or bgr for "
                             "weights that want these the other way round, as NVIDIA's course "
                             "trains them (default: %(default)s)")
    parser.add_argument("--task", choices=("auto", "classification", "regression"), default="auto",
                        help="auto sees it by the folder (default: %(default)s)")
    parser.add_argument("--backbone", default="resnet18", metavar="NAME",
                        help="one of torchvision's classification models, or efficientnet-lite0 "
                             "(default: %(default)s)")
    parser.add_argument("--pretrained", default="imagenet", type=os.path.expanduser, metavar="FILE",
                        help="the backbone's weights: imagenet finds or downloads them, none "
                             "starts from random ones (default: %(default)s)")
    parser.add_argument("--train", choices=("head", "last", "all"),
                        help="what is trained after the head: nothing, the backbone's last third, "
                             f"all (default: all; with less than {SMALL_MEMORY} GiB of memory "
                             "head)")
    parser.add_argument("--size", type=positive_int, default=224, metavar="N",
                        help="pixels a side that the backbone sees (default: %(default)s)")
    parser.add_argument("--per-class", type=positive_int, nargs="+", metavar="N",
                        help="images of each class to train on; several draw a curve (default: "
                             "all)")
    parser.add_argument("--seeds", type=positive_int, default=1, metavar="N",
                        help="for a curve: trainings of each kind (default: %(default)s)")
    parser.add_argument("--epochs", type=positive_int, default=12, metavar="N",
                        help="passes after the head's (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N",
                        help="images a step (default: %(default)s)")
    parser.add_argument("--lr", type=ABOVE_0, default=3e-4, metavar="X",
                        help="peak learning rate after the head's, of AdamW (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--output", type=os.path.expanduser,
                        default=os.path.join(ROOT, "NetTransfer.pth"), metavar="FILE",
                        help="weights to write (default: NetTransfer.pth beside the scripts)")
    parser.add_argument("--resume", action="store_true",
                        help="go on after the last completed epoch of the same command")
    add_flags(parser, "json", "plot")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("--data says which pictures: a folder, or an image set by name")
    if arguments.resume and is_curve(arguments):
        parser.error("--resume goes on with one training, not with a curve")
    return arguments


def is_curve(arguments):
    """Whether several trainings are asked for."""
    return len(arguments.per_class or [None]) > 1 or arguments.seeds > 1


# --- The images -----------------------------------------------------------------------------------


def the_image_set(arguments):
    """The set that is trained on, normalised as the backbone was trained."""
    image_set = find_image_set(arguments.data, arguments.image_size or arguments.size,
                               1 if arguments.channels == "1" else 3, arguments.task)
    mean, std = backbones.statistics_of(arguments.backbone)
    if image_set.shape[0] == 1:
        mean, std = ((sum(values) / 3,) for values in (mean, std))
    return image_set._replace(mean=mean, std=std, augment={
        "digits": "none", "none": "pictures"}.get(image_set.augment, image_set.augment))


def check_targets(image_set, data, test):
    """Raise UnavailableError where there is nothing to learn, or another thing to be tested on."""
    if image_set.task == "regression":
        return
    missing = sorted(set(test.targets.tolist()) - set(data.targets.tolist()))
    if missing:
        raise UnavailableError(f"the test images have the class {image_set.classes[missing[0]]}, "
                               "of which there is no image to train on")


def choose(data, number, seed):
    """`number` images of each class (None: all); where images come in groups of the same thing,
    each from another group as long as there are some."""
    if number is None:
        return data
    if data.targets.ndim > 1:
        raise UnavailableError("--per-class: these images have values, not classes")
    generator, chosen = np.random.RandomState(seed), []
    for target in np.unique(data.targets):
        own = generator.permutation(np.flatnonzero(data.targets == target))
        if data.groups is not None:
            seen, turn = {}, []
            for index in own:
                seen[data.groups[index]] = seen.get(data.groups[index], 0) + 1
                turn.append(seen[data.groups[index]])
            own = own[np.argsort(turn, kind="stable")]
        chosen.extend(own[:number])
    chosen = np.sort(chosen)
    return data._replace(images=data.images[chosen], targets=data.targets[chosen], groups=None)


# --- Training -------------------------------------------------------------------------------------


def transfer(arguments, image_set, data, test, device, seed, pretrained=None):
    """(the trained `Network`, its result on all test images, a dict)."""
    pretrained = pretrained or arguments.pretrained
    regression = image_set.task == "regression"
    name, make = find_network(backbones.transfer_name(arguments.backbone, arguments.size,
                                                      arguments.channels == "bgr", regression))
    what = arguments.train or default_part()
    scratch = pretrained == "none"
    recipe = Recipe(epochs=arguments.epochs, batch_size=min(arguments.batch_size, len(data.images)),
                    optimizer="adamw", lr=SCRATCH_RATE if scratch else arguments.lr,
                    weight_decay=0.01, label_smoothing=0.0 if regression else 0.1, augment=1.0,
                    seed=seed)
    net = loop.new_network(name, make, image_set, recipe, device)
    if not scratch:
        path = None if pretrained == "imagenet" else os.path.expanduser(pretrained)
        origin = backbones.load_pretrained(net, weights.read_state, path)
        print(f"backbone: {arguments.backbone}, {origin}")
    training = loop.to_tensors(data, device)
    print(f"training on {len(data.images)} images of {data.source}: {name}, {what}")
    started = time.perf_counter()
    if what == "head" and not scratch:
        train_head(net, image_set, training, seed)
    else:
        if what == "last" and not scratch:
            keep_all_but_the_last(net)
        print(f"this takes up to {memory_needed(net, image_set, recipe.batch_size):.1f} GiB of "
              "memory beside torch itself")
        run = loop.Run(net, image_set, recipe, training, some_of(test, device))
        settings = dict(recipe._asdict(), network=name, pretrained=os.path.basename(pretrained),
                        train=what, data=data.source, data_sha256=data.digest,
                        images=len(data.images))
        state_file = arguments.output + ".resume"
        state.begin(state_file, settings, run, arguments.resume)
        if not scratch and not arguments.resume:
            train_head(net, image_set, training, seed)
        for line in state.train_and_save(run, state_file, settings):
            report_epoch(line, run)
    net.eval()
    result = dict(loop.evaluate(net, image_set, loop.to_tensors(test, device)),
                  seconds=time.perf_counter() - started)
    return weights.Network(net.cpu(), image_set, name), result


def default_part():
    """What is trained where nothing is said: on a small machine the head alone."""
    memory = ram_gib()
    if memory and memory < SMALL_MEMORY:
        print(f"this machine has {memory} GiB of memory: the head alone is trained (--train all "
              "tries more)")
        return "head"
    return "all"


def memory_needed(net, image_set, batch_size):
    """About how many GiB it takes to train all of a network: what each layer puts out for a batch,
    and each parameter with its gradient and AdamW's two averages, in float32."""
    x = torch.zeros((1,) + tuple(image_set.shape), device=net.head.weight.device)
    with torch.no_grad():
        made, _ = MNISTmodel.calls(net.eval(), x)
    outputs = sum(call.output.numel() for call in made)
    return 4 * (batch_size * outputs + 4 * MNISTmodel.count_parameters(net)) / 2 ** 30


def train_head(net, image_set, training, seed):
    """Fit the head to features that are computed once, of each image and of its mirror image where
    that is one."""
    torch.manual_seed(seed)
    images, targets = training
    features = features_of(net, image_set, images)
    if image_set.augment == "pictures":
        features = torch.cat([features, features_of(net, image_set, images.flip(3))])
        targets = torch.cat([targets, targets])
    optimiser = torch.optim.AdamW(net.head.parameters(), lr=HEAD_RATE, weight_decay=0.01)
    smoothing = 0.1 if image_set.task == "classification" else 0
    for _ in range(HEAD_EPOCHS):
        for batch in torch.randperm(len(features)).to(features.device).split(100):
            loss = loop.loss_of(net.outputs_of(features[batch]), targets[batch], smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def features_of(net, image_set, images):
    """What the head sees of images, float32 (N, F)."""
    net.eval()
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), 50):
            show_progress(start / len(images), "features")
            parts.append(net.features(image_set.normalise(images[start:start + 50])).float())
    show_progress(None)
    return torch.cat(parts)


def keep_all_but_the_last(net):
    """Leave all of the network as it is but its last third and the head."""
    net.requires_grad_(False)
    for parameter in net.last_layers() + list(net.head.parameters()):
        parameter.requires_grad_(True)


def some_of(test, device):
    """A few of the test images, to watch the score on: as `to_tensors` gives them."""
    some = np.random.RandomState(0).permutation(len(test.images))[:WATCHED]
    return loop.to_tensors(test._replace(images=test.images[some], targets=test.targets[some]),
                           device)


def report_epoch(line, run):
    """Print the line of an epoch, a dict of `train`'s history."""
    metric = run.image_set.metric
    print(f"epoch {line['epoch']}/{run.recipe.epochs}  {line['seconds']:6.2f} s  training loss "
          f"{line['train_loss']:.4f}  {metric} {run.image_set.format_score(line[metric])} of "
          f"{len(run.watched[1])} test images", flush=True)


# --- What comes out -------------------------------------------------------------------------------


def finish(arguments, network, result, data, test):
    """Write the weights, the record and the plot, and say what came out."""
    image_set = network.image_set
    weights.save_weights(network.net, arguments.output, network.name, image_set)
    state.forget(arguments.output + ".resume")
    text = f"{image_set.metric} {image_set.format_score(result[image_set.metric])}"
    print(f"saved {arguments.output}\n{result['seconds']:.1f} s, {text} on the test images")
    outputs = None
    if image_set.task == "regression" or arguments.plot:
        outputs = engines.reference_log_probs(network, test.images)
    if image_set.task == "regression":
        report_values(image_set, data.targets, test.targets, outputs)
    record = {
        "schema": 1, "machine": machine_record(), "image_set": image_set._asdict(),
        "settings": {key: value for key, value in vars(arguments).items()
                     if key not in ("output", "json", "plot", "data_dir")},
        "data": data.source, "data_sha256": data.digest, "result": result,
        "known": known_answers(network.net, image_set, data.images)}
    save_json(arguments.json or os.path.splitext(arguments.output)[0] + ".json", record)
    if arguments.plot:
        plots.plot_mistakes(arguments.plot, test.images, test.targets, outputs,
                            network._replace(origin=os.path.basename(arguments.output)))


def report_values(image_set, training_targets, targets, outputs):
    """Print how good each value is, beside the constant that is the mean of the training values."""
    constant = np.broadcast_to(training_targets.mean(0), targets.shape)
    print("always the mean of the training values: RMSE "
          f"{image_set.score(constant, targets):.4f}")
    for column, name in enumerate(image_set.classes):
        error = outputs[:, column] - targets[:, column]
        print(f"{name}: RMSE {np.sqrt((error ** 2).mean()):.4f}, bias {error.mean():+.4f}")


def draw_curve(arguments, image_set, data, test, device):
    """How the score grows with the images of a class, pretrained and from scratch, over some
    seeds; a table, and with --plot a picture."""
    rows = []
    for number in arguments.per_class or [None]:
        for pretrained in (arguments.pretrained, "none"):
            for seed in range(arguments.seeds):
                _, result = transfer(arguments, image_set, choose(data, number, seed), test, device,
                                     seed, pretrained)
                state.forget(arguments.output + ".resume")
                name = os.path.basename(pretrained)
                rows.append({"per_class": number, "pretrained": name, "seed": seed,
                             "score": result[image_set.metric], "seconds": result["seconds"]})
                print(f"{number or 'all'} of a class, {name}, seed {seed}: "
                      f"{image_set.format_score(rows[-1]['score'])}", flush=True)
    if arguments.json:
        save_json(arguments.json, {"schema": 1, "machine": machine_record(), "rows": rows,
                                   "image_set": image_set._asdict(), "data": data.source,
                                   "settings": {"backbone": arguments.backbone,
                                                "size": arguments.size,
                                                "epochs": arguments.epochs}})
    if arguments.plot:
        plot_curve(arguments.plot, image_set, rows)


def plot_curve(path, image_set, rows):
    """Draw the scores of a curve's rows, with the spread of their seeds."""
    figure = plots.new_figure(6, 4, dpi=120)
    panel = figure.add_subplot()
    for pretrained, style in (("none", "s--"), (None, "o-")):
        own = [row for row in rows if (row["pretrained"] == "none") == (pretrained == "none")]
        numbers = sorted({row["per_class"] for row in own if row["per_class"]})
        scores = [[row["score"] for row in own if row["per_class"] == number] for number in numbers]
        panel.errorbar(numbers, [np.mean(values) for values in scores],
                       [np.ptp(values) / 2 for values in scores], fmt=style, capsize=3,
                       label="from scratch" if pretrained else "pretrained")
    panel.set(xscale="log", xlabel="images of each class", title=image_set.name,
              ylabel=f"{image_set.metric}, test images")
    ticks = sorted({row["per_class"] for row in rows if row["per_class"]})
    panel.set_xticks(ticks)
    panel.set_xticklabels(ticks)
    panel.minorticks_off()
    panel.grid(alpha=0.3)
    panel.legend()
    figure.tight_layout()
    plots.save_figure(figure, path)


if __name__ == "__main__":
    run_program(main)
