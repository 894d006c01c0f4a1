"""The machine's record, on this machine and from sample files of a Jetson."""

import json

import pytest

import MNISTmachine

NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, "
                            "EABI: aarch64, DATE: Sat Feb 19 17:05:08 UTC 2022\n",
    "var/lib/nvpmodel/status": "pmode:0001",
    "sys/devices/system/cpu/online": "0-1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "918000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "918000\n",
    "sys/class/devfreq/57000000.gpu/cur_freq": "614400000\n",
    "sys/class/devfreq/57000000.gpu/max_freq": "640000000\n",
    "sys/class/thermal/thermal_zone0/temp": "41500\n",
    "sys/class/thermal/thermal_zone1/temp": "38000\n",
}


@pytest.fixture
def nano(tmp_path):
    for name, text in NANO.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_record_is_json_and_names_this_machine():
    record = json.loads(json.dumps(MNISTmachine.machine_record(), allow_nan=False))
    assert record["cpus"] >= 1 and record["os"] and record["utc"].endswith("Z")
    assert "\n" in MNISTmachine.describe_machine(record)


def test_jetson_nano(nano):
    assert MNISTmachine.jetson(str(nano)) == {
        "model": "NVIDIA Jetson Nano Developer Kit", "l4t": "32.7.1", "power_mode": 1,
        "cpus_online": "0-1", "cpu_mhz": 918.0, "cpu_max_mhz": 918.0, "gpu_mhz": 614.4,
        "gpu_max_mhz": 640.0, "hottest_c": 41.5}


@pytest.mark.parametrize("content", [None, "", "garbage\n"])
@pytest.mark.parametrize("name", sorted(set(NANO) - {"etc/nv_tegra_release"}))
def test_jetson_with_a_file_missing_or_strange(nano, name, content):
    if content is None:
        (nano / name).unlink()
    else:
        (nano / name).write_text(content)
    jetson = MNISTmachine.jetson(str(nano))
    assert jetson["l4t"] == "32.7.1"
    json.dumps(jetson, allow_nan=False)


def test_no_jetson(tmp_path):
    assert MNISTmachine.jetson(str(tmp_path)) is None


def test_five_watt_mode_warns(nano):
    from MNISTtiming import machine_warnings
    warnings = machine_warnings({"cpu_governor": None, "jetson": MNISTmachine.jetson(str(nano))})
    assert len(warnings) == 1 and "nvpmodel" in warnings[0]
