"""Time every engine of this machine side by side, over the 10,000 test digits.

examples:
  python CompareMNIST.py                                  everything usable here, about a minute
  python CompareMNIST.py --plot compare.png --json compare.json
  python CompareMNIST.py --engine torch torch-compile onnxruntime --device cpu --threads 1
  python CompareMNIST.py --markdown                       a table to paste into a page
  python CompareMNIST.py --compare a.json b.json --plot both.png      two machines, versions, days

The engines take turns, so that what disturbs this machine for a while disturbs all of them alike.
An engine that can't run keeps its row and says why. One whose answers are wrong is marked, and the
exit status is 1.
"""

import os
import sys
import time

import MNISTreport
import MNISTtiming
from MNISTscript import (
    PRECISIONS,
    UnavailableError,
    add_flags,
    describe_error,
    keep_stdout_for_json,
    make_parser,
    run_program,
)


def main():
    arguments = parse_arguments()
    keep_stdout_for_json(arguments.json)
    if arguments.plot:
        MNISTreport.check_plot(arguments.plot)
    if arguments.compare:
        return compare_records(arguments)
    return compare_engines(arguments)


def parse_arguments():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "trust-pickle")
    parser.add_argument("--engine", nargs="+", metavar="NAME",
                        help="engines to time (default: all but torch-compile, which takes minutes "
                             "to prepare)")
    parser.add_argument("--device", nargs="+", choices=("cpu", "cuda"),
                        help="where to run (default: cpu cuda)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS,
                        help="what to compute in (default: all that each engine has)")
    add_flags(parser, "batch-size", "threads", "no-tuning", "limit", "repeat", "json", "plot")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--compare", nargs="+", metavar="FILE",
                        help="measure nothing; show these records (from --json) beside each other")
    arguments = parser.parse_args()
    if arguments.compare and arguments.json:
        parser.error("--compare measures nothing that --json could write")
    return arguments


# --- Measuring ------------------------------------------------------------------------------------


def compare_engines(arguments):
    """Time every engine asked for; gives the exit status."""
    from MNISTdsource import load_digits
    from MNISTengine import reference_answers, set_threads
    from MNISTweights import load_network

    wanted = wanted_engines(arguments)
    threads = set_threads(arguments.threads)
    network = load_network(arguments.weights, arguments.network, arguments.trust_pickle)
    print(f"weights: {network.origin}", file=sys.stderr, flush=True)
    net = network.net
    images, labels, source = load_digits("test", arguments.data, arguments.data_dir,
                                         arguments.limit)
    reference = reference_answers(net, images)

    settings = {"threads": arguments.threads, "tuning": not arguments.no_tuning,
                "data_dir": arguments.data_dir}
    entries = [start(network, images, combination, batch_size, settings)
               for combination in wanted for batch_size in arguments.batch_size]
    others = MNISTtiming.OtherPrograms()
    MNISTtiming.take_turns([stopwatch for stopwatch, _ in entries if stopwatch], arguments.repeat)
    used_by_others = others.share()
    rows = [dict(stopwatch.row(labels, reference), **notes) if stopwatch else notes
            for stopwatch, notes in entries]
    for stopwatch, _ in entries:
        if stopwatch:
            stopwatch.engine.close()
    add_speed_ups(rows)
    settings = {"weights": network.origin, "data": source,
                "threads": threads, "repeat": arguments.repeat}
    record = MNISTtiming.make_record(settings, rows, used_by_others)
    if arguments.plot:
        MNISTreport.save_plot(arguments.plot, [record])
    return MNISTreport.publish(record, arguments.json,
                               MNISTreport.format_comparison(record, arguments.markdown))


def wanted_engines(arguments):
    """The (engine, device, precision) to time, whether usable here or not.

    Raises UnavailableError where nothing that was asked for by name can be had.
    """
    from MNISTengine import ENGINES, why_not
    for name in arguments.engine or []:
        why_not(name)  # raises for a name that no engine has
    wanted = [(kind.name, device, precision)
              for kind in ENGINES.values()
              if (kind.name in arguments.engine if arguments.engine else not kind.on_request)
              for device in arguments.device or ("cpu", "cuda") if device in kind.precisions
              for precision in kind.precisions[device]
              if precision in (arguments.precision or PRECISIONS)]
    for named in (arguments.engine, arguments.device, arguments.precision):
        for name in named or []:
            reasons = [why_not(*combination) for combination in wanted if name in combination]
            if all(reasons):
                raise UnavailableError(
                    f"{name}: {reasons[0] if reasons else 'no engine does all that was asked for'}")
    return wanted


def start(network, images, combination, batch_size, settings):
    """Open and warm up an engine, saying so: (its stopwatch, what its row says beside the times);
    (None, its whole row) where it can't be had. `settings`: see `MNISTengine.open_engine`."""
    from MNISTengine import open_engine, why_not
    status, reason = "skipped", why_not(*combination)
    if not reason:
        name, device, precision = combination
        started = time.perf_counter()
        try:
            engine = open_engine(name, network.net, device, precision, batch_size,
                                 stem=network.stem, **settings)
            seconds = time.perf_counter() - started
            print(f"{name} {device} {precision} batch {batch_size}: ready after {seconds:.1f} s "
                  f"({engine.detail})", file=sys.stderr, flush=True)
            stopwatch = MNISTtiming.Stopwatch(engine, images)
            return stopwatch, {"detail": engine.detail, "prepare_s": seconds,
                               "tuning": getattr(engine, "tuning", None)}
        except UnavailableError as error:
            reason = str(error)
        except Exception as error:  # whatever breaks one engine, the others still run
            status, reason = "failed", describe_error(error)
    reason = " ".join(reason.split())
    return None, MNISTtiming.empty_row(*combination, batch_size, len(images), status, reason)


def add_speed_ups(rows):
    """Give each row its speed-up over torch on the CPU at the same batch size; None without."""
    speed = {row["batch_size"]: row["end_to_end"]["images_per_s"] for row in rows
             if (row["engine"], row["device"]) == ("torch", "cpu") and row["end_to_end"]}
    for row in rows:
        base = speed.get(row["batch_size"])
        row["speed_up"] = row["end_to_end"] and base and row["end_to_end"]["images_per_s"] / base


# --- Several records ------------------------------------------------------------------------------


def compare_records(arguments):
    """Show several records beside each other."""
    records = [MNISTreport.read_record(path) for path in arguments.compare]
    rows = MNISTreport.merge_rows(records)
    sources = ["\n".join([f"{letter}: {os.path.basename(path)}, {record['machine']['utc']}"]
                         + MNISTreport.notes(record))
               for letter, path, record in zip(MNISTreport.LETTERS, arguments.compare, records)]
    table = MNISTreport.format_markdown if arguments.markdown else MNISTreport.format_table
    parts = [table(rows, MNISTreport.RECORDS_COLUMNS), MNISTreport.RECORDS_LEGEND] + sources
    if not arguments.markdown:
        parts.append(MNISTreport.format_published())
    print("\n\n".join(parts))
    if arguments.plot:
        MNISTreport.save_plot(arguments.plot, records)


if __name__ == "__main__":
    run_program(main)
