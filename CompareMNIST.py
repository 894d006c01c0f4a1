"""Time every engine of this machine side by side, over the 10,000 test digits of MNIST, or the
test images of another set.

examples:
  python CompareMNIST.py                                  everything usable here, about a minute
  python CompareMNIST.py --network net small lenet5       what a smaller network buys
  python CompareMNIST.py --data cifar10                   another image set, its own network
  python CompareMNIST.py --network mine.py:MyNet --weights MyNet.pth
  python CompareMNIST.py --plot compare.png --json compare.json
  python CompareMNIST.py --engine torch torch-compile onnxruntime --device cpu --threads 1
  python CompareMNIST.py --markdown                       a table to paste into a page
  python CompareMNIST.py --compare a.json b.json --plot both.png      two machines, versions, days

The engines take turns, so that what disturbs this machine for a while disturbs all of them alike,
and go on until their times are steady or --seconds are up. An engine that can't run keeps its row
and says why. One whose results are wrong is marked, and the exit status is 1.
"""

import functools
import itertools
import os
import sys
import time

from mnist.cli import add_flags, make_parser, run_program
from mnist.errors import UnavailableError, describe_error


def main():
    arguments = parse_arguments()
    import_library()
    plots.check_outputs(arguments)
    if arguments.compare:
        return compare_records(arguments)
    return compare_engines(arguments)


def import_library():
    """Import what the work needs: only now, so that --help answers at once."""
    global MNISTdsource, Processes, Reference, engines, make_request, plots, stopwatches, tables
    import MNISTdsource
    from mnist.bench import plots, tables
    from mnist.bench import stopwatch as stopwatches
    from mnist.bench.processes import Processes, make_request
    from mnist.bench.reference import Reference
    from mnist.engines import registry as engines


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir")
    parser.add_argument("--network", nargs="+", metavar="NAME",
                        help="built-in networks, or FILE.py:CLASS for your own (default: the ones "
                             "that --weights are of, else net)")
    parser.add_argument("--weights", nargs="+", type=os.path.expanduser, metavar="FILE",
                        help="weights to load, one file for each network (default: what you "
                             "trained, NetMNIST.pth beside the scripts, else what is shipped)")
    add_flags(parser, "trust-pickle")
    parser.add_argument("--engine", nargs="+", metavar="NAME",
                        help="engines to time (default: all but torch-compile, which takes minutes "
                             "to prepare)")
    parser.add_argument("--device", nargs="+", choices=("cpu", "cuda"),
                        help="where to run (default: cpu cuda)")
    parser.add_argument("--precision", nargs="+", metavar="NAME",
                        choices=("fp32", "tf32", "bf16", "fp16", "int8"),
                        help="what to compute in: fp32 tf32 bf16 fp16 int8 (default: all)")
    add_flags(parser, "memory", "batch-size", "threads", "no-tuning", "limit", "repeat",
              "seconds", "json", "plot", seconds=60)
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--compare", nargs="+", type=os.path.expanduser, metavar="FILE",
                        help="measure nothing; show these records (from --json) beside each other")
    arguments = parser.parse_args()
    if arguments.compare:
        for name, value in vars(arguments).items():
            if value != parser.get_default(name) and name not in (
                    "compare", "plot", "markdown"):
                parser.error(f"--compare measures nothing: --{name.replace('_', '-')} has no "
                             "effect beside it")
    if arguments.network and arguments.weights and \
            len(arguments.network) != len(arguments.weights):
        parser.error("--weights takes one file for each --network")
    return arguments


# --- Measuring ------------------------------------------------------------------------------------


def compare_engines(arguments):
    """Time every engine asked for; gives the exit status."""
    started = time.perf_counter()
    wanted = wanted_engines(arguments)
    networks = load_networks(arguments)
    threads = engines.set_threads(arguments.threads)
    image_set = the_image_set(networks)
    data = MNISTdsource.load_images(image_set, "test", arguments.data, arguments.data_dir,
                                    arguments.limit)
    references = {network: Reference(network, data) for network in networks}
    calibration = functools.partial(MNISTdsource.calibration_images, image_set, arguments.data,
                                    arguments.data_dir)
    others = stopwatches.OtherPrograms()
    with Processes(data.images) as processes:
        groups = open_in_groups(processes, wanted, networks, calibration, arguments)
        rows, timed, interrupted = time_groups(groups, references, arguments, started)
        used_by_others = others.share(processes.cpu_seconds())
    tables.add_speed_ups(rows)
    settings = {"image_set": image_set.name, "data": data.source, "data_sha256": data.digest,
                "threads": threads, "repeat": arguments.repeat, "seconds": arguments.seconds,
                "groups": timed}
    record = stopwatches.make_record(settings, rows, used_by_others)
    wrong = any(reference.wrong for reference in references.values())
    try:
        report = tables.format_comparison(record, arguments.markdown)
        return tables.publish(record, arguments.json, report, interrupted) or int(wrong)
    finally:
        if arguments.plot and any(row["end_to_end"] for row in rows):
            plots.save_plot(arguments.plot, [record])


