"""No method combines tensors of two devices, reads a value or sends one: its steps run on a stand-in for a GPU."""

import json
import subprocess
import sys

import pytest

from steppe.methods import METHODS, make


@pytest.mark.slow
def test_no_step_combines_two_devices_and_sam_launches_few_operations():
    command = [sys.executable, "-m", "benchmarks", "launches", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["method"]: row for row in json.loads(done.stdout)["results"]}
    assert rows.keys() == {name for name in METHODS if name == "esam" or not make(name).on_host}
    assert rows["sam"]["operations"] <= 10
    assert rows["sam"]["copies"] == 2
    assert rows["plain"]["operations"] <= 2
