"""Several processes on one run: as torchrun starts them, killed, and in the pool of the tests."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.many import together
from support.tiny_steppe import command, stopping, tiny
from torch.distributed import TCPStore

from steppe import InputError, models, records
from steppe.cli.main import main
from steppe.distributed import process_group
from steppe.training.checkpoint import file, save_and_resume, sharded

TINY_STEPPE = Path(__file__).parents[1] / "support" / "tiny_steppe.py"
SMALL = ["--data.train", "201", "--data.test", "61", "--data.size", "18", "--batch", "51", "--optim.lr", "1e-3"]
TINY = [
    "train", "--model", "tiny", "--method", "sam", "--sync", "global", "--epochs", "3", *SMALL,
    "--data.augment", "flip", "crop", "cutmix",
]  # fmt: skip
FSDP = ["--parallel", "fsdp"]
ELASTIC = ["train", "--method", "sadt-v1", "--epochs", "8", *SMALL, "--data.augment", "flip", "cutmix"]


def torchrun(*arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    """Start two processes of the steppe command; with the tiny network if its arguments name it."""
    program = [str(TINY_STEPPE)] if "tiny" in arguments else ["-m", "steppe"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--max-restarts", str(restarts), *program, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def outputs(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def pooled(*arguments: str, stop_after: int | None = None, expected: int = 0) -> tuple[str, str]:
    """Give the command in the pool of two processes; return output and error output of the main process."""
    (code, out, err), other = together(2, command, list(arguments), stop_after)
    assert code == other[0] == (expected if stop_after is None else 130), (err, other)
    assert other[1:] == ("", "")
    return out, err


def folder_of(out: Path) -> Path:
    (folder,) = (out / "runs").iterdir()
    return folder


def metrics(out: Path) -> list[dict[str, Any]]:
    return records.read_lines(folder_of(out) / "metrics.jsonl")


def result(out: Path) -> dict[str, Any]:
    return json.loads((folder_of(out) / "result.json").read_text())


@pytest.fixture(autouse=True, scope="module")
def _network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", tiny)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert main([*TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def stopped_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run sharded over two processes, ended after the second of its three epochs."""
    out = tmp_path_factory.mktemp("shards")
    pooled(*TINY, *FSDP, "--out", str(out), stop_after=2)
    assert len(metrics(out)) == 2
    return out


@pytest.fixture
def copied_shards(stopped_shards: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped_shards, tmp_path / "copy")


def assert_same_training(a: Path, b: Path) -> None:
    """Compare to 1e-6, the differences of sums in another order; accuracies exactly."""
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            exact = name != "val_loss" and name != "train_loss"
            assert value == other[name] if exact else value == pytest.approx(other[name], rel=1e-6), name
    for which in ("last", "best"):
        assert result(a)["test"][which]["accuracy"] == result(b)["test"][which]["accuracy"]
        assert result(a)["test"][which]["loss"] == pytest.approx(result(b)["test"][which]["loss"], rel=1e-6)


# -- three jobs of torchrun --------------------------------------------------------------------------------------


def test_two_replicas_train_as_one_process_and_one_of_them_prints(alone, tmp_path):
    out, _ = outputs(torchrun(*TINY, "--out", str(tmp_path)))
    assert_same_training(alone, tmp_path)
    assert result(tmp_path)["environment"]["processes"] == 2
    assert result(alone)["environment"]["processes"] == 1
    assert out.count("test accuracy") == out.count("records: ") == 1
    assert len(re.findall("epoch 3 ", out)) == 1


def test_two_sharded_processes_end_what_one_process_began(alone, tmp_path):
    with stopping(after=1):
        assert main([*TINY, "--out", str(tmp_path)]) == 130
    assert len(metrics(tmp_path)) == 1
    outputs(torchrun(*TINY, *FSDP, "--out", str(tmp_path)))
    assert_same_training(alone, tmp_path)
    names = {p.name for p in folder_of(tmp_path).glob("*.safetensors")}
    best = result(tmp_path)["test"]["best"]["epoch"]
    expected = {f"shard-checkpoint-3-{rank}of2.safetensors" for rank in range(2)}
    expected |= {"checkpoint.safetensors", f"best-{best}.safetensors"}
    if best > 1:  # the first epoch's were written by one process
        expected |= {f"shard-best-{best}-{rank}of2.safetensors" for rank in range(2)}
    assert names == expected


