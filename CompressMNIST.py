"""Make the trained network smaller in every usual way, and show what each way costs and gains.

examples:
  python CompressMNIST.py                                 every method, a few minutes of CPU
  python CompressMNIST.py --method int8 small+int8
  python CompressMNIST.py --data cifar10                  another image set and its network
  python CompressMNIST.py --method pruned+clustered --sparsity 0.95 --clusters 32
  python CompressMNIST.py --output-dir smaller --plot compressed.png --json compressed.json

Pruned and clustered networks are written as weights files, which every program takes
(--weights net-pruned.pth); fp16 and int8 ones as ONNX files that take raw pixels. --precision
int8 in the other programs finds the int8 file that lies beside the weights. Fine-tuning sees
training images alone; the test images are read once for each row.
"""

import collections
import functools
import gzip
import math
import os
import sys
import time

from mnist.cli import (
    ABOVE_0,
    add_flags,
    make_parser,
    number_between,
    positive_int,
    run_program,
    show_progress,
)
from mnist.errors import MNISTError, UnavailableError, warn
from mnist.files import ROOT, check_writable, save_json, write_atomically
from mnist.machine import machine_record
from mnist.training.recipe import USUAL_BATCH, Recipe, usual_batch

# What is made of what, and in which precision. "small" is a network of its own.
Method = collections.namedtuple("Method", "made_of precision")
METHODS = collections.OrderedDict((
    ("original", Method("original", "fp32")),
    ("fp16", Method("original", "fp16")),
    ("int8", Method("original", "int8")),
    ("pruned", Method("pruned", "fp32")),
    ("clustered", Method("clustered", "fp32")),
    ("pruned+clustered", Method("pruned+clustered", "fp32")),
    ("pruned+int8", Method("pruned", "int8")),
    ("small", Method("small", "fp32")),
    ("small+int8", Method("small", "int8")),
))

LEGEND = """\
changed: predictions other than the original's. ideal: what an ideal coding of the weights would
take, a bound that no file here reaches. ms: median per batch, end-to-end, and how much faster that
is than the original in float32 on the same engine; -: that engine doesn't compute so here.

What may be misread: no engine here computes zeros or shared weights any faster, and none reads them
from a smaller file: pruned and clustered networks are smaller when packed, and no quicker. The
quickest engine of the smallest networks isn't always the int8 one: turning numbers to int8 and back
costs ONNX Runtime more there than it saves. A training file with its optimiser's state is three
times the size; to leave that out is no compression, and it isn't counted here."""

# Of 0.02, 0.05 and 0.1 the one that was best on a sixth of CIFAR-10's training images, which the
# fine-tuning didn't see (the original had); on GTSRB's held-out tracks 0.02 and 0.05 were alike.
LEARNING_RATE = 0.05
TIMED = 1024  # test images that are read for the times, whole batches of them
BATCHES = (1, 64)


def main():
    arguments = parse_arguments()
    import_library()
    plots.check_outputs(arguments)
    check_writable("--output-dir", os.path.join(arguments.output_dir, "net-pruned.pth"))
    engines.set_threads(arguments.threads)
    network = MNISTdsource.network_of_flags(arguments)
    if network.image_set.task != "classification":
        raise UnavailableError("what is compressed here is a classifier; int8 of other networks "
                               "is timed by CompareMNIST.py --precision int8")
    if arguments.method is None:  # small is MNIST's
        arguments.method = [name for name in METHODS if name != "original" and (
            network.image_set.name == "mnist" or not name.startswith("small"))]
    workshop = Workshop(network, arguments)
    rows = [make_row(workshop, "original", [])]
    try:
        status = make_rows(workshop, rows)
        add_times(workshop, rows)
    except KeyboardInterrupt:
        show_progress(None)
        print("interrupted; what was finished follows", file=sys.stderr)
        status = 130
    show(arguments, workshop, rows)
    return status


