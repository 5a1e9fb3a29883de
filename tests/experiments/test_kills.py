"""Real processes, really killed: a resumed comparison ends with the bits of an undisturbed one.

A random sleep, a share of the undisturbed duration, chooses the moment of a kill. No test relies on the moment, so
a bad guess only kills earlier or later.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from steppe.training.checkpoint import file

SMALL = [
    "--methods", "plain", "sadt-v1", "sam", "--seeds", "0", "--data.train", "300", "--data.test", "60",
    "--data.size", "18", "--epochs", "6", "--batch", "50", "--jobs", "2",
]  # fmt: skip


def start(out: Path) -> subprocess.Popen[bytes]:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "steppe", "compare", *SMALL, "--out", str(out)]
    with (out / "errors.txt").open("wb") as errors:
        return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors)


def errors_of(out: Path) -> str:
    return (out / "errors.txt").read_text()


def finish(out: Path) -> None:
    assert start(out).wait(timeout=300) == 0, errors_of(out)


def await_checkpoint(process: subprocess.Popen[bytes], out: Path) -> None:
    """Return once a run has a checkpoint."""
    until = time.monotonic() + 120
    while not list(out.glob("runs/*/checkpoint.safetensors")):
        assert time.monotonic() < until, "no checkpoint"
        # it must not end in the pause between two polls
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
            raise AssertionError(f"it ended: {errors_of(out)}")


def contents(out: Path) -> dict[str, Any]:
    """Return the contents that must not depend on interruptions, by file: weights and metrics."""
    contents: dict[str, Any] = {str(f.relative_to(out)): f.read_bytes() for f in out.glob("runs/*/metrics.jsonl")}
    for path in out.glob("runs/*/*.safetensors"):
        saved = file.read(path)
        tensors = {k: t.numpy().tobytes() for k, t in saved.tensors.items()}
        contents[str(path.relative_to(out))] = tensors, saved.data | {"seconds": None}
    return contents


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    out = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finish(out)
    took = time.monotonic() - started
    files = contents(out)
    assert len(files) == 9  # checkpoint, best weights and metrics of three runs
    return files, took


@pytest.mark.slow
def test_a_comparison_killed_at_random_moments_ends_with_the_same_bits(undisturbed, tmp_path):
    expected, took = undisturbed
    moments, done, kills, round_number = random.Random(20), 0, 20, 0
    while done < kills:
        out = tmp_path / str(round_number)
        round_number += 1
        while done < kills:
            process = start(out)
            time.sleep(moments.uniform(0.2, 0.9) * took)
            if process.poll() is not None:
                assert process.returncode == 0, errors_of(out)
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
        finish(out)
        assert contents(out) == expected


@pytest.mark.slow
def test_workers_of_a_killed_comparison_end_and_release_their_runs(undisturbed, tmp_path):
    """Only the parent is killed: its workers notice, and the next comparison resumes their runs."""
    expected, _ = undisturbed
    process = start(tmp_path)
    await_checkpoint(process, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finish(tmp_path)
    assert contents(tmp_path) == expected


@pytest.mark.slow
def test_ctrl_c_prints_the_command_that_resumes(undisturbed, tmp_path):
    expected, _ = undisturbed
    process = start(tmp_path)
    await_checkpoint(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert "go on with: steppe compare --methods plain sadt-v1 sam" in errors_of(tmp_path)
    assert errors_of(tmp_path).count("\n") == 1
    finish(tmp_path)
    assert contents(tmp_path) == expected
