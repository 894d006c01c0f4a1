"""The machine's record, on this machine and from sample files of a Jetson."""

import json

import pytest
from scripts import LINUX

from mnist import machine

NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, "
                            "EABI: aarch64, DATE: Sat Feb 19 17:05:08 UTC 2022\n",
    "var/lib/nvpmodel/status": "pmode:0001",
    "etc/nvpmodel.conf": "# a comment\n< PARAM TYPE=FILE NAME=CPU_ONLINE >\n"
                         "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_1 1\n"
                         "< POWER_MODEL ID=1 NAME=5W >\nCPU_ONLINE CORE_1 1\n"
                         "< PM_CONFIG DEFAULT=0 >\n",
    "sys/devices/system/cpu/online": "0-1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "918000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "918000\n",
    "sys/class/devfreq/57000000.gpu/cur_freq": "614400000\n",
    "sys/class/devfreq/57000000.gpu/max_freq": "640000000\n",
    "sys/class/thermal/thermal_zone0/temp": "41500\n",
    "sys/class/thermal/thermal_zone0/type": "AO-therm\n",
    "sys/class/thermal/thermal_zone1/temp": "38000\n",
    "sys/class/thermal/thermal_zone4/temp": "100000\n",
    "sys/class/thermal/thermal_zone4/type": "PMIC-Die\n",
}


@pytest.fixture
def nano(tmp_path):
    for name, text in NANO.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_record_is_json_and_names_this_machine():
    record = json.loads(json.dumps(machine.machine_record(), allow_nan=False))
    assert record["cpus"] >= 1 and record["os"] and record["utc"].endswith("Z")
    assert "\n" in machine.describe_machine(record)


def test_jetson_nano(nano):
    assert machine.jetson(str(nano)) == {
        "model": "NVIDIA Jetson Nano Developer Kit", "l4t": "32.7.1", "power_mode": 1,
        "power_mode_name": "5W", "full_power_mode": 0, "cpus_online": "0-1", "cpu_mhz": 918.0,
        "cpu_max_mhz": 918.0, "gpu_mhz": 614.4, "gpu_max_mhz": 640.0, "hottest_c": 41.5}
    record = dict(machine.machine_record(), jetson=machine.jetson(str(nano)))
    assert ("NVIDIA Jetson Nano Developer Kit, L4T 32.7.1, power mode 5W, 42 °C"
            in machine.describe_machine(record))


@pytest.mark.parametrize("content", [None, "garbage\n"])
@pytest.mark.parametrize("name", sorted(set(NANO) - {"etc/nv_tegra_release"}))
def test_jetson_with_a_file_missing_or_strange(nano, name, content):
    if content is None:
        (nano / name).unlink()
    else:
        (nano / name).write_text(content)
    jetson = machine.jetson(str(nano))
    assert jetson["l4t"] == "32.7.1"
    record = dict(machine.machine_record(), threads=4, jetson=json.loads(json.dumps(jetson)))
    assert "None" not in machine.describe_machine(record).split("\n")[0]


def test_no_jetson(tmp_path):
    assert machine.jetson(str(tmp_path)) is None


def warnings_of(root):
    from mnist.bench.stopwatch import machine_warnings
    return machine_warnings({"cpu_governor": None, "jetson": machine.jetson(str(root))})


def test_five_watt_mode_warns(nano):
    warning, = warnings_of(nano)
    assert "power mode is 1 (5W)" in warning and "sudo nvpmodel -m 0 &&" in warning
    (nano / "var/lib/nvpmodel/status").write_text("pmode:0000")
    assert warnings_of(nano) == []


def test_orins_full_mode_is_not_mode_0(nano):
    (nano / "etc/nvpmodel.conf").write_text(
        "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n")
    (nano / "var/lib/nvpmodel/status").write_text("pmode:0002")
    assert warnings_of(nano) == []
    (nano / "var/lib/nvpmodel/status").write_text("pmode:0000")
    warning, = warnings_of(nano)
    assert "0 (15W)" in warning and "nvpmodel -m 2" in warning


@pytest.mark.parametrize("files, quota", [
    ({"cpu.max": "30000 100000"}, 0.3), ({"cpu.max": "max 100000"}, None), ({}, None),
    ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None)])
def test_the_quota_of_the_cgroup_counts(tmp_path, monkeypatch, files, quota):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert machine.cpu_quota(str(tmp_path)) == quota
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.usable_cpus() == {0.3: 1, 2.0: 2, None: 4}[quota]


@pytest.mark.skipif(not LINUX, reason="elsewhere nothing says it")
@pytest.mark.parametrize("answer, gpu_alone", [("512", True), ("[N/A]", False), (None, False)])
def test_free_memory_is_the_gpu_s_where_that_is_less(monkeypatch, answer, gpu_alone):
    monkeypatch.setattr(machine, "run", lambda *_: answer)
    assert machine.free_memory() > 512 << 20
    assert (machine.free_memory("cuda") == 512 << 20) == gpu_alone