def import_library():
    """Import what the work needs: only now, so that --help answers at once."""
    global MNISTdsource, MNISTmodel, OnnxRuntimeEngine, Processes, compress, engines, int8, loop
    global make_request, np, plots, stopwatches, tables, weights
    import numpy as np

    import MNISTdsource
    import MNISTmodel
    from mnist.bench import plots, tables
    from mnist.bench import stopwatch as stopwatches
    from mnist.bench.processes import Processes, make_request
    from mnist.engines import int8
    from mnist.engines import registry as engines
    from mnist.engines.runtimes import OnnxRuntimeEngine
    from mnist.models import weights
    from mnist.training import compress, loop


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "trust-pickle")
    choices = [name for name in METHODS if name != "original"]
    parser.add_argument("--method", nargs="+", choices=choices, metavar="NAME",
                        help=f"what to make: {' '.join(choices)} (default: all; small "
                             "ones for MNIST only)")
    parser.add_argument("--sparsity", default=0.9, metavar="S",
                        type=number_between(sys.float_info.min, 1, "between 0 and 1"),
                        help="the share of the weights that pruning sets to zero "
                             "(default: %(default)s)")
    parser.add_argument("--clusters", default=16, metavar="N",
                        type=number_between(2, 257, "2 to 256", int),
                        help="values that the weights of a layer share (default: %(default)s)")
    parser.add_argument("--epochs", type=positive_int, default=8, metavar="N",
                        help="passes over the training images for fine-tuning what was pruned, "
                             "a quarter of them for what was clustered (default: %(default)s)")
    parser.add_argument("--lr", type=ABOVE_0, default=LEARNING_RATE, metavar="X",
                        help="peak learning rate of the fine-tuning (default: %(default)s)")
    parser.add_argument("--output-dir", type=os.path.expanduser, default=ROOT, metavar="DIR",
                        help="where the files go (default: beside the scripts)")
    parser.add_argument("--repeat", type=positive_int, default=3, metavar="N",
                        help=f"passes over the {TIMED:,} images that are timed "
                             "(default: %(default)s)")
    add_flags(parser, "threads", "no-tuning", "json", "plot")
    return parser.parse_args()


# --- Making ---------------------------------------------------------------------------------------


class Workshop:
    """The networks that are made, each once, and the images to make and to judge them by."""

    def __init__(self, network, arguments):
        self.arguments, self.image_set = arguments, network.image_set
        self.name = os.path.splitext(os.path.basename(network.path))[0]
        self.made = {"original": network._replace(path=self.path(self.name))}
        self.files = {"original": network.path}  # where the weights of each can be read
        self.load = functools.partial(MNISTdsource.load_images, network.image_set,
                                      data=arguments.data, data_dir=arguments.data_dir)
        self.test = self.load("test")
        self.calibration = functools.partial(  # gives the images that int8 is calibrated on
            MNISTdsource.calibration_images, network.image_set, arguments.data, arguments.data_dir)

    def path(self, name):
        """Where a weights file of this name goes."""
        return os.path.join(self.arguments.output_dir, name + ".pth")

    def network(self, kind):
        """The `Network` of one kind; made, and its file written, once."""
        if kind not in self.made:
            made = load_small(self) if kind == "small" else fine_tuned(self, kind)
            if kind != "small":
                made = made._replace(path=self.path(f"{self.name}-{kind.replace('+', '-')}"))
                weights.save_weights(made.net, made.path, made.name, made.image_set)
                print(f"saved {made.path}", file=sys.stderr, flush=True)
                self.files[kind] = made.path
            self.made[kind] = made
        return self.made[kind]

    def graph(self, kind, precision):
        """The ONNX file's bytes of one kind of network; written where the precision isn't fp32."""
        network = self.network(kind)
        graph = int8.network_graph(network, precision, self.calibration)
        if precision == "fp16":
            with write_atomically(network.stem + "-fp16.onnx") as file:
                file.write(graph)
        return graph