@pytest.mark.slow
def test_sharded_processes_that_are_saved_at_intervals_keep_the_best_epoch(tmp_path, monkeypatch):
    size = ["--data.train", "60", "--data.val", "40", "--data.test", "30", "--data.size", "8", "--batch", "20"]
    sgd = ["--optim.name", "sgd", "--optim.lr", "0.3", "--optim.schedule", "constant", "--data.augment", "none"]
    run = [
        "train",
        "--model",
        "mlp-16x1",
        "--method",
        "ema:decay=0.5",
        "--epochs",
        "8",
        "--sync",
        "global",
        *size,
        *sgd,
    ]
    pooled(*run, *FSDP, "--out", str(tmp_path / "each"))
    monkeypatch.setenv("STEPPE_SAVE_SECONDS", "inf")
    outputs(torchrun(*run, *FSDP, "--out", str(tmp_path / "ends")))
    each, ends = (result(tmp_path / name) for name in ("each", "ends"))
    assert (each["test"], each["val"]) == (ends["test"], ends["val"])
    assert 1 < each["test"]["best"]["epoch"] < 8  # neither of the two that are saved


def test_a_job_whose_process_is_killed_starts_again_and_ends_with_the_same_bits(tmp_path):
    """Dropout, BatchNorm, noise of each process's own, augmentation: all as in an undisturbed job."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pooled(*ELASTIC, "--keep", "--out", str(whole))
    job = torchrun(*ELASTIC, "--keep", "--out", str(parts), restarts=1)
    while not list(parts.glob("runs/*/checkpoint.safetensors")):
        assert job.poll() is None
        time.sleep(0.01)
    os.kill(worker(job.pid, rank=1), signal.SIGKILL)
    assert not list(parts.glob("runs/*/result.json"))
    _, err = outputs(job)
    assert "Traceback" not in err, err
    assert (folder_of(parts) / "metrics.jsonl").read_bytes() == (folder_of(whole) / "metrics.jsonl").read_bytes()
    assert result(parts)["test"] == result(whole)["test"]
    a, b = (file.read(folder_of(out) / "checkpoint.safetensors").tensors for out in (whole, parts))
    assert {"generators.noise.1", "generators.masks.1"} < a.keys() == b.keys()
    assert all(a[k].equal(b[k]) for k in a)


def worker(parent: int, rank: int) -> int:
    """Return the process of this rank among those that a launcher started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "status").read_text()
            if f"\nPPid:\t{parent}\n" in status and f"\0RANK={rank}\0" in (process / "environ").read_text():
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"the launcher has no worker of rank {rank}")


# -- the pool ----------------------------------------------------------------------------------------------------


def test_one_process_ends_what_two_sharded_ones_began(alone, copied_shards, capsys):
    assert main([*TINY, "--out", str(copied_shards)]) == 0
    assert_same_training(alone, copied_shards)
    assert not list(folder_of(copied_shards).glob("shard-checkpoint*"))


def test_replicas_end_what_sharded_processes_began(alone, copied_shards):
    pooled(*TINY, "--out", str(copied_shards))
    assert_same_training(alone, copied_shards)


def test_each_process_writes_only_its_rows(stopped_shards):
    """The two files together are as large as the state is, neither has all of it."""
    folder = folder_of(stopped_shards)
    whole = sharded.read(folder / "checkpoint.safetensors").tensors
    names = {k for k in whole if k.startswith(("net.", "optimizer.")) and not k.endswith(".step")}
    for rank in range(2):
        part = file.read(folder / f"shard-checkpoint-2-{rank}of2.safetensors").tensors
        assert set(part) == names
        assert all(len(piece) < len(whole[name]) for name, piece in part.items())


