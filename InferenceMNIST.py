"""Time the trained network on the CPU or a CUDA GPU, over the 10,000 test digits.

examples:
  python InferenceMNIST.py                          batch 1 and 64, on CUDA where it works
  python InferenceMNIST.py --device cpu --threads 1
  python InferenceMNIST.py --batch-size 1 8 64 512 --repeat 5 --json record.json

Every time stands beside the accuracy of the same answers. For TensorRT see InfMNISTcudaRT.py, for
every engine of this machine side by side CompareMNIST.py.
"""

from MNISTscript import add_flags, keep_stdout_for_json, make_parser, run_program


def main():
    parser = make_parser(__doc__)
    add_flags(parser, "data", "data-dir", "network", "weights", "trust-pickle", "device",
              "batch-size", "threads", "limit", "repeat", "json")
    arguments = parser.parse_args()
    keep_stdout_for_json(arguments.json)

    from MNISTdsource import load_digits
    from MNISTengine import choose_device, open_engine, reference_answers, set_threads
    from MNISTreport import publish
    from MNISTtiming import make_record, time_engine
    from MNISTweights import load_network

    threads = set_threads(arguments.threads)
    device = choose_device(arguments.device)
    network = load_network(arguments.weights, arguments.network, arguments.trust_pickle)
    print(f"weights: {network.origin}", flush=True)
    net = network.net
    images, labels, source = load_digits("test", arguments.data, arguments.data_dir,
                                         arguments.limit)
    reference = reference_answers(net, images)
    rows = []
    for batch_size in arguments.batch_size:
        engine = open_engine("torch", net, device, batch_size=batch_size)
        rows.append(time_engine(engine, images, labels, reference, arguments.repeat))
        engine.close()
    settings = {"weights": network.origin, "data": source,
                "threads": threads, "repeat": arguments.repeat}
    return publish(make_record(settings, rows), arguments.json)


if __name__ == "__main__":
    run_program(main)