def fine_tuned(workshop, kind):
    """The `Network` of one kind, pruned or clustered, and fine-tuned."""
    arguments = workshop.arguments
    training = loop.to_tensors(workshop.load("train"), "cpu")
    batch_size = usual_batch(len(training[1]))
    recipe = Recipe(
        epochs=arguments.epochs if kind == "pruned" else max(1, arguments.epochs // 4),
        batch_size=batch_size, lr=arguments.lr * math.sqrt(batch_size / USUAL_BATCH),
        # Digits, of which the teacher is sure, gain nothing by augmentation here; pictures do.
        augment=0.0 if workshop.image_set.augment == "digits" else 1.0)
    if kind == "pruned":
        return compress.prune(workshop.network("original"), arguments.sparsity, recipe, training)
    of = workshop.network("pruned" if kind == "pruned+clustered" else "original")
    return compress.cluster(of, arguments.clusters, recipe, training)


def load_small(workshop):
    """The network `small`, which a training of its own has distilled."""
    try:
        small = weights.load_network(None, "small", workshop.image_set)
    except UnavailableError as error:
        raise UnavailableError("small is distilled by a training of its own: python TrainMNIST.py "
                               f"--data {workshop.image_set.name} --network small --teacher …"
                               ) from error
    print(f"small: {small.origin}", file=sys.stderr, flush=True)
    workshop.files["small"] = small.path
    return small._replace(path=workshop.path("small"))


def make_rows(workshop, rows):
    """Add the row of each method that was asked for to `rows`; gives the exit status."""
    status = 0
    for name in METHODS:
        if name in workshop.arguments.method:
            try:
                rows.append(make_row(workshop, name, rows))
            except MNISTError as error:  # the other methods' work isn't lost by it
                warn(f"{name} is missing: {error}")
                status = error.exit_status
    return status


def make_row(workshop, name, rows):
    """Make one network and give its row: its size, and its predictions for the test images."""
    kind, precision = METHODS[name]
    started = time.perf_counter()
    show_progress(len(rows) / len(METHODS), name)
    graph = workshop.graph(kind, precision)
    net, image_set, test = workshop.network(kind).net, workshop.image_set, workshop.test
    engine = OnnxRuntimeEngine(graph, image_set, "cpu", precision, 100)
    predictions = np.concatenate([engine(batch).argmax(1)
                                  for batch in stopwatches.in_batches(test.images, 100)])
    engine.close()
    show_progress(None)
    first = rows[0]["predictions"] if rows else predictions
    packed = "pruned" in kind or "clustered" in kind
    row = {
        "method": name, "precision": precision, "parameters": MNISTmodel.count_parameters(net),
        "non_zero": compress.count_non_zero(net),
        "macs": MNISTmodel.count_macs(net, image_set.shape),
        "onnx_bytes": len(graph), "gzip_bytes": len(gzip.compress(graph, 9)),
        "ideal_bytes": compress.ideal_bytes(net) if packed and precision == "fp32" else None,
        "right": int((predictions == test.targets).sum()),
        "changed": int((predictions != first).sum()),
        "images": len(predictions), "predictions": predictions, "times": [],
        "seconds": time.perf_counter() - started,
    }
    print(f"{name}: {row['right']} of {row['images']} right, {row['onnx_bytes']:,} bytes, made in "
          f"{row['seconds']:.1f} s", file=sys.stderr, flush=True)
    return row


# --- Timing ---------------------------------------------------------------------------------------


def add_times(workshop, rows):
    """Time every row on this machine's engines, each in a process of its own. The rows take turns
    on one engine after the other: so they can be compared, and a small memory holds them."""
    arguments, columns = workshop.arguments, columns_here()
    for done, (kind, device, batch_size) in enumerate(columns):
        show_progress(done / len(columns), f"opening {kind.name}, batch {batch_size}")
        with Processes(workshop.test.images[:TIMED]) as processes:
            timed = []
            for row, network in rows_for(workshop, rows, kind, device):
                request = make_request(
                    network, (kind.name, device, row["precision"]), batch_size,
                    workshop.calibration, arguments.trust_pickle,
                    tuning=not arguments.no_tuning, threads=arguments.threads)
                try:
                    timed.append((row, processes.open(row["method"], request)))
                except MNISTError as error:  # the others still have their times
                    warn(f"{row['method']}, {kind.name}, batch {batch_size}: {error}")
            interrupted = stopwatches.take_turns([stopwatch for _, stopwatch in timed],
                                                 arguments.repeat)
        for row, stopwatch in timed:
            row["times"].append({"engine": kind.name, "device": device, "batch_size": batch_size,
                                 "detail": stopwatch.engine.detail,
                                 "median_ms": stopwatch.median_ms()})
        if interrupted:
            raise KeyboardInterrupt


def columns_here():
    """The (engine's kind, device, batch size) that are timed: what computes in float32 here."""
    return [(kind, device, batch_size) for kind in engines.ENGINES.values()
            if not kind.on_request and not kind.is_baseline for device in kind.precisions
            if not engines.why_not(kind.name, device) for batch_size in BATCHES]


def rows_for(workshop, rows, kind, device):
    """The (row, its `Network`) that an engine can compute."""
    for row in rows:
        if not engines.why_not(kind.name, device, row["precision"]):
            made_of = METHODS[row["method"]].made_of
            network = workshop.network(made_of)
            yield row, network if kind.graph else network._replace(path=workshop.files[made_of])


# --- Showing --------------------------------------------------------------------------------------


def show(arguments, workshop, rows):
    """Print the tables, write record and plot."""
    origin, data = workshop.network("original").origin, workshop.test
    print("\n".join([f"{origin}, {len(data.images):,} test images of {data.source}",
                     "", format_sizes(rows), "", format_times(rows), "", LEGEND]))
    for row in rows:
        del row["predictions"]
    if arguments.json:
        save_json(arguments.json, {
            "schema": 1, "machine": machine_record(), "rows": rows, "settings": {
                "weights": origin, "image_set": workshop.image_set.name, "data": data.source,
                "data_sha256": data.digest, "sparsity": arguments.sparsity,
                "clusters": arguments.clusters, "epochs": arguments.epochs, "lr": arguments.lr}})
    if arguments.plot:
        plot(arguments.plot, rows)


def format_sizes(rows):
    """The table of sizes and predictions, as text."""
    lines = [("", "parameters", "non-zero", "MACs", "ONNX bytes", "gzipped", "ideal", "right",
              "changed")]
    for row in rows:
        lines.append((row["method"],) + tuple(
            "-" if row[key] is None else f"{row[key]:,}" for key in (
                "parameters", "non_zero", "macs", "onnx_bytes", "gzip_bytes",
                "ideal_bytes", "right", "changed")))
    return "\n".join(tables.align(lines, 1, "  "))


def format_times(rows):
    """The table of times, as text."""
    found = [{(time_["engine"], time_["device"], time_["batch_size"]): time_["median_ms"]
              for time_ in row["times"]} for row in rows]
    columns = list(found[0])
    if not columns:
        return "no times were taken"
    lines = [("ms",) + tuple(engine + (" cuda" if device == "cuda" else "")
                             for engine, device, _ in columns),
             ("",) + tuple(f"batch {batch_size}" for _, _, batch_size in columns)]
    for row, times in zip(rows, found):
        lines.append([row["method"]] + [
            f"{times[column]:.3f} {found[0][column] / times[column]:4.1f}x" if column in times
            else "-" for column in columns])
    return "\n".join(tables.align(lines, 1, "  "))


def plot(path, rows):
    """Draw what is misread over bytes, and over the time of one digit on its quickest engine."""
    by_size, by_time = {}, {}
    for row in rows:
        share = row["right"] / row["images"]
        by_size[row["method"]] = row["gzip_bytes"] / 1e3, share
        times = [time_["median_ms"] for time_ in row["times"] if time_["batch_size"] == 1]
        if times:
            by_time[row["method"]] = min(times), share
    figure = plots.new_figure(10, 4)
    left, right = figure.subplots(1, 2, sharey=True)
    plots.draw_trade_off(left, by_size, "KB of the ONNX file, gzipped")
    plots.draw_trade_off(right, by_time, "ms for one image, quickest engine")
    left.set_ylabel("misread test images, %")
    figure.tight_layout()
    plots.save_figure(figure, path)


if __name__ == "__main__":
    run_program(main)
