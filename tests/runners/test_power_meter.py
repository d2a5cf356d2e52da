"""Energy counters: read where the system has them, missing where it does not, and what starts anew."""

import shutil
import subprocess

import pytest

from runners.power_meter import Reading, read_nvidia, read_processors, spent_j

STAND_IN = """
#include <string.h>
static unsigned long long millijoules = 5000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    *handle = (void *)1;
    return strcmp(uuid, "GPU-1") ? 2 : 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *out) {
    *out = millijoules += 1500;
    return handle == (void *)1 ? 0 : 3;
}
"""


def package(root, number, microjoules, limit=1_000_000_000):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")


def test_packages_add_up_and_their_parts_are_left_out(tmp_path):
    for number in (0, 1):
        package(tmp_path, number, 2_000_000)
    (tmp_path / "intel-rapl:0:0").mkdir()
    before = read_processors(tmp_path)
    package(tmp_path, 0, 5_000_000)
    package(tmp_path, 1, 4_500_000)
    assert spent_j(before, read_processors(tmp_path)) == pytest.approx(5.5)


def test_a_counter_that_starts_anew_is_followed(tmp_path):
    package(tmp_path, 0, 9_000_000, limit=10_000_000)
    before = read_processors(tmp_path)
    package(tmp_path, 0, 500_000, limit=10_000_000)
    assert spent_j(before, read_processors(tmp_path)) == pytest.approx(1.5)


@pytest.mark.parametrize("there", [False, True], ids=["no counters", "unreadable counters"])
def test_what_cannot_be_read_is_no_measurement(tmp_path, there):
    if there:
        (tmp_path / "intel-rapl:0").mkdir()
    assert read_processors(tmp_path if there else tmp_path / "nothing") is None
    assert spent_j(None, None) is None
    assert spent_j(Reading(joules={"a": 1.0}), Reading(joules={"b": 2.0})) is None
    assert spent_j(Reading(joules={"a": 1.0}), Reading(joules={"a": 1.0})) is None


def test_without_a_driver_no_device_has_a_counter(tmp_path):
    assert read_nvidia("GPU-1", str(tmp_path / "libnvidia-ml.so.1")) is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for a stand-in of the driver's library")
def test_a_devices_counter_is_asked_by_its_uuid(tmp_path):
    """A stand-in with the driver's three functions: joules from millijoules, an error code is no reading."""
    source, library = tmp_path / "nvml.c", tmp_path / "nvml.so"
    source.write_text(STAND_IN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    before, after = read_nvidia("GPU-1", str(library)), read_nvidia("GPU-1", str(library))
    assert before.joules == {"GPU-1": 6.5}
    assert spent_j(before, after) == pytest.approx(1.5)
    assert read_nvidia("GPU-2", str(library)) is None