def replace_by_the_other(path: Path) -> None:
    path.write_bytes(path.with_name("shard-checkpoint-2-0of2.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "is incomplete: .*1of2.safetensors is missing; delete it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is incomplete: .* is damaged .*; delete it"),
        (replace_by_the_other, "1of2.safetensors belongs to another checkpoint"),
    ],
    ids=["missing", "cut", "another"],
)
def test_a_shard_that_is_missing_or_damaged_is_one_line(damage, message, copied_shards, capsys):
    (folder_of(copied_shards) / save_and_resume.BEFORE).unlink()
    damage(folder_of(copied_shards) / "shard-checkpoint-2-1of2.safetensors")
    with pytest.raises(InputError, match=message):
        sharded.read(folder_of(copied_shards) / "checkpoint.safetensors")
    assert main([*TINY, "--out", str(copied_shards)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_of_a_damaged_shard_all_go_back_to_the_checkpoint_before(alone, copied_shards):
    (folder_of(copied_shards) / "shard-checkpoint-2-1of2.safetensors").unlink()
    _, err = pooled(*TINY, *FSDP, "--out", str(copied_shards))
    assert_same_training(alone, copied_shards)
    assert "goes on from the one before it, of epoch 1" in err


def test_an_index_that_points_outside_its_folder_is_refused(copied_shards):
    path = folder_of(copied_shards) / "checkpoint.safetensors"
    index = file.read(path)
    outside = {"../elsewhere.safetensors": "0" * 64}
    file.write(path, file.Checkpoint(index.tensors, index.data | {"shards": outside}))
    with pytest.raises(InputError, match="it names '../elsewhere.safetensors'"):
        sharded.read(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --batch 3", "batch is 3 on 2 processes; give at least 4"),
        ("compare --methods plian", "unknown method 'plian'; did you mean 'plain'"),
        ("train --out /dev/null/out --epochs 1", "cannot write /dev/null/out"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_everywhere(arguments, message, tmp_path):
    options = arguments.split() + ([] if "--out" in arguments else ["--out", str(tmp_path)])
    first, second = together(2, command, options)
    assert (first[0], second[0]) == (2, 2)
    assert first[2].startswith("steppe: error: ") and message in first[2]
    assert first[2].count("\n") == 1
    assert second[1] == second[2] == ""
    assert first[1] == "" or (first[1].startswith("digits: ") and first[1].count("\n") == 1)


def test_equal_seconds_end_together(tmp_path):
    """The main process's clock decides; a process that went on alone would wait for ever."""
    pooled("train", *SMALL, "--match", "seconds", "--seconds", "1", "--out", str(tmp_path))
    assert 1.0 <= result(tmp_path)["seconds"] < 3.0


def test_compare_does_its_runs_together_with_a_split_for_each_seed(tmp_path):
    arguments = ["--methods", "plain", "--seeds", "0", "1", *SMALL]
    pooled("compare", *arguments, "--resplit", "--out", str(tmp_path / "both"))
    pooled(
        "compare", *arguments[:2], "--seeds", "1", *SMALL, "--data.split_seed", "1", "--out", str(tmp_path / "one")
    )
    (run,) = (tmp_path / "one" / "runs").iterdir()
    other = tmp_path / "both" / "runs" / run.name
    assert (run / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def test_compare_does_its_runs_together_and_reports_once(tmp_path):
    arguments = ["--methods", "plain", "sam:rho=1e30", "--seeds", "0", "--epochs", "2", *SMALL]
    out, _ = pooled("compare", *arguments, "--out", str(tmp_path), expected=1)
    assert "2 runs, 1 (on 2 processes) at a time" in out
    assert out.count("report: ") == out.count("[2/2]") == 1
    assert "not finite" in (tmp_path / "report.html").read_text()
    comparison = records.load(tmp_path)
    assert [r.status for r in comparison.records] == ["ok", "failed"]
    assert comparison.environment["processes"] == 2


# -- one process that waits for another --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other_comes", "store_of_torchrun", "message"),
    [
        (False, "False", "waiting for clients"),
        (True, "False", "1/2 clients joined"),
        (False, "True", "trying to connect"),
    ],
)
def test_a_process_that_nobody_meets_gives_up_with_a_line(
    other_comes, store_of_torchrun, message, tmp_path, capsys, monkeypatch
):
    """They meet where one of them waits, or where torchrun does, which may have been killed before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    names |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": store_of_torchrun}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process_group, "_RENDEZVOUS", timedelta(seconds=1))
    with ThreadPoolExecutor() as pool:
        if other_comes:
            pool.submit(TCPStore, "127.0.0.1", port, 2, is_master=False, timeout=timedelta(seconds=30))
        assert main([*TINY, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("steppe: ") and message in line
    assert line.endswith("or let torchrun do it with --max-restarts")


# -- more ranks than GPUs ----------------------------------------------------------------------------------------


def test_ranks_that_share_a_gpu_are_counted_by_machine():
    """Each rank may see one GPU of its own as number 0 (Slurm); two ranks on one GPU are refused."""
    process_group._require_own_gpus([("a", "1"), ("a", "2"), ("b", "1")], "a")
    crowded = [("a", "1"), ("b", "1"), ("b", "2"), ("b", "1")]
    for machine in ("a", "b"):
        with pytest.raises(InputError, match=r"3 ranks on b, which has 2 GPUs for them; give --nproc-per-node 2,"):
            process_group._require_own_gpus(crowded, machine)


GPU = """
import types
import torch
from steppe.cli.main import main
from steppe.distributed import process_group

process_group._ON_GPUS = "gloo"  # that NCCL is not in this torch
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
torch.cuda.set_device = lambda gpu: None
torch.cuda.get_device_properties = lambda gpu: types.SimpleNamespace(uuid="GPU-1")
raise SystemExit(main(["train", "--epochs", "1"]))
"""


@pytest.mark.slow
def test_torchrun_with_more_ranks_than_gpus_is_refused_in_one_line(tmp_path):
    script = tmp_path / "two_ranks.py"
    script.write_text(GPU)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    run = subprocess.run(launcher, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    lines = [line for line in run.stderr.splitlines() if line.startswith("steppe: ")]
    assert run.returncode != 0 and len(lines) == 1
    assert "torchrun starts 2 ranks on" in lines[0] and "has 1 GPU for them; give --nproc-per-node 1" in lines[0]
