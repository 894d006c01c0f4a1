"""Break the code on purpose, one place at a time, and see that a test fails for each.

    make test-mutations
    python tests/mutations.py 3 7      only these

Works on a copy of the checkout. A mutation that no test notices makes the exit status 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# file, what stands there, what is put in its place, and the tests that should notice.
MUTATIONS = [
    # digits
    ("MNISTdsource.py", "MEAN = 0.1307", "MEAN = 0.1370", "test_engine.py test_dsource.py"),
    ("MNISTdsource.py", "x /= 255 * STD", "x /= 256 * STD", "test_engine.py test_dsource.py"),
    ("MNISTdsource.py", "for axis in (1, 0))", "for axis in (0, 1))", "test_dsource.py"),
    ("MNISTdsource.py", "mass_centre - 14.5 * pixel", "mass_centre - 14 * pixel",
     "test_dsource.py"),
    ("MNISTdsource.py", "if len(images) != len(labels):", "if False:", "test_dsource.py"),
    ("MNISTdsource.py", "if found != SHA256[name]:", "if False:", "test_download.py"),
    ("mnist/datasets/idx.py", '0x0B: ">i2"', '0x0B: "<i2"', "test_dsource.py"),
    # networks and weights
    ("MNISTmodel.py", "return F.log_softmax(self.fc2(x), dim=1)", "return self.fc2(x)",
     "test_model.py"),
    ("mnist/models/weights.py", "if tensor.shape != expected[key].shape:", "if False:", "test_model.py"),
    ("mnist/models/weights.py", "how = dict(weights_only=True)", "how = dict(weights_only=False)",
     "test_model.py"),
    ("mnist/models/weights.py", "for path in (trained_path(name), os.path.join(SHIPPED, name + \".pth\")):",
     "for path in (os.path.join(SHIPPED, name + \".pth\"), trained_path(name)):",
     "test_networks.py"),
    ("mnist/models/fold.py", "return folded if difference < EXACT else None", "return folded",
     "test_networks.py"),
    ("mnist/models/fold.py", "    net = copy.deepcopy(net).cpu().eval()\n    for",
     "    net = net.cpu().eval()\n    for", "test_networks.py test_engine.py"),
    ("mnist/models/fold.py", "+ norm.eps", "", "test_networks.py"),
    # engines
    ("mnist/engines/runtimes.py", "self.pixels = np.zeros((batch_size, 1, 28, 28), np.float32)",
     "self.pixels = np.zeros((batch_size, 1, 28, 28), np.float32).swapaxes(2, 3)",
     "test_engine.py"),
    ("mnist/engines/buffers.py", "return self.answers()[:len(images)]", "return self.answers()",
     "test_engine.py"),
    ("mnist/engines/buffers.py", "        self.run_all()\n        self.memory.synchronise()\n",
     "        self.run_all()\n", "test_tensorrt.py"),
    ("mnist/engines/onnx_export.py", "differences.append(np.abs(answer - expected).max())",
     "differences.append((answer - expected).min())", "test_export.py"),
    ("mnist/engines/trt.py", "shapes != [(1, 28, 28), (10,)] or ", "", "test_tensorrt.py"),
    ("mnist/engines/trt.py", " or not floats:", ":", "test_tensorrt.py"),
    ("mnist/engines/trt_cache.py", "if record[field] != wanted:", "if False:", "test_tensorrt.py"),
    # the stopwatch
    ("mnist/bench/stopwatch.py", "yield seconds, answer.copy()", "yield seconds, answer", "test_timing.py"),
    ("mnist/bench/stopwatch.py", "        engine.compute(x)\n        engine.synchronise()\n",
     "        engine.compute(x)\n", "test_timing.py"),
    ("mnist/bench/stopwatch.py", "CALLS_BEYOND_PERCENTILE = 10", "CALLS_BEYOND_PERCENTILE = 9",
     "test_timing.py"),
    ("mnist/bench/stopwatch.py", "total = totals[len(totals) // 2]", "total = totals[0]", "test_timing.py"),
    ("mnist/engines/precision.py", "if not np.isfinite(difference):", "if False:", "test_timing.py"),
    # training
    ("mnist/training/loop.py", "WARM_UP = 0.25", "WARM_UP = 0.75", "test_train.py"),
    ("mnist/training/loop.py", "generator(\"cpu\", recipe.seed, epoch))", "generator(\"cpu\", 0, epoch))",
     "test_train.py"),
    ("mnist/training/loop.py", "amount.clamp(max=0) * (x - thin)", "amount.clamp(max=0) * (thin - x)",
     "test_train.py"),
    ("mnist/training/loop.py", "shift[:, 0]], 1)", "shift[:, 1]], 1)", "test_train.py"),
    # files and windows
    ("mnist/cli.py", "        os.replace(temporary, path)",
     "        shutil.copyfile(temporary, path)", "test_killed.py"),
    ("mnist/cli.py", "if not os.access(folder, os.W_OK):", "if False:", "test_disk.py"),
    ("mnist/gui/canvas.py", "self.history.append((QImage(self.picture),",
     "self.history.append((self.picture,", "test_windows.py"),
    ("mnist/gui/canvas.py", "data.reshape(height, stride)[:, :image.width()]",
     "data.reshape(height, stride)[:, :image.width()].T", "test_windows.py"),
    # the server
    ("mnist/serving/batching.py", "rates.index(max(rates))", "rates.index(min(rates))", "test_serve.py"),
]


def noticed(copy, number):
    """Whether a test fails for a mutation, and how the tests ended."""
    name, there, instead, tests = MUTATIONS[number]
    path = os.path.join(copy, name)
    with open(path, encoding="utf-8") as file:
        source = file.read()
    if source.count(there) != 1:
        return None, f"stands there {source.count(there)} times: {there!r}"
    mutated = source.replace(there, instead)
    if "shutil." in instead:
        mutated = mutated.replace("import os\n", "import os\nimport shutil\n", 1)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(mutated)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider",
             "-m", "not (slow or bindings or mnist)",
             *(os.path.join("tests", test) for test in tests.split())],
            cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        with open(path, "w", encoding="utf-8") as file:
            file.write(source)
    lines = done.stdout.strip().splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 1, (failed or lines)[-1]


def main():
    numbers = list(map(int, sys.argv[1:])) or range(len(MUTATIONS))
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "data"))
        for number in numbers:
            name, there, instead, _ = MUTATIONS[number]
            seen, how = noticed(copy, number)
            missed += not seen
            print(f"{number:2} {'noticed' if seen else 'MISSED '} {name}: "
                  f"{there.strip().splitlines()[0][:60]} -> {instead.strip()[:40]!r}\n"
                  f"             {how[:150]}", flush=True)
    print(f"{len(numbers) - missed} of {len(numbers)} noticed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
