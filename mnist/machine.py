"""The record of the machine that a number was measured on. A fact that isn't known is null."""

import glob
import os
import platform
import re
import subprocess
import sys
import time

from mnist.files import ROOT

# What took part in a run is what was imported for it; its version goes into the record.
LIBRARIES = ("numpy", "torch", "torchvision", "onnxruntime", "openvino", "tensorrt",
             "tensorrt_rtx", "pycuda")


def machine_record():
    """A dict of what this machine is and what ran on it, ready for JSON. Needs no privileges."""
    record = {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "argv": [os.path.basename(sys.argv[0])] + sys.argv[1:],
        "git_commit": run("git", "-C", ROOT, "rev-parse", "--short", "HEAD"),
        "os": operating_system(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "cpus_usable": usable_cpus(),
        "cpu_quota": cpu_quota(),
        "cpu_governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "ram_gib": ram_gib(),
        "jetson": jetson(),
    }
    for name in LIBRARIES:
        module = sys.modules.get(name)
        version = getattr(module, "__version__", None) or getattr(module, "VERSION_TEXT", None)
        record[name] = version and version.split("-")[0]  # OpenVINO's goes on with its build
    record.update(library_facts())
    return record


def usable_cpus():
    """How many CPUs this process may use: those of its affinity mask, as far as the quota of its
    cgroup allows, one at least."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cpu_quota()
    return max(1, min(allowed or 1, int(quota) if quota else allowed or 1))


def cpu_quota(root="/sys/fs/cgroup"):
    """How many CPUs' time the cgroup of this process may use, 0.5 or 4.0; None without a limit.

    Sources: the kernel's admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst. `root`
    lets tests give a folder of sample files.
    """
    second = (read(os.path.join(root, "cpu.max")) or "max").split()
    first = [read(os.path.join(root, "cpu", "cpu.cfs_" + name)) for name in
             ("quota_us", "period_us")]
    quota, period = second if len(second) == 2 else first
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (TypeError, ValueError, ZeroDivisionError):
        return None  # "max", -1, or no such file


def describe_machine(record):
    """The record in two lines for the screen."""
    gpu = record["gpu"] or "no CUDA GPU"
    if record["jetson"]:
        words = {"model": "{}", "l4t": "L4T {}", "power_mode_name": "power mode {}",
                 "hottest_c": "{:.0f} °C"}
        gpu = ", ".join(text.format(record["jetson"][name]) for name, text in words.items()
                        if record["jetson"][name] is not None)
    cpus = f"{record['cpus']} CPUs"
    if record.get("cpus_usable", record["cpus"]) < record["cpus"] or record.get("cpu_quota"):
        quota = f", a quota of {record['cpu_quota']:g}" if record.get("cpu_quota") else ""
        cpus += f" ({record['cpus_usable']} usable{quota})"
    versions = [f"{name} {record[name]}" for name in LIBRARIES if record[name]]
    return (f"{record['cpu']}, {cpus}, {gpu}, {record['os']}\n"
            f"Python {record['python']}, {', '.join(versions)}")


def library_facts():
    """Threads, CUDA and the GPU as torch sees them, else the GPU as pycuda does, which finds it
    where torch is a CPU build; None for what neither knows, as where neither was imported."""
    facts = dict.fromkeys(("threads", "cuda", "cudnn", "gpu", "compute_capability", "driver"))
    torch, cuda = sys.modules.get("torch"), sys.modules.get("pycuda.driver")
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
    if torch is not None and torch.cuda.is_available():
        facts["cuda"], facts["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        facts["gpu"], facts["compute_capability"] = torch_gpu(torch)
    elif cuda is not None:
        facts["gpu"], facts["compute_capability"] = pycuda_gpu(cuda)
    if facts["gpu"]:
        facts["driver"] = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return facts


def torch_gpu(torch):
    """Name and compute capability of the first GPU, which has to be there: ("NVIDIA Orin", "8.7").
    `torch`: the module."""
    return torch.cuda.get_device_name(0), "{}.{}".format(*torch.cuda.get_device_capability(0))


def pycuda_gpu(cuda):
    """The same from the module `pycuda.driver`; (None, None) without a GPU."""
    try:
        cuda.init()
        if not cuda.Device.count():
            return None, None
        device = cuda.Device(0)
        return device.name(), "{}.{}".format(*device.compute_capability())
    except cuda.Error:
        return None, None


def operating_system():
    """Its name and release, "Debian GNU/Linux 12 (bookworm)" rather than the kernel's."""
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', read("/etc/os-release") or "", re.MULTILINE)
    return name.group(1) if name else f"{platform.system()} {platform.release()}"


def cpu_name():
    """The processor's model as the system names it."""
    info = read("/proc/cpuinfo") or ""
    name = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", info, re.MULTILINE)
    if name:
        return name.group(1).strip()
    return (run("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
            or platform.machine() or None)


def ram_gib():
    """Physical memory in GiB, one decimal."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def free_memory(device="cpu"):
    """Bytes of memory that are to be had now, on a GPU ("cuda") the GPU's where it has its own and
    that is less; None where the system doesn't say."""
    system = re.search(r"^MemAvailable: *(\d+) kB", read("/proc/meminfo") or "", re.MULTILINE)
    found = [int(system.group(1)) << 10] if system else []
    if device == "cuda":
        gpu = run("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
        found += [int(gpu) << 20] if gpu and gpu.isdigit() else []  # "[N/A]" on a Jetson
    return min(found, default=None)


def jetson(root="/"):
    """What a Jetson says of itself, from files that need no privileges; None elsewhere.

    Sources: L4T's device tree, /etc/nv_tegra_release, nvpmodel's status and modes, sysfs. `root`
    lets tests give a folder of sample files.
    """
    def path(name):
        return os.path.join(root, name)

    model = read(path("proc/device-tree/model"))
    release = read(path("etc/nv_tegra_release"))
    if release is None and "jetson" not in (model or "").lower():
        return None
    l4t = re.search(r"R(\d+).*?REVISION: ([\d.]+)", release or "")
    mode, mode_name, full_mode = power_mode(root)
    return {
        "model": model,
        "l4t": "{}.{}".format(*l4t.groups()) if l4t else None,
        "power_mode": mode,
        "power_mode_name": mode_name,
        "full_power_mode": full_mode,
        "cpus_online": read(path("sys/devices/system/cpu/online")),
        "cpu_mhz": scaled(read(path("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")), 1e3),
        "cpu_max_mhz": scaled(
            read(path("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq")), 1e3),
        "gpu_mhz": gpu_clock(root, "cur_freq"),
        "gpu_max_mhz": gpu_clock(root, "max_freq"),
        "hottest_c": hottest(root),
    }


def power_mode(root):
    """Number and name of nvpmodel's mode, and the number of the mode without limits (MAXN).

    That is mode 0 on a Nano, mode 2 on an Orin Nano with JetPack 6.2, and some boards have none.
    """
    status = re.search(r"pmode:(\d+)", read(os.path.join(root, "var/lib/nvpmodel/status")) or "")
    modes = {int(number): name for number, name in re.findall(
        r"^< *POWER_MODEL +ID=(\d+) +NAME=(\S+)",
        read(os.path.join(root, "etc/nvpmodel.conf")) or "", re.MULTILINE)}
    mode = int(status.group(1)) if status else None
    full = [number for number, name in sorted(modes.items()) if name.startswith("MAXN")]
    return mode, modes.get(mode), full[0] if full else None


def hottest(root):
    """The temperature in °C of the hottest thermal zone.

    A Nano's PMIC-Die is left out: no sensor, it reads 100 °C at all times.
    """
    degrees = []
    for zone in glob.glob(os.path.join(root, "sys/class/thermal/thermal_zone*")):
        temperature = read(os.path.join(zone, "temp")) or ""
        if read(os.path.join(zone, "type")) != "PMIC-Die" and re.match(r"-?\d+$", temperature):
            degrees.append(int(temperature) / 1000)
    return max(degrees) if degrees else None


def gpu_clock(root, name):
    """A clock of the Jetson's GPU in MHz (57000000.gpu on a Nano, 17000000.ga10b on an Orin)."""
    for pattern in ("*gpu*", "*ga10b*", "*gv11b*", "*gp10b*"):
        for folder in glob.glob(os.path.join(root, "sys/class/devfreq", pattern)):
            return scaled(read(os.path.join(folder, name)), 1e6)
    return None


def scaled(text, divisor):
    """A whole number in a file, in a larger unit; None where there is none."""
    return int(text) / divisor if text and text.isdigit() else None


def read(path):
    """The text of a small file, stripped also of the device tree's NULs; None where unreadable."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ") or None
    except OSError:
        return None


def run(*command):
    """The first line that a command prints; None where it isn't there, fails or takes too long."""
    try:
        output = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return output.decode(errors="replace").strip().split("\n")[0] or None