def load_networks(arguments):
    """The networks asked for, each with its weights; what they are is said."""
    from mnist.models.weights import load_network  # torch, which --compare does without
    names = arguments.network or [None] * len(arguments.weights or [None])
    paths = arguments.weights or [None] * len(names)
    image_set = arguments.data and functools.partial(MNISTdsource.find_image_set, arguments.data)
    networks = [load_network(path, name, image_set, arguments.trust_pickle)
                for name, path in zip(names, paths)]
    if len({network.name for network in networks}) < len(networks):  # tell them apart in the table
        networks = [network._replace(name=os.path.basename(network.stem)) for network in networks]
    for network in networks:
        print(f"weights: {network.origin}", file=sys.stderr, flush=True)
    return networks


def the_image_set(networks):
    """The image set that all the networks are of. Raises UnavailableError where they differ."""
    first = networks[0].image_set
    for network in networks:
        if (network.image_set.shape, network.image_set.classes) != (first.shape, first.classes):
            raise UnavailableError(f"{networks[0].name} is of {first.name}, {network.name} of "
                                   f"{network.image_set.name}: they can't be compared on the same "
                                   "images")
    return first


def wanted_engines(arguments):
    """The (engine, device, precision) to time, whether usable here or not.

    Raises UnavailableError where nothing that was asked for by name is available.
    """
    for name in arguments.engine or []:
        engines.why_not(name)  # raises for a name that no engine has
    wanted = [(kind.name, device, precision)
              for kind in engines.ENGINES.values()
              if (kind.name in arguments.engine if arguments.engine else not kind.on_request)
              for device in arguments.device or ("cpu", "cuda") if device in kind.precisions
              for precision in kind.precisions[device]
              if not arguments.precision or precision in arguments.precision]
    for named in (arguments.engine, arguments.device, arguments.precision):
        for name in named or []:
            reasons = [engines.why_not(*combination)
                       for combination in wanted if name in combination]
            if all(reasons):
                raise UnavailableError(
                    f"{name}: {reasons[0] if reasons else 'no engine does all that was asked for'}")
    return wanted


def open_in_groups(processes, wanted, networks, calibration, arguments):
    """Open the engines, in groups that memory holds: all at once, on most machines.

    Yields ([(stopwatch, or the row of an engine that isn't available; its network)], the part of
    all engines that is done with this group). A group ends as the next one is asked for.
    """
    group = []
    entries = list(itertools.product(wanted, networks, arguments.batch_size))
    for done, (combination, network, batch_size) in enumerate(entries):
        key = process_of(combination, network, batch_size)
        if not engines.why_not(*combination) and not processes.has_room(key, combination[1]):
            print("memory holds no more engines at once: those that are open are timed first",
                  file=sys.stderr, flush=True)
            yield group, done / len(entries)
            processes.end()
            group = []
        group.append((start(processes, key, network, combination, batch_size, calibration,
                            arguments), network))
    yield group, 1


def process_of(combination, network, batch_size):
    """The key of the process that an engine gets."""
    name, device, _ = combination
    if device == "cuda":  # its context alone takes hundreds of megabytes
        return name, device
    if engines.ENGINES[name].graph is None:  # so does importing torch; it has one pool of threads
        return combination, network.path
    return combination, network.path, batch_size


def time_groups(groups, references, arguments, started):
    """(all rows, of how many groups, whether Ctrl-C ended it). `started`: when --seconds began."""
    rows, timed, interrupted = [], 0, False
    try:
        for group, done in groups:
            opened = [entry for entry, _ in group if not isinstance(entry, dict)]
            interrupted = stopwatches.take_turns(opened, arguments.repeat,
                                                 started + done * arguments.seconds)
            rows += [entry if isinstance(entry, dict)
                     else references[network].row(entry, arguments.repeat)
                     for entry, network in group]
            timed += 1
            if interrupted:
                break
    except KeyboardInterrupt:  # while more were opened
        if not rows:
            raise
        interrupted = True
    return rows, timed, interrupted


def start(processes, key, network, combination, batch_size, calibration, arguments):
    """Open and warm up an engine, saying so: its stopwatch; its row where it isn't available."""
    name, device, precision = combination
    facts = {"network": network.name, "weights": network.origin}
    memory = {"memory": arguments.memory} if name == "tensorrt" else {}
    status, reason = "skipped", engines.why_not(name, device, precision, **memory)
    if not reason:
        what = f"{network.name}: {name} {device} {precision} batch {batch_size}"
        print(f"{what}: opening", file=sys.stderr, flush=True)
        try:
            request = make_request(network, combination, batch_size, calibration,
                                   arguments.trust_pickle, tuning=not arguments.no_tuning,
                                   threads=arguments.threads, **memory)
            stopwatch = processes.open(key, request, **facts)
            print(f"{what}: ready after {stopwatch.engine.prepare_s:.1f} s "
                  f"({stopwatch.engine.detail})", file=sys.stderr, flush=True)
            return stopwatch
        except UnavailableError as error:
            reason = str(error)
        except Exception as error:  # whatever breaks one engine, the others still run
            status, reason = "failed", describe_error(error)
    return stopwatches.empty_row(name, device, precision, batch_size, len(processes.images), status,
                                 " ".join(reason.split()), passes=0, **facts)


# --- Several records ------------------------------------------------------------------------------


def compare_records(arguments):
    """Show several records beside each other."""
    records = [tables.read_record(path) for path in arguments.compare]
    names = [os.path.basename(path) for path in arguments.compare]
    print(tables.format_records(names, records, arguments.markdown))
    if arguments.plot:
        plots.save_plot(arguments.plot, records)


if __name__ == "__main__":
    run_program(main)
